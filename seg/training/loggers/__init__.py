"""Loggers of a run: metrics.csv, which is always written, and the trackers chosen in the config.

A tracker is a ``Tracker`` named by a file of conf/logger; Lightning calls it through ``FaultTolerantLogger``.
"""

from seg.runs.metrics_csv import MetricsCSV, read_metrics
from seg.training.loggers.base import Picture, TrackedRun, Tracker

__all__ = ["MetricsCSV", "Picture", "TrackedRun", "Tracker", "read_metrics"]
