"""Search space: Hydra's extended override grammar converted to Optuna's distributions.

choice(a,b) or a,b     one of the values; for a config group also glob(unet*)
interval(a,b)          a number from a to b; int(interval(a,b)): an integer, both ends included
range(a,b,step)        the same numbers as in a sweep of seg.train, without b
tag(log, ...)          uniform in the logarithm; for an interval, or a range of integers with step 1
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

from seg.cli.compose import expand_sweep, parse_overrides
from seg.cli.conf_files import format_option_value, group_names, is_hydra_override
from seg.errors import UserError

log = logging.getLogger("seg")
OptionValue = str | int | float | bool | None
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
MAX_RANGE_VALUES = 10_000  # values of a range


@dataclass(frozen=True)
class SearchDimension:
    """Searched option.

    Attributes:
        typed: override as typed.
        key: part of the override before ``=``.
        distribution: of its values; choices other than numbers are kept in Hydra's notation.
    """

    typed: str
    key: str
    distribution: Distribution

    @property
    def name(self) -> str:
        """Return the option's name in the study, without a leading +."""
        return self.key.lstrip("+")

    def text(self, value: OptionValue) -> str:
        """Format a value for an override; numbers of an interval have six digits, as trained."""
        if isinstance(self.distribution, FloatDistribution):
            return f"{value:.6g}"
        return format_option_value(value)

    def word(self, value: OptionValue) -> str:
        """Return the override that sets the option to a value."""
        return f"{self.key}={self.text(value)}"

    def brief(self, value: OptionValue) -> str:
        """Format a value for display, with three digits."""
        return f"{value:.3g}" if isinstance(value, float) else format_option_value(value)

    def samples(self) -> list[OptionValue]:
        """Return values to check: all choices, or both limits and, as these may be integers, one in between."""
        # Choices: each must compose a config
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return list(d.choices)
        if isinstance(d, IntDistribution):
            return [d.low, d.high]
        # A step above the lower limit, or a share of the interval that is hardly a whole number
        between = d.low + (d.step or 0.3819 * (d.high - d.low))
        return [d.low, d.high, min(between, d.high)]

    def values(self) -> list[OptionValue] | None:
        """Return all values; None for a continuous interval."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return list(d.choices)
        if isinstance(d, IntDistribution):
            return list(range(d.low, d.high + 1, d.step))
        if d.step is None:
            return None
        count = round((d.high - d.low) / d.step) + 1
        return [round_off(d.low + i * d.step) for i in range(count)]

    def __str__(self) -> str:
        """Describe the distribution; different distributions have different descriptions."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return " | ".join(format_option_value(choice) for choice in d.choices)
        whole = isinstance(d, IntDistribution)
        kind = "whole numbers " if whole else ""
        step = "" if d.step is None or (whole and d.step == 1) else f" by {d.step:g}"
        return f"{kind}{d.low:.12g} to {d.high:.12g}{step}{', log' if d.log else ''}"


def parse_dimensions(words: Sequence[str]) -> list[SearchDimension]:
    """Parse the searched options.

    Args:
        words: overrides with several values.

    Raises:
        UserError: if an override can't be searched.
    """
    overrides = parse_overrides(list(words))
    groups = group_names()
    return [
        SearchDimension(str(o.input_line), o.get_key_element(), distribution(o, groups))
        for o in overrides
    ]


def distribution(override: Override, groups: dict[str, list[str]]) -> Distribution:
    """Convert the values of an override to an Optuna distribution.

    Args:
        override: parsed.
        groups: config group -> names of its files, for globs.

    Raises:
        UserError: if it has no values, or no distribution describes them.
    """
    # Check the override and its tag.
    value, word = override.value(), override.input_line
    if not override.is_sweep_override() or override.is_delete() or is_hydra_override(override):
        raise UserError(
            f"{word}: can't be searched; give several values, such as optim.lr=choice(1e-3,1e-2)"
        )
    tags = value.tags if isinstance(value, Sweep) else set()  # a glob has none
    if tags - {"log"}:
        raise UserError(
            f"{word}: tag({', '.join(sorted(tags))}) is unknown; there is tag(log, ...)"
        )
    # Convert it by its kind.
    log = "log" in tags
    if isinstance(value, IntervalSweep):
        return interval_distribution(value, log, word)
    if isinstance(value, RangeSweep):
        return range_distribution(value, log, word)
    if log:
        raise UserError(f"{word}: tag(log, ...) is for interval(...) and range(...)")
    if isinstance(value, ChoiceSweep):
        return choice_distribution(override)
    names = [w.partition("=")[2] for w in expand_sweep(override, groups)]
    return CategoricalDistribution(names)


def choice_distribution(override: Override) -> CategoricalDistribution:
    """Return the choices: numbers, booleans and None as they are, all else in Hydra's notation."""
    # Optuna stores numbers, booleans and None unchanged
    pairs = zip(override.sweep_iterator(), override.sweep_string_iterator(), strict=True)
    values = [
        value
        if value is None or isinstance(value, bool | int | float)
        else quote_choice(value, text)
        for value, text in pairs
    ]
    # Python takes 1, 1.0 and True for equal, so such choices could not be told apart
    for value, other in itertools.combinations(values, 2):
        if value == other:
            raise UserError(
                f"{override.input_line}: {format_option_value(value)} and {format_option_value(other)} are the same"
            )
    return CategoricalDistribution(values)


def quote_choice(value: Any, text: str) -> str:
    """Return a choice in Hydra's notation, quoted if it would be parsed as another value."""
    try:
        same = not isinstance(value, str) or parse_overrides([f"a={text}"])[0].value() == value
    except UserError:
        same = False
    return text if same else QuotedString(value, Quote.single).with_quotes()


def interval_distribution(value: IntervalSweep, log: bool, word: str | None) -> Distribution:
    """Convert an interval; raise UserError if it is empty or infinite."""
    # Both limits must be finite numbers in increasing order
    low, high = value.start, value.end
    if low is None or high is None or not math.isfinite(low) or not math.isfinite(high):
        raise UserError(f"{word}: an interval needs two numbers, interval(1e-4, 1e-1)")
    if low >= high:
        raise UserError(
            f"{word}: the interval from {low:g} to {high:g} is empty; give the lower limit first"
        )
    check_log(log, low, word)
    # Integers only if both limits are
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def range_distribution(value: RangeSweep, log: bool, word: str | None) -> Distribution:
    """Convert a range to the numbers that Hydra's sweep would use; raise UserError if it has none or too many."""
    try:
        numbers = [round_off(n) for n in itertools.islice(value.range(), MAX_RANGE_VALUES + 1)]
    except (HydraException, ValueError) as error:
        raise UserError(f"{word}: the step is 0") from error
    if not numbers or len(numbers) > MAX_RANGE_VALUES:
        reason = (
            f"more than {MAX_RANGE_VALUES} numbers; give an interval"
            if numbers
            else "the range is empty"
        )
        raise UserError(f"{word}: {reason}")
    # Optuna needs an increasing range; Hydra's may have a negative step
    low, high, step = min(numbers), max(numbers), abs(value.step)
    check_log(log, low, word)
    # Optuna has no logarithmic distribution with another step
    if log and (step != 1 or not isinstance(low, int)):
        raise UserError(f"{word}: tag(log, range(...)) needs integers and a step of 1")
    if all(isinstance(n, int) for n in numbers):
        return IntDistribution(int(low), int(high), log=log, step=int(step))
    return FloatDistribution(low, high, step=float(step))


def check_log(log: bool, low: float, word: str | None) -> None:
    """Raise UserError for a logarithmic distribution that includes 0 or less."""
    if log and low <= 0:
        raise UserError(f"{word}: starts at {low:g}; a logarithm needs numbers above 0")


def round_off(number: float) -> float:
    """Round off the floating-point error of repeated addition."""
    return number if isinstance(number, int) else float(f"{number:.12g}")


def short_names(axes: Sequence[SearchDimension]) -> dict[str, str]:
    """Return the last part of each option's name, or the whole name where two would be equal."""
    last = {axis.name: re.split(r"[./]", axis.name)[-1] for axis in axes}
    return {k: v if list(last.values()).count(v) == 1 else k for k, v in last.items()}
