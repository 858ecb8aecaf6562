"""Tells at once when a waiting sandbox says something, ends or dies. One epoll for all of them."""

from __future__ import annotations

import contextlib
import select
import threading

from cloche.sandboxd.warm import Warm

_CHANNEL = select.EPOLLIN | select.EPOLLET | select.EPOLLRDHUP  # edges: what was looked at stays in the channel


class Watch:
    """``add`` and ``remove`` from any thread, ``wait`` in one. ``remove`` before a channel is sent away or closed: a descriptor sent
    to another process would be watched for as long as that one has it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._lock = threading.Lock()
        self._watched: dict[int, Warm] = {}
        self._fds: dict[Warm, tuple[int, int]] = {}

    def add(self, warm: Warm) -> None:
        fds = (warm.channel.fileno(), warm.running.pidfd)
        with self._lock:
            self._fds[warm] = fds
            self._watched.update(dict.fromkeys(fds, warm))
            self._epoll.register(fds[0], _CHANNEL)
            self._epoll.register(fds[1], select.EPOLLIN | select.EPOLLONESHOT)

    def remove(self, warm: Warm) -> None:
        """More than once does no harm."""
        with self._lock:
            for fd in self._fds.pop(warm, ()):
                self._watched.pop(fd, None)
                with contextlib.suppress(OSError):
                    self._epoll.unregister(fd)

    def wait(self, seconds: float) -> set[Warm]:
        """Those of which something is new, within the time."""
        events = self._epoll.poll(seconds)
        with self._lock:
            return {warm for fd, _ in events if (warm := self._watched.get(fd)) is not None}

    def close(self) -> None:
        self._epoll.close()
