"""The mark that retention leaves: a signed note with what is needed to verify everything after it.

::

    cloche.audit/0123456789abcdef/prune
    prune 2                                       marks are numbered from 0
    upto 1204                                     leaves before this one were deleted, with their events
    batch 4                                       the first batch that was kept
    previous 9f86d0…                              SHA-256 of the whole note of the batch before it
    until 1700000000123                           ms: when that batch was closed; younger events are all there
    at 1710000000123                              ms: when this was done
    node 3f79bb…                                  roots of the deleted leaves' perfect subtrees, largest first, hex

    — cloche.audit/0123456789abcdef Az3grl…=
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cloche.audit.merkle import Frontier
from cloche.audit.note import BadNote, PublicKey, open_note

_BODY = re.compile(
    r"(?P<name>[A-Za-z0-9._/-]{1,128})/prune\nprune (?P<number>0|[1-9][0-9]{0,17})\nupto (?P<upto>[1-9][0-9]{0,17})\n"
    r"batch (?P<batch>[1-9][0-9]{0,17})\nprevious (?P<previous>[0-9a-f]{64})\nuntil (?P<until>[0-9]{1,18})\nat (?P<at>[0-9]{1,18})\n"
    r"(?P<nodes>(?:node [0-9a-f]{64}\n){1,64})"
)


@dataclass(frozen=True)
class Mark:
    """What one mark says; times in ms, ``previous`` 64 hex digits."""

    origin: str
    number: int
    upto: int
    batch: int
    previous: str
    until: int
    at: int
    nodes: tuple[bytes, ...]

    def body(self) -> str:
        nodes = "".join(f"node {node.hex()}\n" for node in self.nodes)
        first = f"{self.origin}/prune\nprune {self.number}\nupto {self.upto}\nbatch {self.batch}\nprevious {self.previous}\n"
        return f"{first}until {self.until}\nat {self.at}\n{nodes}"

    def frontier(self) -> Frontier:
        return Frontier.at(self.upto, self.nodes)


def open_mark(text: str, key: PublicKey) -> Mark:
    """The mark a note holds, signed by the key.

    Raises:
        BadNote: malformed, or not signed by it.
    """
    body, name = open_note(text, key), key.name
    match = _BODY.fullmatch(body)
    if match is None or match["name"] != name:
        raise BadNote("not a prune mark of this log")
    nodes = tuple(bytes.fromhex(line[5:]) for line in match["nodes"].splitlines())
    number, upto, batch = (int(match[group]) for group in ("number", "upto", "batch"))
    mark = Mark(name, number, upto, batch, match["previous"], int(match["until"]), int(match["at"]), nodes)
    if mark.upto.bit_count() != len(nodes):
        raise BadNote("a prune mark whose hashes do not make its size")
    return mark
