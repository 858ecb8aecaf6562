"""What a plugin's code imports: ``from cloche_guest import Job, hookimpl``. Standard library and pluggy only."""

from cloche_guest.hookspecs import hookimpl
from cloche_guest.job import Job

__all__ = ["Job", "hookimpl"]
