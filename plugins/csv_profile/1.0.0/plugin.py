"""Profiles delimited tables in one pass and bounded memory, however large the file is."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from columns import Column
from report import markdown

from cloche_guest import Job, hookimpl

MAX_COLUMNS = 2_000
MAX_DISTINCT_IN_ALL = 1_000_000  # remembered over all columns of one file: about 100 MB
FIELD_LIMIT = 1 << 20  # characters in one field; more is hardly a table
SAMPLE = 1 << 13  # characters the delimiter is guessed from; the guess takes longer than linear time
PIECE = 1 << 16
EVERY = 20_000  # rows between two reports of progress
DELIMITERS = ",;\t|"


@hookimpl
def run(job: Job) -> dict[str, Any]:
    """Result: ``{"files": [{"file", "rows", "delimiter", "encoding", "ragged_rows", "columns": [...]}]}``; a report in Markdown."""
    csv.field_size_limit(FIELD_LIMIT)
    files = []
    for number, path in enumerate(job.inputs, start=1):
        job.progress(number - 1, len(job.inputs), path.name)
        files.append(profile(path, job))
    (job.out / "report.md").write_text(markdown(files), "utf-8")
    job.progress(len(job.inputs), len(job.inputs), "done")
    return {"files": files}


def profile(path: Path, job: Job) -> dict[str, Any]:
    """One file's profile. Text that is not UTF-8 is read as Windows-1252, in which every byte but five means something."""
    encoding = detect_encoding(path)
    with path.open("rb") as raw:
        text = io.TextIOWrapper(raw, encoding=encoding, errors="replace", newline="")
        delimiter = job.payload["delimiter"]
        if delimiter == "auto":
            delimiter = detect_delimiter(text.read(SAMPLE), path)
            text.seek(0)
        rows = csv.reader(text, delimiter=delimiter)
        found = tally(progressing(rows, raw, path, job), job.payload)
    return {"file": path.name, "encoding": encoding, "delimiter": delimiter, **found}


def progressing(rows: Any, raw: BinaryIO, path: Path, job: Job) -> Iterator[list[str]]:
    """The rows, telling how much of the file has been read; a fault is told with its line."""
    size = path.stat().st_size
    try:
        for number, row in enumerate(rows):
            if number % EVERY == EVERY - 1:
                job.progress(raw.tell(), size, f"{path.name}: {number + 1} rows")
            yield row
    except csv.Error as error:
        raise ValueError(f"{path.name}, line {rows.line_num}: {error}") from None


def tally(rows: Iterator[list[str]], payload: dict[str, Any]) -> dict[str, Any]:
    """Count, column by column. A row of another width than the first counts as ragged; what it has is still used."""
    first = next((row for row in rows if row), None)
    if first is None:
        return {"rows": 0, "ragged_rows": 0, "columns": []}
    if len(first) > MAX_COLUMNS:
        raise ValueError(f"{len(first)} columns; at most {MAX_COLUMNS} are profiled")
    cap = min(payload["max_distinct"], max(1, MAX_DISTINCT_IN_ALL // len(first)))
    header = payload["has_header"]
    names = [text.strip() for text in first] if header else [f"column_{n}" for n in range(1, len(first) + 1)]
    columns = [Column(name, cap) for name in names]
    count = ragged = 0
    for row in rows if header else chain_first(first, rows):
        if not row:  # a blank line
            continue
        count += 1
        ragged += len(row) != len(columns)
        for column, value in zip(columns, row, strict=False):
            column.add(value)
        for column in columns[len(row) :]:
            column.add("")
    return {"rows": count, "ragged_rows": ragged, "columns": [column.summary() for column in columns]}


def chain_first(first: list[str], rows: Iterator[list[str]]) -> Iterator[list[str]]:
    yield first
    yield from rows


def detect_encoding(path: Path) -> str:
    """``utf-8-sig``, ``utf-16`` (by its mark) or ``cp1252``; reads the file once in pieces."""
    with path.open("rb") as raw:
        start = raw.read(2)
        if start in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
        raw.seek(0)
        text = io.TextIOWrapper(raw, encoding="utf-8-sig")
        try:
            while text.read(PIECE):
                pass
        except UnicodeDecodeError:
            return "cp1252"
    return "utf-8-sig"


def detect_delimiter(sample: str, path: Path) -> str:
    """The sniffer's guess; where it has none, a tab for ``.tsv`` and a comma for the rest."""
    try:
        return csv.Sniffer().sniff(sample, delimiters=DELIMITERS).delimiter
    except csv.Error:
        return "\t" if path.suffix.lower() == ".tsv" else ","
