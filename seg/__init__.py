"""seg: experiments in 2-D image segmentation with Lightning and Hydra."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seg.inference.predictor import Predictor
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for news


def load(run: Any, **options: Any) -> "Predictor":
    """A trained run, ready to predict: ``seg.load("outputs/latest").predict(array_or_file).mask``.

    Args:
        run: run folder, checkpoint file, folder of seg.crossval, or a list of runs, which are averaged.
        **options: ``depth``, ``tta``, ``scales``, ``threshold``, ``tile``, ``overlap``, ``batch`` and
            ``accelerator``, as ``seg.inference.predictor.load_predictor`` has them.

    Raises:
        ValueError: naming the run or the option, when it can't be used.
    """
    from seg.inference.predictor import load_predictor  # here: torch takes seconds to import

    return load_predictor(run, **options)
