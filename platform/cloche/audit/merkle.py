"""The Merkle tree of RFC 6962 and RFC 9162: leaves hashed after 0x00, nodes after 0x01, so that neither passes for the other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

TILE = 8  # levels between the nodes that are stored
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """A tree being appended to: the roots of its perfect subtrees, largest first. Memory is one hash per bit of ``size``."""

    def __init__(self) -> None:
        self.size = 0
        self._nodes: list[bytes] = []

    @classmethod
    def at(cls, size: int, nodes: Sequence[bytes]) -> Frontier:
        """The tree of ``size`` leaves of which only these roots are left.

        Raises:
            ValueError: so many perfect subtrees do not make that size.
        """
        if size < 0 or len(nodes) != size.bit_count() or any(len(node) != 32 for node in nodes):
            raise ValueError(f"{len(nodes)} hashes are not the beginning of a tree of {size}")
        made = cls()
        made.size, made._nodes = size, list(nodes)
        return made

    @property
    def nodes(self) -> list[bytes]:
        return list(self._nodes)

    def append(self, leaf: bytes, completed: list[tuple[int, int, bytes]] | None = None) -> None:
        """Add one leaf hash (32 bytes). Perfect subtrees of 2^8, 2^16 … leaves that it completes are added to ``completed``, as level, number
        and root."""
        rest, level = self.size, 0
        while rest & 1:
            leaf = node_hash(self._nodes.pop(), leaf)
            rest >>= 1
            level += 1
            if completed is not None and level % TILE == 0:
                completed.append((level, rest, leaf))
        self._nodes.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The root over all leaves so far; of an empty tree, SHA-256 of nothing."""
        return joined(self._nodes)

    def copy(self) -> Frontier:
        twin = Frontier()
        twin.size, twin._nodes = self.size, list(self._nodes)
        return twin


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes that lead from leaf ``index`` to the root, nearest first.

    Raises:
        ValueError: no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise ValueError(f"leaf {index} is not in a tree of {len(leaves)}")
    if len(leaves) == 1:
        return []
    split = _split(len(leaves))
    if index < split:
        return [*inclusion_proof(leaves[:split], index), root_of(leaves[split:])]
    return [*inclusion_proof(leaves[split:], index - split), root_of(leaves[:split])]


def path_of(index: int, size: int) -> list[tuple[int, int]]:
    """The leaves below each hash of :func:`inclusion_proof`, as ``(start, stop)``, nearest first.

    Raises:
        ValueError: no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    ranges, start, stop = [], 0, size
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            ranges.append((middle, stop))
            stop = middle
        else:
            ranges.append((start, middle))
            start = middle
    return ranges[::-1]


def perfect_parts(start: int, stop: int) -> list[tuple[int, int]]:
    """The perfect subtrees, largest first, that the leaves from ``start`` (a multiple of the largest) to ``stop`` make, as
    ``(level, number)``: leaves ``number << level`` to ``(number + 1 << level) - 1``."""
    parts = []
    while start < stop:
        level = (stop - start).bit_length() - 1
        parts.append((level, start >> level))
        start += 1 << level
    return parts


def joined(roots: Sequence[bytes]) -> bytes:
    """The root over perfect subtrees, largest first; of none, SHA-256 of nothing."""
    if not roots:
        return EMPTY_ROOT
    root = roots[-1]
    for node in reversed(roots[:-1]):
        root = node_hash(node, root)
    return root


def includes(root: bytes, size: int, index: int, leaf: bytes, proof: Sequence[bytes]) -> bool:
    """Whether ``proof`` shows ``leaf`` at ``index`` of the tree of ``size`` leaves with this root (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    node, last = index, size - 1
    for sibling in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            leaf = node_hash(sibling, leaf)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            leaf = node_hash(leaf, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and leaf == root


def consistency_proof(leaves: Sequence[bytes], old_size: int) -> list[bytes]:
    """The hashes that show the tree of the first ``old_size`` leaves to be a beginning of the whole.

    Raises:
        ValueError: ``old_size`` is not between 1 and the number of leaves.
    """
    if not 1 <= old_size <= len(leaves):
        raise ValueError(f"a tree of {len(leaves)} has no beginning of {old_size}")
    return _subproof(leaves, old_size, whole=True)


def _subproof(leaves: Sequence[bytes], old_size: int, *, whole: bool) -> list[bytes]:
    if old_size == len(leaves):
        return [] if whole else [root_of(leaves)]
    split = _split(len(leaves))
    if old_size <= split:
        return [*_subproof(leaves[:split], old_size, whole=whole), root_of(leaves[split:])]
    return [*_subproof(leaves[split:], old_size - split, whole=False), root_of(leaves[:split])]


def extends(old_root: bytes, old_size: int, new_root: bytes, new_size: int, proof: Sequence[bytes]) -> bool:
    """Whether ``proof`` shows that the new tree begins with the old one (RFC 9162, 2.1.4.2). ``old_size`` is at least 1."""
    if not 1 <= old_size <= new_size:
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)  # a perfect old tree is itself the first node
    if not path:
        return False
    node, last = old_size - 1, new_size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root


def _split(size: int) -> int:
    """The largest power of two below ``size`` (which is at least 2)."""
    return 1 << ((size - 1).bit_length() - 1)
