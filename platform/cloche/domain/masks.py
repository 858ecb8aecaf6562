"""Finding a job's secrets in what it says: logs, progress, errors, results. Pure.

Every spelling of every value is cut into pieces of at most :data:`PIECE` characters; a text is searched once, whatever the number of pieces, by
their first :data:`LEAST` characters. What a stream may still complete to a piece is held back until more comes, or it ends. Prefers to mask
too much. A value that a plugin takes apart, turns round or encrypts is not found: masking helps the careless, it holds back nobody who means it.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus

from cloche.errors import JobFailure
from cloche.redact import MASK

LEAST = 6  # characters: what is shorter would be found in ordinary words, and is not masked
PIECE = 128  # characters: what is held back of a stream is less
_LINE = 8  # characters of a line of a longer value, such as a key in PEM, that is looked for by itself
_LINES = 1_000
_MANY_SPELLINGS = 2_048  # characters: of longer values the likely spellings alone are looked for
_BUCKET = 64  # pieces that begin alike; where there are more, their beginning is masked wherever it stands
F = TypeVar("F", bound=JobFailure)


class Masks:
    """The secrets of one attempt. Used by one thread. Without values everything comes out as it went in, at once."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        pieces = {piece for value in values for piece in _pieces(value)}
        self._index: dict[str, tuple[str, ...]] = {}
        for piece in sorted(pieces, key=len, reverse=True):
            head = piece[:LEAST]
            self._index[head] = (*self._index.get(head, ()), piece)
        for head, alike in self._index.items():
            if len(alike) > _BUCKET:
                self._index[head] = (head,)
        self._starts = {head[:length] for head in self._index for length in range(1, LEAST)}
        self._tails: dict[
            str, tuple[str, int]
        ] = {}  # by stream: what is held back, and how much of its beginning is known to be a secret

    def __bool__(self) -> bool:
        return bool(self._index)

    def stream(self, name: str, text: str) -> str:
        """The next part of a stream, masked; less than :data:`PIECE` characters of its end may come with the next."""
        if not self._index:
            return text
        tail, covered = self._tails.pop(name, ("", 0))
        text = tail + text
        spans, hold = self._spans(text, covered)
        self._tails[name] = (text[hold:], max((end - hold for _, end in spans if end > hold), default=0))
        return _masked(text, spans, hold)

    def rest(self) -> list[tuple[str, str]]:
        """What was held back of each stream, masked where it is a secret's beginning. After this every stream is at its start."""
        return [(name, held) for name in list(self._tails) if (held := self.end(name))]

    def end(self, name: str) -> str:
        """What was held back of one stream that ends here, or was cut, as :meth:`rest` gives it."""
        tail, covered = self._tails.pop(name, ("", 0))
        return self._ended(tail, covered) if tail else ""

    def text(self, text: str) -> str:
        """A whole text, masked. Its end may be where somebody cut a secret."""
        return self._ended(text, 0) if self._index else text

    def cut(self, text: str) -> str:
        """A text whose beginning somebody cut off: as much of it is masked as the end of a secret could be."""
        return self._ended(text, PIECE - 1) if self._index else text

    def value(self, item: Any) -> Any:
        """A copy of JSON data with every text masked, names and numbers of as many digits too."""
        if not self._index:
            return item
        if isinstance(item, str):
            return self.text(item)
        if isinstance(item, Mapping):
            return {self.text(str(name)): self.value(part) for name, part in item.items()}
        if isinstance(item, (list, tuple)):
            return [self.value(part) for part in item]
        if isinstance(item, (int, float)) and not isinstance(item, bool):
            shown = json.dumps(item)
            return item if self.text(shown) == shown else MASK
        return item

    def failure(self, failure: F) -> F:
        if not self._index:
            return failure
        details = {name: self.text(said) if isinstance(said, str) else said for name, said in failure.details.items()}
        return type(failure)(failure.reason, self.text(failure.message), details)

    def _ended(self, text: str, covered: int) -> str:
        spans, hold = self._spans(text, covered)
        if len(text) - hold >= LEAST:
            spans = sorted([*spans, (hold, len(text))])
        return _masked(text, spans, len(text))

    def _spans(self, text: str, covered: int) -> tuple[list[tuple[int, int]], int]:
        """Where pieces are, in order of their beginnings, and from where on the text may be one that is not complete."""
        spans = [(0, covered)] if covered else []
        hold, size, index = len(text), len(text), self._index
        for at in [at for at in range(size - LEAST + 1) if text[at : at + LEAST] in index]:
            for piece in index[text[at : at + LEAST]]:
                if text.startswith(piece, at):
                    spans.append((at, at + len(piece)))
                    break  # the longest that is whole covers the others
                if at + len(piece) > size and at < hold and piece.startswith(text[at:]):
                    hold = at
        for at in range(max(0, size - LEAST + 1), min(size, hold)):
            if text[at:] in self._starts:
                hold = at
                break
        return spans, hold


def _masked(text: str, spans: Iterable[tuple[int, int]], end: int) -> str:
    """``text[:end]`` with what the spans cover replaced; spans that touch become one mask."""
    parts: list[str] = []
    at, masking = 0, False
    for begin, until in spans:
        until = min(until, end)
        if until <= max(at, begin):
            continue
        if begin > at:
            parts.append(text[at:begin])
            masking = False
        if not masking:
            parts.append(MASK)
            masking = True
        at = until
    parts.append(text[at:end])
    return "".join(parts)


def _pieces(value: str) -> Iterator[str]:
    whole = value.strip()
    for spelling in _spellings(whole):
        yield from _cut(spelling)
    lines = [line.strip() for line in whole.splitlines()]
    if 1 < len(lines) <= _LINES:
        for line in lines:
            if len(line) >= _LINE:
                yield from _cut(line)


def _cut(text: str) -> Iterator[str]:
    """Pieces that together cover the text; none of what is too short."""
    if len(text) <= PIECE:
        if len(text) >= LEAST:
            yield text
        return
    for at in range(0, len(text) - PIECE, PIECE):
        yield text[at : at + PIECE]
    yield text[-PIECE:]


def _spellings(value: str) -> set[str]:
    """The value as JSON, Python, URLs, HTML, base64 and hexadecimal digits write it."""
    if len(value) < LEAST:
        return set()
    raw = value.encode("utf-8")
    found = {value, *_base64(raw)}
    found |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    if len(value) <= _MANY_SPELLINGS:
        urls = {quote(value), quote(value, safe=""), quote_plus(value)}
        found |= urls | {_lower(url) for url in urls}
        found |= {repr(value)[1:-1], html.escape(value), html.escape(value, quote=False)}
        found |= {raw.hex(), raw.hex().upper()}
    return {spelling for spelling in found if len(spelling) >= LEAST}


def _base64(raw: bytes) -> Iterator[str]:
    """At each of the three offsets that it can have in a longer text; without the letters that its neighbours change."""
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + raw).decode("ascii")
        # A letter has six bits: those that hold bits of what stands before or after are left out.
        first = (offset * 8 + 5) // 6
        last = (offset + len(raw)) * 8 // 6
        text = encoded[first:last]
        yield text
        yield text.replace("+", "-").replace("/", "_")


def _lower(url: str) -> str:
    """``%2F`` as ``%2f``."""
    parts = url.split("%")
    return "%".join([parts[0], *(part[:2].lower() + part[2:] for part in parts[1:])])
