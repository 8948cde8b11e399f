"""Direction of a metric by its name: whether smaller values are better."""

SMALLER_IS_BETTER = (
    "loss",
    "hausdorff_95",
    "hausdorff_95_um",
    "surface_distance",
    "surface_distance_um",
    "ece",
    "rand_error",
    "warping_error",
    "split_merge_error",
    "pixel_error",
)
SPREAD_SUFFIX = "_sd"  # standard deviation over images: smaller is better, but nothing to optimise


def smaller_is_better(name: str) -> bool:
    """Return whether smaller is better; the name is without split: ``loss/dice``, ``hausdorff_95/CLASS``."""
    score = name.partition("/")[0]
    return score in SMALLER_IS_BETTER or score.endswith(SPREAD_SUFFIX)
