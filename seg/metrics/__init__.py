"""How good a segmentation is: by pixels, by borders, by objects, and whether a difference is real."""

from seg.metrics.segmentation import SegmentationMetrics as SegmentationMetrics
