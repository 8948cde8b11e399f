"""Which way a metric is better, by its name."""

SMALLER = (
    "loss",
    "hausdorff_95",
    "ece",
    "rand_error",
    "warping_error",
    "split_merge_error",
    "pixel_error",
)
SPREAD = "_sd"  # of the images' own scores: evener is better, but no aim


def smaller_is_better(name: str) -> bool:
    """Of a metric's name without its split: ``loss``, ``loss/dice``, ``hausdorff_95/CLASS``, ``dice_per_image_sd``."""
    score = name.partition("/")[0]
    return score in SMALLER or score.endswith(SPREAD)
