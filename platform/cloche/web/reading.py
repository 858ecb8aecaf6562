"""Requests whose body is still coming hold a thread each, for as long as their client likes. This bounds how many, in all and per address.

The server in front of the app limits the time for headers only, so a few slow senders could otherwise hold every thread;
:mod:`cloche.web.stalls` ends those that are too slow.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from flask import Flask, current_app, g, request

from cloche.errors import Unavailable
from cloche.server_settings import ServerSettings
from cloche.web.edge import client_key

_KEY = "cloche_readers"
_LARGE = "cloche_large"
_LARGE_AT_ONCE = 2  # each takes some hundred megabytes while it is answered, and a processor: more would only take more
_LARGE_PATIENCE_S = 10.0
_FOR_OTHERS = 4  # threads
_PATIENCE_S = 0.25
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


class Readers:
    """At most ``total`` bodies read at once, ``per_address`` of them from one address."""

    def __init__(self, total: int, per_address: int) -> None:
        self._total = total
        self._per_address = per_address
        self._counts: Counter[str] = Counter()
        self._changed = threading.Condition()

    def enter(self, address: str) -> None:
        """
        Raises:
            Unavailable: too many are being read; the body was not touched.
        """
        with self._changed:
            # A body that has arrived is read in no time: whoever waits longer than this stands behind slow senders.
            if not self._changed.wait_for(lambda: self._room(address), _PATIENCE_S):
                raise Unavailable(
                    "Too many request bodies are on their way at once. Try again in a moment.", retry_after=1
                )
            self._counts[address] += 1

    def leave(self, address: str) -> None:
        with self._changed:
            self._counts[address] -= 1
            if self._counts[address] <= 0:
                del self._counts[address]
            self._changed.notify_all()

    def _room(self, address: str) -> bool:
        return self._counts.total() < self._total and self._counts[address] < self._per_address


def places(settings: ServerSettings) -> Readers:
    """For one way, in or out, half of the threads that are not for long polls and live streams, but for a few that are for all else."""
    half = max(2, (settings.threads - settings.max_waits - _FOR_OTHERS) // 2)
    return Readers(half, max(2, half // 2))


def register(app: Flask, settings: ServerSettings) -> None:
    """Forms are counted from before anything parses them."""
    app.extensions[_KEY] = places(settings)
    app.extensions[_LARGE] = threading.BoundedSemaphore(_LARGE_AT_ONCE)

    def forms() -> None:
        if request.mimetype in _FORMS:
            hold()

    def release(_error: BaseException | None) -> None:
        address = g.pop("reading_from", None)
        if address is not None:
            app.extensions[_KEY].leave(address)

    app.before_request(forms)
    app.teardown_request(release)


def hold() -> None:
    """Count the current request until it ends: its body is read bit by bit.

    Raises:
        Unavailable: see :meth:`Readers.enter`.
    """
    if "reading_from" not in g:
        address = client_key()
        current_app.extensions[_KEY].enter(address)
        g.reading_from = address


@contextmanager
def briefly() -> Iterator[None]:
    """Count the current request for the length of the block, in which its whole body is read."""
    address = client_key()
    readers: Readers = current_app.extensions[_KEY]
    readers.enter(address)
    try:
        yield
    finally:
        readers.leave(address)


@contextmanager
def large() -> Iterator[None]:
    """For the length of the block, in which a large body is parsed and answered, one of the few that may be at once.

    Raises:
        Unavailable: others took too long; nothing was done.
    """
    free: threading.BoundedSemaphore = current_app.extensions[_LARGE]
    if not free.acquire(timeout=_LARGE_PATIENCE_S):
        raise Unavailable("Other large requests are being answered. Try again in a moment.", retry_after=2)
    try:
        yield
    finally:
        free.release()
