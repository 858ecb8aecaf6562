"""What the demo prints: numbered chapters, tables, and a mark for each thing that was checked. Plain off a terminal."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_WIDTH = 112


class DemoFailed(Exception):
    """Something the demo promised does not hold."""


class Screen:
    """Prints the story and counts what held."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self._console = Console(width=None if terminal else _WIDTH, highlight=False)
        self._color = terminal
        self._chapter = 0
        self.checks = 0

    def title(self, text: str, below: str) -> None:
        self._console.print(Panel(Text(below), title=Text(text, style="bold"), border_style="cyan", padding=(1, 2)))

    def chapter(self, title: str) -> None:
        self._chapter += 1
        self._console.print()
        self._console.print(Rule(Text(f"{self._chapter}. {title}", style="bold cyan"), align="left", style="cyan"))

    def say(self, text: str) -> None:
        self._console.print(Text(_safe(text)))

    def check(self, holds: object, what: str) -> None:
        """Print ``what`` with a mark.

        Raises:
            DemoFailed: it does not hold.
        """
        if not holds:
            self._console.print(Text.assemble(("  ✗ ", "bold red"), _safe(what)))
            raise DemoFailed(what)
        self.checks += 1
        self._console.print(Text.assemble(("  ✓ ", "bold green"), _safe(what)))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
        heading = Text(title, style="bold") if title else None
        table = Table(
            title=heading, title_justify="left", box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0)
        )
        for name in columns:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(Text(_safe(str(cell))) for cell in row))
        with self._console.capture() as captured:
            self._console.print(table)
        self._console.print()
        # Rich fills rows up with spaces, which a transcript does not need.
        self._print_as_is("\n".join(line.rstrip() for line in captured.get().splitlines()))
        self._console.print()

    def value(self, title: str, value: Any, lines: int = 14) -> None:
        """A JSON value or a text, cut to so many lines."""
        text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
        shown = [_safe(line)[:_WIDTH] for line in text.splitlines()]
        cut = shown[:lines] + ([f"… {len(shown) - lines} more lines"] if len(shown) > lines else [])
        self._console.print(Text(f"  {title}", style="bold"))
        body = "\n".join(f"    {line}" for line in cut)
        if self._color and not isinstance(value, str):
            self._console.print(Syntax(body, "json", theme="ansi_dark", background_color="default"))
        else:
            self._console.print(Text(body))

    def log(self, text: str) -> None:
        """The end of Cloche's log, after a failure."""
        self._console.print(Rule(Text("the last lines of Cloche's log"), style="red"))
        self._print_as_is("\n".join(_safe(line) for line in text.splitlines()))

    def _print_as_is(self, text: str) -> None:
        """Text that is laid out already: neither wrapped nor interpreted."""
        self._console.file.write(text + "\n")

    def failed(self, why: str) -> None:
        self._console.print(Text(f"The demo failed: {_safe(why)}", style="bold red"))

    def end(self, seconds: float) -> None:
        text = f"{self.checks} checks held, in {seconds:.1f} s. Next: ./run up, then docs/quickstart.md."
        self._console.print()
        self._console.print(Panel(Text(text, style="bold green"), border_style="green"))


def _safe(text: str) -> str:
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def size(count: int) -> str:
    """``1536`` → ``"1.5 KB"``."""
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:.1f} KB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MB"
