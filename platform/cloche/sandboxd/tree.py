"""A small file tree in memory, written as a tar that is the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

FIXED_TIME = 1_577_836_800  # 2020-01-01T00:00:00Z, so that the same contents give the same image id on every day


@dataclass(frozen=True)
class Node:
    """A regular file (``data`` or, read late, ``source``), a symbolic link (``target``) or a folder (none of them)."""

    mode: int = 0o755
    data: bytes | None = None
    source: Path | None = None
    target: str | None = None

    def read(self) -> bytes:
        if self.source is not None:
            return self.source.read_bytes()
        return self.data or b""

    @property
    def is_file(self) -> bool:
        return self.source is not None or self.data is not None


@dataclass
class Tree:
    """Absolute POSIX path without the leading slash → node. Missing parents are added when it is written."""

    nodes: dict[str, Node] = field(default_factory=dict)

    def folder(self, path: str, mode: int = 0o755) -> None:
        self.nodes[path.strip("/")] = Node(mode=mode)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self.nodes[path.strip("/")] = Node(mode=mode, data=data)

    def copy(self, path: str, source: Path, mode: int = 0o644) -> None:
        self.nodes[path.strip("/")] = Node(mode=mode, source=source)

    def link(self, path: str, target: str) -> None:
        self.nodes[path.strip("/")] = Node(target=target)

    def digest(self) -> str:
        """SHA-256 over every path, kind, mode and content."""
        total = hashlib.sha256()
        for path, node in sorted(self.nodes.items()):
            content = hashlib.sha256(node.read()).hexdigest() if node.is_file else node.target or "folder"
            total.update(f"{path}\0{node.mode:o}\0{content}\n".encode())
        return total.hexdigest()

    def write(self, out: IO[bytes], prefix: str = "") -> None:
        """Write all of it as a tar: sorted, owned by root, with one fixed time."""
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for path, node in sorted(self.with_parents().items()):
                add(tar, prefix + path, node)

    def with_parents(self) -> Mapping[str, Node]:
        """Every node and the folders they lie in, by path."""
        found = dict(self.nodes)
        for path in self.nodes:
            parts = path.split("/")[:-1]
            for depth in range(1, len(parts) + 1):
                found.setdefault("/".join(parts[:depth]), Node())
        return found


def add(tar: tarfile.TarFile, path: str, node: Node) -> None:
    """Append one node with the fixed time and owner."""
    entry = tarfile.TarInfo(path)
    entry.mtime, entry.mode = FIXED_TIME, node.mode
    if node.target is not None:
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, node.target, 0o777
        tar.addfile(entry)
    elif node.is_file:
        data = node.read()
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    else:
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
