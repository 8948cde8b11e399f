"""Replace ``auto`` in a loss's config by weights computed from the class shares of the training split."""

from typing import Any

import numpy as np

from seg.losses.weighted_sum import active_terms

AUTO_WEIGHTS = "auto"


def fill_auto_weights(
    node: Any, shares_C: np.ndarray, classes: list[str], overlapping: bool = False
) -> Any:
    """Return a loss's config without terms of weight 0 and with numbers in place of ``auto``.

    ``class_weights`` become 1 / (C share), so that every class contributes the same and the mean weight is
    1; for overlapping labels 1 / share, divided by its mean. ``pos_weight`` becomes negatives / positives,
    for each label if labels overlap.

    Args:
        node: config as in conf/loss, of plain dicts and lists. It is not changed.
        shares_C: share of the training split's valid pixels in 0..1, of each class.
        classes: names of the classes.
        overlapping: whether the classes are labels that overlap.

    Raises:
        ValueError: if a class that needs a weight has no pixels, if pos_weight is used with more than two
            classes, or if no term of a sum has a weight.
    """
    if isinstance(node, list):
        return [fill_auto_weights(value, shares_C, classes, overlapping) for value in node]
    if not isinstance(node, dict):
        return node
    # A sum keeps the terms that have a weight.
    if "terms" in node:
        node = node | {"terms": active_terms(node["terms"])}
    # Replace auto in this node, then in the nodes below.
    automatic = {name for name, value in node.items() if value == AUTO_WEIGHTS}
    if automatic:
        check_classes_occur(shares_C, classes)
    known = {
        name: auto_weights(name, shares_C, overlapping) if name in automatic else value
        for name, value in node.items()
    }
    return {
        name: fill_auto_weights(value, shares_C, classes, overlapping)
        for name, value in known.items()
    }


def auto_weights(name: str, shares_C: np.ndarray, overlapping: bool) -> float | list[float]:
    """Return the weights of the argument called ``name``, rounded to four digits."""
    # Two exclusive classes: the ratio of negative to positive pixels
    if name == "pos_weight" and not overlapping:
        if len(shares_C) != 2:
            raise ValueError(
                f"pos_weight is for two classes and the data has {len(shares_C)}; use "
                "loss=cross_entropy loss.class_weights=auto"
            )
        return round_weight(shares_C[0] / shares_C[1])
    # Overlapping labels: the same ratio for each label
    if name == "pos_weight":
        return [round_weight((1 - share) / share) for share in shares_C]
    # Class weights of overlapping labels: inverse shares, scaled to a mean of 1
    if overlapping:
        return [round_weight(weight) for weight in (1 / shares_C) / (1 / shares_C).mean()]
    # Exclusive classes: balanced weights, 1 / (K * share)
    return [round_weight(1 / (len(shares_C) * share)) for share in shares_C]


def round_weight(value: float) -> float:
    """Return the value with four significant digits."""
    return float(f"{value:.4g}")


def check_classes_occur(shares_C: np.ndarray, classes: list[str]) -> None:
    """Raise ValueError if a class has no pixels."""
    absent = [name for name, share in zip(classes, shares_C, strict=True) if share == 0]
    if absent:
        raise ValueError(
            f"auto needs every class in the training split, and {absent[0]} has no pixel there; give "
            "the weights as numbers, or change the split"
        )
