"""Comparison of many runs: read, group, rank and test them, and render a page."""
