"""Inclusion proofs from the stored tree: a few hundred rows each, however long the trail is."""

from __future__ import annotations

from sqlalchemy import Connection, select

from cloche.audit.merkle import TILE, includes, joined, node_hash, path_of, perfect_parts
from cloche.audit.note import Checkpoint
from cloche.audit.prune import Mark
from cloche.db import tables
from cloche.errors import Unavailable

_leaf, _node = tables.audit_leaf, tables.audit_node
_MOST = 200_000  # roots remembered; a proof of an export needs what the one before it did
_DAMAGED = "the stored tree does not lead to the signed root: run `cloche audit verify`"


class Proofs:
    """Proofs against one checkpoint, on one reading connection. ``mark``: the newest of retention."""

    def __init__(self, connection: Connection, point: Checkpoint, mark: Mark | None) -> None:
        self._connection = connection
        self._point = point
        self._upto = 0 if mark is None else mark.upto
        parts = perfect_parts(0, self._upto)
        self._roots: dict[tuple[int, int], bytes] = {} if mark is None else dict(zip(parts, mark.nodes, strict=True))
        self._kept = dict(self._roots)
        self._loaded: set[tuple[int, int]] = set()

    def path(self, seq: int, leaf: bytes) -> list[str]:
        """The hashes (hex), nearest first, that lead from the leaf to the checkpoint's root.

        Raises:
            Unavailable: the stored tree is not the one that was signed.
        """
        if len(self._roots) > _MOST:
            self._roots, self._loaded = dict(self._kept), set()
        size = self._point.size
        path = [joined([self._root(*part) for part in perfect_parts(*one)]) for one in path_of(seq, size)]
        if not includes(self._point.root, size, seq, leaf, path):
            raise Unavailable(_DAMAGED)
        return [node.hex() for node in path]

    def _root(self, level: int, number: int) -> bytes:
        known = self._roots.get((level, number))
        if known is None:
            known = self._roots[level, number] = self._found(level, number)
        return known

    def _found(self, level: int, number: int) -> bytes:
        start, stop = number << level, number + 1 << level
        if start < self._upto < stop:
            return node_hash(self._root(level - 1, 2 * number), self._root(level - 1, 2 * number + 1))
        self._load(level // TILE * TILE, number >> TILE - level % TILE)
        if (level, number) in self._roots:
            return self._roots[level, number]
        if level == 0:
            raise Unavailable(_DAMAGED)
        # No sealer has stored it yet: it is made of those below
        return node_hash(self._root(level - 1, 2 * number), self._root(level - 1, 2 * number + 1))

    def _load(self, level: int, tile: int) -> None:
        """The up to 256 nodes of one tile, and what they make of the seven levels above."""
        if (level, tile) in self._loaded:
            return
        self._loaded.add((level, tile))
        place = _leaf.c.seq if level == 0 else _node.c.number
        query = select(place, _leaf.c.hash if level == 0 else _node.c.hash)
        if level:
            query = query.where(_node.c.level == level)
        query = query.where(place >= tile << TILE, place < tile + 1 << TILE)
        try:
            found = {number: bytes.fromhex(text) for number, text in self._connection.execute(query)}
        except ValueError:
            raise Unavailable(_DAMAGED) from None
        for above in range(level, level + TILE):
            self._roots.update({(above, number): node for number, node in found.items()} | self._kept)
            pairs = ((number, found.get(number), found.get(number + 1)) for number in found if not number & 1)
            found = {number >> 1: node_hash(one, two) for number, one, two in pairs if one and two}
