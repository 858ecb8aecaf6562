"""Cloche: a sandboxed plugin execution platform."""

__version__ = "0.1.0"
