"""``auto`` in a loss's config becomes numbers: the weights that the training split's class shares ask for."""

from typing import Any

import numpy as np

from seg.losses.weighted_sum import weighed

AUTO = "auto"


def balance(node: Any, shares_C: np.ndarray, classes: list[str], overlapping: bool = False) -> Any:
    """A loss's config without terms of weight 0 and with numbers for ``auto``.

    ``class_weights`` become 1 / (C share): all classes weigh the same together, the mean weight is 1 (of
    overlapping labels: 1 / share, divided by its mean). ``pos_weight`` becomes negatives over positives, of
    each label where they overlap.

    Args:
        node: as in conf/loss, plain.
        shares_C: of the training split's pixels in 0..1, those that count.
        classes: their names.
        overlapping: whether they are labels that overlap.

    Raises:
        ValueError: when a class that shall be weighed has no pixels, or pos_weight more than two classes,
            or no term of a sum has a weight.
    """
    if isinstance(node, list):
        return [balance(value, shares_C, classes, overlapping) for value in node]
    if not isinstance(node, dict):
        return node
    if "terms" in node:
        node = node | {"terms": weighed(node["terms"])}
    auto = {name for name, value in node.items() if value == AUTO}
    if auto:
        check_all_occur(shares_C, classes)
    known = {
        name: numbers(name, shares_C, overlapping) if name in auto else value
        for name, value in node.items()
    }
    return {name: balance(value, shares_C, classes, overlapping) for name, value in known.items()}


def numbers(name: str, shares_C: np.ndarray, overlapping: bool) -> float | list[float]:
    """What ``auto`` stands for, to four digits."""
    if name == "pos_weight" and not overlapping:
        if len(shares_C) != 2:
            raise ValueError(
                f"pos_weight is for two classes and these are {len(shares_C)}; take "
                "loss=cross_entropy loss.class_weights=auto"
            )
        return rounded(shares_C[0] / shares_C[1])
    if name == "pos_weight":
        return [rounded((1 - share) / share) for share in shares_C]
    if overlapping:
        return [rounded(weight) for weight in (1 / shares_C) / (1 / shares_C).mean()]
    return [rounded(1 / (len(shares_C) * share)) for share in shares_C]


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def check_all_occur(shares_C: np.ndarray, classes: list[str]) -> None:
    absent = [name for name, share in zip(classes, shares_C, strict=True) if share == 0]
    if absent:
        raise ValueError(
            f"auto needs each class in the training split, and {absent[0]} has no pixel there; give "
            "the weights as numbers, or another split"
        )
