"""What a search tries: Hydra's extended override grammar as Optuna's distributions.

choice(a,b) or a,b     one of these; of a config group too, also as glob(unet*)
interval(a,b)          a number from a to b; int(interval(a,b)): a whole one, both ends included
range(a,b,step)        the numbers that it stands for in a sweep of seg.train, so without b
tag(log, ...)          of an interval, or of whole numbers one by one: evenly in the logarithm
"""

import itertools
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
    Sweep,
)
from hydra.errors import HydraException
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from seg.cli.compose import parse, swept
from seg.cli.conf_files import group_names, is_hydras, shown
from seg.errors import UserError

log = logging.getLogger("seg")
Value = str | int | float | bool | None
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
MOST = 10_000  # values of a range


@dataclass(frozen=True)
class Axis:
    """An option that is searched.

    Attributes:
        typed: the word that says so.
        key: what stands before its ``=``.
        distribution: of its values; a choice that is no number is kept as Hydra writes it.
    """

    typed: str
    key: str
    distribution: Distribution

    @property
    def name(self) -> str:
        """In the study: without a +."""
        return self.key.lstrip("+")

    def text(self, value: Value) -> str:
        """As it stands in a word; of an interval's numbers six digits, and these are what is trained."""
        if isinstance(self.distribution, FloatDistribution):
            return f"{value:.6g}"
        return shown(value)

    def word(self, value: Value) -> str:
        return f"{self.key}={self.text(value)}"

    def brief(self, value: Value) -> str:
        """For people: three digits."""
        return f"{value:.3g}" if isinstance(value, float) else shown(value)

    def samples(self) -> list[Value]:
        """Values to check: every choice; or both ends and, since these may be whole, one between."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return list(d.choices)
        if isinstance(d, IntDistribution):
            return [d.low, d.high]
        between = d.low + (d.step or 0.3819 * (d.high - d.low))
        return [d.low, d.high, min(between, d.high)]

    def values(self) -> list[Value] | None:
        """Each value; None where there are more than can be counted."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return list(d.choices)
        if isinstance(d, IntDistribution):
            return list(range(d.low, d.high + 1, d.step))
        if d.step is None:
            return None
        count = round((d.high - d.low) / d.step) + 1
        return [clean(d.low + i * d.step) for i in range(count)]

    def __str__(self) -> str:
        """What the distribution is; two that differ read differently."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return " | ".join(shown(choice) for choice in d.choices)
        whole = isinstance(d, IntDistribution)
        kind = "whole numbers " if whole else ""
        by = "" if d.step is None or (whole and d.step == 1) else f" by {d.step:g}"
        return f"{kind}{d.low:.12g} to {d.high:.12g}{by}{', log' if d.log else ''}"


def axes(words: Sequence[str]) -> list[Axis]:
    """Each option that is searched.

    Raises:
        UserError: when a word is no search, or can't be one.
    """
    overrides = parse(list(words))
    groups = group_names()
    return [
        Axis(str(o.input_line), o.get_key_element(), distribution(o, groups)) for o in overrides
    ]


def is_search(word: str) -> bool:
    """Whether the word gives an option several values.

    Raises:
        UserError: when it can't be read; of a function of Hydra's with what is wrong there.
    """
    try:
        return parse([word])[0].is_sweep_override()
    except UserError as error:
        reason = str(error.__cause__).partition("\n")[0]
        if "while evaluating" in reason:
            raise UserError(f"{word}: {reason}") from error
        raise


def distribution(override: Override, groups: dict[str, list[str]]) -> Distribution:
    """The values of one word, as Optuna draws them.

    Raises:
        UserError: when there are none, or they can't be drawn so.
    """
    value, word = override.value(), override.input_line
    if not override.is_sweep_override() or override.is_delete() or is_hydras(override):
        raise UserError(f"{word}: can't be searched; give as optim.lr=choice(1e-3,1e-2)")
    tags = value.tags if isinstance(value, Sweep) else set()  # a glob has none
    if tags - {"log"}:
        raise UserError(
            f"{word}: tag({', '.join(sorted(tags))}) is unknown; there is tag(log, ...)"
        )
    log = "log" in tags
    if isinstance(value, IntervalSweep):
        return interval(value, log, word)
    if isinstance(value, RangeSweep):
        return steps(value, log, word)
    if log:
        raise UserError(f"{word}: tag(log, ...) is for interval(...) and range(...)")
    if isinstance(value, ChoiceSweep):
        return choices(override)
    names = [w.partition("=")[2] for w in swept(override, groups)]
    return CategoricalDistribution(names)


def choices(override: Override) -> CategoricalDistribution:
    """Numbers, true, false and null as they are, all else as Hydra writes it."""
    pairs = zip(override.sweep_iterator(), override.sweep_string_iterator(), strict=True)
    found = [
        value if value is None or isinstance(value, bool | int | float) else quoted(value, text)
        for value, text in pairs
    ]
    for value, other in itertools.combinations(found, 2):
        if value == other:
            raise UserError(
                f"{override.input_line}: {shown(value)} and {shown(other)} are the same"
            )
    return CategoricalDistribution(found)


def quoted(value: Any, text: str) -> str:
    """A choice's text, in quotes if it would be read as something else."""
    try:
        same = not isinstance(value, str) or parse([f"a={text}"])[0].value() == value
    except UserError:
        same = False
    return text if same else QuotedString(value, Quote.single).with_quotes()


def interval(value: IntervalSweep, log: bool, word: str | None) -> Distribution:
    low, high = value.start, value.end
    if low is None or high is None or not math.isfinite(low) or not math.isfinite(high):
        raise UserError(f"{word}: an interval needs two numbers, interval(1e-4, 1e-1)")
    if low >= high:
        raise UserError(f"{word}: nothing lies from {low:g} to {high:g}; the lower end comes first")
    check_log(log, low, word)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def steps(value: RangeSweep, log: bool, word: str | None) -> Distribution:
    """The numbers that Hydra counts up or down to."""
    try:
        numbers = [clean(n) for n in itertools.islice(value.range(), MOST + 1)]
    except (HydraException, ValueError) as error:
        raise UserError(f"{word}: the step is 0") from error
    if not numbers or len(numbers) > MOST:
        many = f"more than {MOST} numbers; give an interval" if numbers else "no number lies in it"
        raise UserError(f"{word}: {many}")
    low, high, step = min(numbers), max(numbers), abs(value.step)
    check_log(log, low, word)
    if log and (step != 1 or not isinstance(low, int)):
        raise UserError(f"{word}: tag(log, range(...)) needs whole numbers and steps of 1")
    if all(isinstance(n, int) for n in numbers):
        return IntDistribution(int(low), int(high), log=log, step=int(step))
    return FloatDistribution(low, high, step=float(step))


def check_log(log: bool, low: float, word: str | None) -> None:
    if log and low <= 0:
        raise UserError(f"{word}: begins at {low:g}; a logarithm needs numbers above 0")


def clean(number: float) -> float:
    """Without the last bits that adding steps leaves."""
    return number if isinstance(number, int) else float(f"{number:.12g}")


def short_names(axes: Sequence[Axis]) -> dict[str, str]:
    """The last part of each option's name, or the whole where two would share it."""
    last = {axis.name: re.split(r"[./]", axis.name)[-1] for axis in axes}
    return {k: v if list(last.values()).count(v) == 1 else k for k, v in last.items()}
