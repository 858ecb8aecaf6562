"""Short messages between sandboxd and our own processes in a container of level ``namespace``, descriptors beside them.

Sockets of whole messages (SOCK_SEQPACKET), one JSON object each. No job's data ever travels here.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

MAX_MESSAGE = 4_096  # bytes
_MAX_FDS = 4
_INT = struct.Struct("i")


def send(stream: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    data = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(data) > MAX_MESSAGE:
        raise ValueError("the message is too long")
    if fds:
        socket.send_fds(stream, [data], list(fds))
    else:
        stream.send(data)


def receive(stream: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message, and the descriptors that came with it.

    Raises:
        EOFError: the other side is gone.
        ValueError: malformed.
    """
    data, notes, flags, _ = stream.recvmsg(
        MAX_MESSAGE, socket.CMSG_SPACE(_MAX_FDS * _INT.size), socket.MSG_CMSG_CLOEXEC
    )
    fds = [
        number
        for level, kind, content in notes
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (number,) in _INT.iter_unpack(content[: len(content) - len(content) % _INT.size])
    ]
    try:
        if not data:
            raise EOFError
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            raise ValueError("a message was cut off")
        try:
            message = json.loads(data)
        except RecursionError:
            raise ValueError("a message is nested too deeply") from None
        if not isinstance(message, dict):
            raise ValueError("a message is an object")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return message, fds
