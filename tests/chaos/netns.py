"""A network namespace for one process, with a cable to the host that can be cut: what is sent is lost, and nobody is told."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_BENCHMARKS = (198, 18)  # 198.18.0.0/15 is nobody's: it is set aside for tests of networks (RFC 2544)


@dataclass(frozen=True)
class Link:
    """``here``: the host's address as the inside sees it; ``network``: both ends. ``cut`` and ``mend`` in turns."""

    name: str
    here: str
    network: str
    _outer: str

    @property
    def inside(self) -> tuple[str, ...]:
        """The words before a command that make it run there. Nothing but its network is another: mounts and processes are the host's."""
        return ("nsenter", f"--net=/run/netns/{self.name}", "--")

    def cut(self) -> None:
        for way in self._ways:
            _run("iptables", "-w", "-I", *way)

    def mend(self) -> None:
        for way in self._ways:
            _run("iptables", "-w", "-D", *way)

    @property
    def _ways(self) -> tuple[tuple[str, ...], ...]:
        return ("INPUT", "-i", self._outer, "-j", "DROP"), ("OUTPUT", "-o", self._outer, "-j", "DROP")


@contextmanager
def linked() -> Iterator[Link]:
    """The namespace and its link; both are gone in the end, with whatever rules a cut left."""
    number = os.getpid() % (1 << 14) * 4  # a /30 for each process that might run this at the same time
    base = (*_BENCHMARKS, number >> 8)
    name, outer, inner = f"chaos{os.getpid()}", f"cho{os.getpid()}", f"chi{os.getpid()}"
    here, there, network = ("{}.{}.{}.{}".format(*base, (number & 255) + last) for last in (1, 2, 0))
    link = Link(name, here, f"{network}/30", outer)
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        _run("ip", "address", "add", f"{here}/30", "dev", outer)
        _run("ip", "link", "set", outer, "up")
        _run(*link.inside, "ip", "address", "add", f"{there}/30", "dev", inner)
        _run(*link.inside, "ip", "link", "set", inner, "up")
        _run(*link.inside, "ip", "link", "set", "lo", "up")
        yield link
    finally:
        for way in link._ways:
            while subprocess.run(["iptables", "-w", "-C", *way], capture_output=True, check=False).returncode == 0:
                _run("iptables", "-w", "-D", *way)
        _run("ip", "netns", "delete", name)  # its end of the cable goes with it, and so does ours
        subprocess.run(["ip", "link", "delete", outer], capture_output=True, check=False)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
