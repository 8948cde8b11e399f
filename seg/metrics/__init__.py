"""Metrics of pixels, borders, objects and probabilities, with intervals and significance tests."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from seg.metrics.segmentation import SegmentationMetrics

__all__ = ["SegmentationMetrics"]
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__, submod_attrs={"segmentation": ["SegmentationMetrics"]}
)
