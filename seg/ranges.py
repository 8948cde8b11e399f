"""Ranges of arguments: the annotation of a constructor is the one source for the config and for Python users."""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
NUMBER_NAMES = {int: "a whole number", float: "a number"}


def check_ranges(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function, such as a constructor, which then raises ValueError for an argument outside the range of its annotation.

    Checked are numbers, ``Annotated[int, Field(ge=1)]``, and words, ``Literal["a", "b"]``, also in a union.
    """
    signature = inspect.signature(function)
    hints = functools.cache(lambda: typing.get_type_hints(function, include_extras=True))

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in hints() and not in_range(value, hints()[name]):
                needed = " or ".join(
                    [*annotation_words(hints()[name]), *annotation_ranges(hints()[name])]
                )
                raise ValueError(f"{name} is {value}; {needed} is needed")
        return function(*args, **kwargs)

    return checked


def in_range(value: Any, wanted: Any) -> bool:
    """Return False for a number or a word that no member of an annotation allows; other types aren't checked."""
    members = union_members(wanted)
    limited = [member for member in members if typing.get_origin(member) in (Annotated, Literal)]
    if not limited or any(member_allows(member, value) for member in members):
        return True
    return value is not None and not isinstance(value, int | float | str)


def member_allows(member: Any, value: Any) -> bool:
    """Return True if a value has the type of a union's member, and is in its range."""
    if typing.get_origin(member) is Literal:
        return value in typing.get_args(member)
    kind, limits = (typing.get_args(member)[0], number_limits(member)) if typing.get_origin(member) is Annotated else (member, {})  # fmt: skip
    kinds = (int, float) if kind is float else typing.get_origin(kind) or kind
    tests = {"ge": lambda n: value >= n, "gt": lambda n: value > n, "le": lambda n: value <= n, "lt": lambda n: value < n}  # fmt: skip
    return isinstance(value, kinds) and all(tests[key](n) for key, n in limits.items())


def union_members(wanted: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation itself."""
    is_union = typing.get_origin(wanted) in (typing.Union, types.UnionType)
    return typing.get_args(wanted) if is_union else (wanted,)


def number_limits(wanted: Any) -> dict[str, float]:
    """Return ge, gt, le and lt of ``Annotated[int, Field(...)]``."""
    limits = typing.get_args(wanted)[1].metadata
    return {n: getattr(x, n) for x in limits for n in ("ge", "gt", "le", "lt") if hasattr(x, n)}


def annotation_words(wanted: Any) -> list[str]:
    """Return the words that an annotation allows in one text, "one of a, b"."""
    words = [w for m in union_members(wanted) if typing.get_origin(m) is Literal for w in typing.get_args(m)]  # fmt: skip
    return [f"one of {', '.join(map(str, words))}"] if words else []


def annotation_ranges(wanted: Any) -> list[str]:
    """Return the ranges of an annotation's numbers in words, "a number from 0 to below 1"."""
    inner = typing.get_args(wanted)
    if typing.get_origin(wanted) is not Annotated:
        texts = [text for member in inner for text in annotation_ranges(member)]
        is_list = typing.get_origin(wanted) is list
        return [f"a list, each {text}" for text in texts] if is_list else texts
    bounds, name = number_limits(wanted), NUMBER_NAMES[inner[0]]
    low = f"from {bounds['ge']:g}" if "ge" in bounds else f"above {bounds['gt']:g}"
    high = f" to {bounds['le']:g}" if "le" in bounds else ""
    high = f" to below {bounds['lt']:g}" if "lt" in bounds else high
    if not high and "ge" in bounds:
        return [f"{name} of {bounds['ge']:g} or more"]
    return [f"{name} {low}{high}"]
