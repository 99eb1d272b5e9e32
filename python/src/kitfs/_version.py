"""The version of the package: that of kitfs."""

__version__ = "0.1.0"
