"""Loggers of a run: metrics.csv, which is always written, and the trackers chosen in the config.

A tracker is a ``Tracker`` named by a file of conf/logger; Lightning calls it through ``FaultTolerantLogger``.
"""
