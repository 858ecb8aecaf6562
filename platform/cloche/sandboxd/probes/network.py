"""What a network namespace holds, seen by a host process: its addresses, its sockets, its settings."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

from cloche.sandboxd import syscalls

_SETTINGS = "/proc/sys/net"
_KINDS = ("tcp", "tcp6", "udp", "udp6", "unix")


@dataclass(frozen=True)
class Network:
    """``sockets``: how many of each kind; ``settings``: name below ``/proc/sys/net`` → value, or what reading it was answered."""

    addresses: frozenset[str]
    sockets: dict[str, int]
    settings: dict[str, str]


def look(pid: int) -> Network:
    """The namespace of this process.

    Raises:
        OSError: it is dead.
    """
    folder = Path(f"/proc/{pid}/net")
    sockets = {kind: len(_text(folder / kind).splitlines()[1:]) for kind in _KINDS}
    found = version_4(_text(folder / "fib_trie")) | version_6(_text(folder / "if_inet6"))
    return Network(found, sockets, settings(pid))


def version_4(trie: str) -> frozenset[str]:
    """The addresses of one's own in a text of ``/proc/net/fib_trie``."""
    lines = [line.split() for line in trie.splitlines()]
    return frozenset(address[1] for address, kind in itertools.pairwise(lines) if kind == ["/32", "host", "LOCAL"])


def version_6(text: str) -> frozenset[str]:
    """Those in a text of ``/proc/net/if_inet6``."""
    return frozenset(str(IPv6Address(bytes.fromhex(line.split()[0]))) for line in text.splitlines())


def settings(pid: int) -> dict[str, str]:
    """Who reads them gets those of his own namespace, so a thread of ours enters it, and ends there."""
    found: dict[str, str] = {}
    failed: list[OSError] = []

    def read() -> None:
        try:
            syscalls.enter_network(pid)
        except OSError as error:
            failed.append(error)
            return
        for folder, _, names in os.walk(_SETTINGS):
            for name in names:
                path = os.path.join(folder, name)
                found[os.path.relpath(path, _SETTINGS)] = _value(path)

    thread = threading.Thread(target=read, name="network")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found


def _value(path: str) -> str:
    try:
        return Path(path).read_bytes().decode("ascii", "replace").strip()
    except OSError as error:  # some can only be written
        return errno.errorcode.get(error.errno or 0, "?")


def _text(path: Path) -> str:
    """Empty where the kernel has not that family."""
    try:
        return path.read_text("ascii", "replace")
    except FileNotFoundError:
        return ""
