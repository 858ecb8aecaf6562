"""Text statistics that know Unicode: words of any script, combining marks, sentences, reading time, most common words.

Another result shape than version 1, hence another major version.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloche_guest import Job, hookimpl

PIECE = 1 << 16  # characters
MAX_WORD = 64  # longer runs (hashes, base64) are words, but not worth remembering whole
MAX_DISTINCT = 200_000  # words remembered; about 30 MB
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+(?:[.,]\d+)*")
SENTENCE = re.compile(r"[.!?…]+(?=[\s\"'”’)\]]|$)|[。！？]+")


class Tally:
    """What was counted so far."""

    def __init__(self) -> None:
        self.words = 0
        self.sentences = 0
        self.characters = 0
        self.lines = 0
        self.common: Counter[str] = Counter()
        self.capped = False

    def add(self, piece: str) -> None:
        """Count a piece of text that ends where no word does."""
        self.lines += piece.count("\n")
        self.characters += sum(not unicodedata.combining(character) for character in piece)
        self.sentences += len(SENTENCE.findall(piece))
        for word in WORD.findall(piece):
            self.words += 1
            key = word.casefold()[:MAX_WORD]
            if key in self.common or len(self.common) < MAX_DISTINCT:
                self.common[key] += 1
            else:
                self.capped = True


@hookimpl
def run(job: Job) -> dict[str, Any]:
    """Result: ``{"files", "totals", "most_common", "reading_time_seconds"}``."""
    tally = Tally()
    files = []
    for number, path in enumerate(job.inputs, start=1):
        words, sentences = tally.words, tally.sentences
        for piece in pieces(path):
            tally.add(piece)
        files.append({"file": path.name, "words": tally.words - words, "sentences": tally.sentences - sentences})
        job.progress(number, len(job.inputs), path.name)
    return {
        "files": files,
        "totals": {
            "lines": tally.lines,
            "words": tally.words,
            "sentences": tally.sentences,
            "characters": tally.characters,
            "distinct_words": len(tally.common),
            "distinct_words_capped": tally.capped,
        },
        "most_common": ranked(tally.common, job.payload["top"]),
        "reading_time_seconds": round(tally.words * 60 / job.payload["words_per_minute"]),
    }


def ranked(common: Counter[str], top: int) -> list[dict[str, Any]]:
    """The most frequent words; equals by alphabet, so that the same text gives the same list."""
    order = sorted(common.items(), key=lambda item: (-item[1], item[0]))[:top]
    return [{"word": word, "count": count} for word, count in order]


def pieces(path: Path) -> Iterator[str]:
    """The text, composed (NFC), in pieces that end with white space: neither a word nor a sentence's end is cut in two."""
    rest = ""
    with path.open(encoding="utf-8-sig", errors="replace", newline=None) as text:
        while read := text.read(PIECE):
            rest += read
            cut = max(rest.rfind(" "), rest.rfind("\n")) + 1
            if cut == 0 and len(rest) < 16 * PIECE:
                continue  # no white space yet: look further, within reason
            yield unicodedata.normalize("NFC", rest[: cut or len(rest)])
            rest = rest[cut or len(rest) :]
    if rest:
        yield unicodedata.normalize("NFC", rest)
