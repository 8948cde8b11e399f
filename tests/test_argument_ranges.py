"""A range in an annotation holds for Python users: what is in it passes unchanged, the rest is an error that names it."""

import math
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from seg.ranges import check_ranges

Side = Annotated[int, Field(ge=1, le=12)]


class Layer:
    @check_ranges
    def __init__(
        self,
        side: Side,
        share: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        output: Side | Literal["deepest", "average"] = "deepest",
        weights: list[Annotated[float, Field(ge=0)]] | Annotated[float, Field(gt=0)] | None = None,
        stride: Literal[8, 16] = 8,
        free: Any = None,
    ) -> None:
        self.values = side, share, output, weights, stride, free


@pytest.mark.parametrize(
    "arguments",
    [
        {"side": 1}, {"side": 12}, {"side": 3, "share": 0}, {"side": 3, "output": 2}, {"side": 3, "output": "average"},
        {"side": 3, "weights": [1.0, 2.0]}, {"side": 3, "weights": 0.5}, {"side": 3, "weights": None},
        {"side": 3, "stride": 16, "free": -1},
    ],
)  # fmt: skip
def test_what_is_in_range_arrives_unchanged(arguments):
    values = {"share": 0.0, "output": "deepest", "weights": None, "stride": 8, "free": None}
    assert Layer(**arguments).values == tuple(({"side": 0} | values | arguments).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"side": 0}, "side is 0; a whole number from 1 to 12 is needed"),
        ({"side": 13}, "side is 13; a whole number from 1 to 12 is needed"),
        ({"side": 2.5}, "side is 2.5; a whole number from 1 to 12 is needed"),
        ({"side": None}, "side is None; a whole number from 1 to 12 is needed"),
        ({"side": 3, "share": 1}, "share is 1; a number from 0 to below 1 is needed"),
        ({"side": 3, "share": math.nan}, "share is nan; a number from 0 to below 1 is needed"),
        ({"side": 3, "output": 0}, "output is 0; one of deepest, average or a whole number from 1 to 12 is needed"),
        ({"side": 3, "output": "last"}, "output is last; one of deepest, average or"),
        ({"side": 3, "weights": 0.0}, "weights is 0.0; .*a number above 0 is needed"),
        ({"side": 3, "stride": 4}, "stride is 4; one of 8, 16 is needed"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_named_with_its_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Layer(**arguments)


def test_positions_count_like_names():
    with pytest.raises(ValueError, match="share is 2"):
        Layer(3, 2)
    with pytest.raises(TypeError, match="missing a required argument: 'side'"):
        Layer()
