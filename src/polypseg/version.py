"""The version, of which there is this one place."""

__version__ = "0.1.0"
