"""Checks of a data set, as seg.check reports them."""
