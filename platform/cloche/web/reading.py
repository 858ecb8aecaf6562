"""Requests whose body is still coming hold a thread each, for as long as their client likes. This bounds how many, in all and per address.

The server in front of the app limits the time for headers only, so a few slow senders could otherwise hold every thread.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from flask import Flask, current_app, g, request

from cloche.errors import Unavailable

_KEY = "cloche_readers"
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


def register(app: Flask, threads: int) -> None:
    """Half of the threads may be reading bodies, a quarter for one address. Forms are counted from before anything parses them."""
    app.extensions[_KEY] = Readers(max(2, threads // 2), max(2, threads // 4))

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
        address = request.remote_addr or "local"
        current_app.extensions[_KEY].enter(address)
        g.reading_from = address


@contextmanager
def briefly() -> Iterator[None]:
    """Count the current request for the length of the block, in which its whole body is read."""
    address = request.remote_addr or "local"
    readers: Readers = current_app.extensions[_KEY]
    readers.enter(address)
    try:
        yield
    finally:
        readers.leave(address)
