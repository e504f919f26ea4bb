"""The version, of which there is this one place."""

__version__ = "0.2.0"
