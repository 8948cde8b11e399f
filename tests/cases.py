"""Cases of a parametrised test of which only some are fast."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """Return the cases, all marked slow but the given ones."""
    slow = pytest.mark.slow
    return [
        case if case in fast else pytest.param(*case, marks=slow) if isinstance(case, tuple)
        else pytest.param(case, marks=slow)
        for case in cases
    ]  # fmt: skip
