"""Metrics of pixels, borders, objects and probabilities, with intervals and significance tests."""

from seg.metrics.segmentation import SegmentationMetrics as SegmentationMetrics
