"""Structured logs: one JSON object a line (or text for people), secrets masked, job and request ids attached."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, MutableMapping
from typing import Any

import structlog

from cloche import redact

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def _mask(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: redact.field(name, value) for name, value in event.items()}


def setup(level: str, fmt: str, component: str) -> None:
    """Configure logging of this process; everything goes to stderr."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _mask,
    ]
    last = (
        structlog.processors.JSONRenderer()
        if fmt == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), sort_keys=False)
    )
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(component=component)
    # Its warnings tell of pipelines that an error ended; the error itself is raised and told.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    logging.basicConfig(stream=sys.stderr, level=max(_LEVELS[level], logging.WARNING), format="%(message)s")


@contextlib.contextmanager
def survived(log: Any, event: str, **facts: Any) -> Iterator[None]:
    """What nobody expected ends only what is inside: it is logged with its traceback. For loops that serve all and may not end for one."""
    try:
        yield
    except Exception:
        log.exception(event, **facts)


def get(name: str) -> Any:
    """A logger bound to the module's name."""
    return structlog.get_logger(module=name)
