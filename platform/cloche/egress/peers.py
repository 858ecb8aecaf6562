"""Who may connect to a sandbox's socket: processes of its user, or processes in its cgroup.

Under gVisor it is gVisor's file server that connects for the job, and that is root as every other sandbox's is: there the cgroup tells whose it is.
A process in it cannot leave it, and as long as its number is known to us another one with the same number would have to be in there too.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Mapping
from typing import Any

from cloche.isolation.egress import BadMessage, cgroup_of

_CREDENTIALS = struct.Struct("3i")
_GROUP = re.compile(r"(?:/[A-Za-z0-9._:-]{1,128}){3,16}")

Peers = frozenset[int] | str
"""User ids, or the path of a cgroup."""


def admits(peers: Peers, stream: socket.socket) -> bool:
    pid, uid, _ = _CREDENTIALS.unpack(stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return cgroup_of(pid) == peers if isinstance(peers, str) else uid in peers


def parse_peers(request: Mapping[str, Any], sandbox: str) -> Peers:
    """From a request that has either ``peers`` or ``group``.

    Raises:
        BadMessage: malformed; a user is root; a cgroup is not the sandbox's own.
    """
    if "group" in request:
        group = request["group"]
        if not isinstance(group, str) or not _GROUP.fullmatch(group) or not group.endswith(f"/{sandbox}"):
            raise BadMessage("group is the path of the sandbox's own cgroup")
        return group
    value = request["peers"]
    if not isinstance(value, list) or not 1 <= len(value) <= 128:
        raise BadMessage("peers is a list of 1 to 128 user ids")
    if not all(isinstance(uid, int) and not isinstance(uid, bool) and 0 < uid < 1 << 32 for uid in value):
        raise BadMessage("a peer is a user id, and not root's")
    return frozenset(value)
