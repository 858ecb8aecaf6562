"""Tables of a run in docs/performance.md, each between marks of its own."""

from __future__ import annotations

import os
import platform
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def put(name: str, text: str) -> None:
    """Put the text of part ``name`` in the place of the one before.

    Raises:
        RuntimeError: the page has no place for it.
    """
    begin, end = f"<!-- bench {name} -->", f"<!-- end of bench {name} -->"
    before, _, rest = PAGE.read_text("utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise RuntimeError(f"{PAGE} has no place for the tables: {begin} … {end}")
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")


def machine(load: tuple[float, float]) -> str:
    """One sentence on where it ran, and how busy that was before and at the end."""
    return f"One run on {os.cpu_count()} cores (Linux {platform.release()}); load before it {load[0]:.1f}, at its end {load[1]:.1f}."
