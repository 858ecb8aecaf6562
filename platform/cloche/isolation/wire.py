"""Requests between a client and sandboxd: the guest protocol's strict frames on a Unix socket, descriptors beside them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Any

from cloche_guest.protocol import HEADER, ProtocolError, decode, encode

MAX_REQUEST = 64 << 10  # bytes
MAX_REPLY = 32 << 20  # bytes; a long listing of outputs
_MAX_FDS = 4
_INT = struct.Struct("i")


def send(stream: socket.socket, message: Mapping[str, Any], limit: int, fd: int | None = None) -> None:
    """Send one message, with a descriptor attached to its first byte if there is one."""
    data = memoryview(encode(message, limit))
    if fd is not None:
        data = data[socket.send_fds(stream, [data], [fd]) :]
    if data:
        stream.sendall(data)


def receive(stream: socket.socket, limit: int) -> tuple[dict[str, Any] | None, list[int]]:
    """One message and the descriptors that came with it; (None, []) when the other side is gone. Never reads past the message.

    Raises:
        ProtocolError: malformed or too large.
    """
    fds: list[int] = []
    try:
        head = _exactly(stream, HEADER.size, fds)
        if head is None:
            return None, fds
        (length,) = HEADER.unpack(head)
        if length > limit:
            raise ProtocolError(f"a message of {length} bytes is over the limit of {limit}")
        data = _exactly(stream, length, fds)
        if data is None:
            raise ProtocolError("the connection ended within a message")
        return decode(data), fds
    except BaseException:
        close_all(fds)
        raise


def close_all(fds: list[int]) -> None:
    """Close descriptors that came unasked."""
    for fd in fds:
        socket.close(fd)
    fds.clear()


def _exactly(stream: socket.socket, size: int, fds: list[int]) -> bytes | None:
    """``size`` bytes; None when the stream ended before the first."""
    parts = bytearray()
    while len(parts) < size:
        # Not socket.recv_fds: it drops the flag that closes descriptors on exec.
        room = socket.CMSG_SPACE(_MAX_FDS * _INT.size)
        data, notes, flags, _ = stream.recvmsg(size - len(parts), room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in notes:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(content) - len(content) % _INT.size
                fds.extend(number for (number,) in _INT.iter_unpack(content[:whole]))
        if flags & socket.MSG_CTRUNC:
            raise ProtocolError("too many descriptors")
        if not data:
            if parts:
                raise ProtocolError("the connection ended within a message")
            return None
        parts += data
    return bytes(parts)
