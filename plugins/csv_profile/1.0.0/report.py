"""The profile as Markdown, for people."""

from __future__ import annotations

from typing import Any

HEAD = ("column", "type", "missing", "distinct", "min", "max", "mean")


def markdown(files: list[dict[str, Any]]) -> str:
    """One section per file with a table of its columns."""
    parts = ["# Table profile\n"]
    for file in files:
        parts.append(f"## {_cell(file['file'])}\n")
        parts.append(f"{file['rows']} rows, {len(file['columns'])} columns, delimiter {file['delimiter']!r}.")
        if file["ragged_rows"]:
            parts.append(f"{file['ragged_rows']} rows have more or fewer fields than the first one.")
        parts.append("")
        parts.append(_row(HEAD))
        parts.append(_row(["---"] * len(HEAD)))
        parts += [_row(_cells(column)) for column in file["columns"]]
        parts.append("")
    return "\n".join(parts)


def _cells(column: dict[str, Any]) -> list[str]:
    distinct = f"{'more than ' if column['distinct_capped'] else ''}{column['distinct']}"
    low = column.get("min", _length(column.get("min_length")))
    high = column.get("max", _length(column.get("max_length")))
    shown = [column["name"], column["type"], column["missing"], distinct, low, high, column.get("mean", "")]
    return [_cell(value) for value in shown]


def _length(count: int | None) -> str:
    return "" if count is None else f"{count} characters"


def _row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: Any) -> str:
    """A value as table text: a bar or a line break in it must not break the table, nor markup take effect."""
    if isinstance(value, float):
        value = f"{value:.6g}"
    text = " ".join(str(value).split())
    for mark in "\\|`*_<>[]#":
        text = text.replace(mark, "\\" + mark)
    return text
