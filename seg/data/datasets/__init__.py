"""Kinds of data sets, each a file."""
