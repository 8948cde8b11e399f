"""Errors that a user can correct; a command reports each in one line with exit code 2."""


class RunError(ValueError):
    """A run or checkpoint that is missing, damaged, unsafe or not written by this package."""
