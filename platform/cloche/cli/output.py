"""Data on stdout in the form that was asked for; text that a job controls is never allowed to steer the terminal."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from cloche.letters import HIDDEN, written_out

FORMATS = ("table", "json", "yaml", "name")
F = TypeVar("F", bound=Callable[..., Any])
Row = Mapping[str, Any]
Columns = Sequence[tuple[str, Callable[[Row], Any]]]


def printable(text: str) -> str:
    """The text with every control and every invisible character written out (``\\x1b``, ``\\u202e``); newlines and tabs stay."""
    return HIDDEN.sub(lambda match: written_out(match[0]), text)


def one_line(value: Any) -> str:
    """A value as one printable line, for a table's cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text.replace("\n", " ").replace("\t", " "))


def to_json(value: Any) -> str:
    """Indented JSON; control characters are escaped as JSON escapes them."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return HIDDEN.sub(lambda match: json.dumps(match[0])[1:-1], text)


def output_option(command: F) -> F:
    """Adds ``-o/--output-format`` to a command, as its argument ``form``."""
    option = click.option(
        "-o", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="Form of the data on stdout."
    )
    return option(command)


def show(form: str, data: Any, *, rows: Sequence[Row], columns: Columns, name: Callable[[Row], str]) -> None:
    """Print ``data`` (JSON, YAML), or ``rows`` as a table, or one ``name`` a line."""
    if form == "json":
        click.echo(to_json(data))
    elif form == "yaml":
        import yaml

        text = yaml.safe_dump(data, allow_unicode=True, sort_keys=False)
        if HIDDEN.search(text):  # what YAML lets stand but a terminal may not see: escape all that is not ASCII
            text = yaml.safe_dump(data, allow_unicode=False, sort_keys=False)
        click.echo(text, nl=False)
    elif form == "name":
        for row in rows:
            click.echo(printable(name(row)))
    else:
        _table(rows, columns)


def _table(rows: Sequence[Row], columns: Columns) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, _ in columns:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(value(row))) for _, value in columns))
    if sys.stdout.isatty():
        Console().print(table)
        return
    # Off a terminal a table is text for other programs: as wide as it needs to be, never folded, nothing behind the last word.
    console = Console(width=10_000, color_system=None, file=io.StringIO())
    console.print(table)
    for line in console.file.getvalue().splitlines():  # type: ignore[attr-defined]
        click.echo(line.rstrip())


def details(form: str, data: Row, lines: Sequence[tuple[str, Any]], name: str) -> None:
    """Print one object: its fields one a line, or as JSON or YAML, or its name alone."""
    if form in ("json", "yaml", "name"):
        show(form, data, rows=[data], columns=(), name=lambda _: name)
        return
    width = max(len(label) for label, _ in lines) + 2
    for label, value in lines:
        if value is None or value == "" or value == []:
            continue
        text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
        first, *rest = printable(text).split("\n")
        click.echo(f"{label:<{width}}{first}")
        for line in rest:
            click.echo(" " * width + line)


def note(message: str) -> None:
    """A message for the person at the terminal: stderr, so that it never mixes with data."""
    click.echo(printable(message), err=True)


def size(count: int | None) -> str:
    """``1536`` → ``"1.5 KB"`` (1 KB = 1024 bytes, as everywhere in Cloche)."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "KB", "MB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GB"
