"""Where a run's numbers and pictures go: metrics.csv, always, and the loggers that were chosen.

A logger is a ``Tracker``, named by a file of conf/logger; Lightning reaches it through ``Guarded``.
"""

from seg.runs.metrics_csv import MetricsCSV, read_metrics
from seg.training.loggers.base import Picture, TrackedRun, Tracker
from seg.training.loggers.guarded import Guarded, finish, start, without_keys

__all__ = [
    "Guarded", "MetricsCSV", "Picture", "TrackedRun", "Tracker", "finish", "read_metrics", "start", "without_keys",
]  # fmt: skip
