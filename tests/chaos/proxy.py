"""A TCP proxy that can make a network bad: late, silent, or broken off in the middle of a command."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

_CHUNK = 1 << 14
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends a reset


class FaultProxy:
    """Listens on a port of 127.0.0.1 and passes everything on to ``target``. ``delay_s`` counts each way; ``cut`` lets nothing through and
    breaks nothing off, as a network that lost a cable does."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.delay_s = 0.0
        self.cut = threading.Event()
        self._rng = random.Random(7)
        self._reset_share = 0.0
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._closed = False
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def reset_some(self, share: float) -> None:
        """Break off that share of the chunks half-way from now on, with a reset."""
        self._reset_share = share

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for pair in list(self._pairs):
            _reset(*pair)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target, 5)
        except OSError:
            _reset(client)
            return
        pair = (client, server)
        self._pairs.add(pair)
        try:
            self._pass_on(client, server)
        except OSError:
            pass  # either side has gone; so does the other
        finally:
            self._pairs.discard(pair)
            _reset(client, server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        while not self._closed:
            ready, _, _ = select.select([client, server], [], [], 0.2)
            for source in ready:
                while self.cut.is_set() and not self._closed:
                    time.sleep(0.05)
                data = source.recv(_CHUNK)
                if not data:
                    return
                if self.delay_s:
                    time.sleep(self.delay_s)
                if self._rng.random() < self._reset_share:
                    other[source].sendall(data[: len(data) // 2])
                    return
                other[source].sendall(data)


def _reset(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end.close()


@contextlib.contextmanager
def proxied(target: tuple[str, int]) -> Iterator[FaultProxy]:
    proxy = FaultProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
