"""Version of the package, and the name of its distribution."""

__version__ = "0.1.0"
DISTRIBUTION = "seg-experiments"
