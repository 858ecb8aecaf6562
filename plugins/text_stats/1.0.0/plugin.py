"""Counts lines, words and characters over all inputs, as ``wc`` does."""

from __future__ import annotations

from pathlib import Path

from cloche_guest import Job, hookimpl

PIECE = 1 << 20  # characters read at once, so that a file without line breaks fits too


@hookimpl
def run(job: Job) -> dict[str, int]:
    """Result: ``{"lines", "words", "chars"}``."""
    lines = words = chars = 0
    for number, path in enumerate(job.inputs, start=1):
        counted = count(path)
        lines, words, chars = lines + counted[0], words + counted[1], chars + counted[2]
        job.progress(number, len(job.inputs), path.name)
    return {"lines": lines, "words": words, "chars": chars}


def count(path: Path) -> tuple[int, int, int]:
    """Line breaks, runs of non-blank characters, characters."""
    lines = words = chars = 0
    inside = False  # the last piece ended within a word
    with path.open(encoding="utf-8", errors="replace", newline="") as text:
        while piece := text.read(PIECE):
            lines += piece.count("\n")
            words += len(piece.split()) - (inside and not piece[0].isspace())
            chars += len(piece)
            inside = not piece[-1].isspace()
    return lines, words, chars
