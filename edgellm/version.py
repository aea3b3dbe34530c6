"""The version of this package; in a file of its own, so that every part may name it without the rest."""

__version__ = "0.1.0"
