"""The table of the fault matrix, printed and in docs/reliability.md."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from cloche.domain.states import mermaid
from cloche.failpoints import MEANING
from tests.chaos.matrix import Verdict
from tests.chaos.rows import ROWS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- matrix: written by ./run chaos --write -->", "<!-- end of the matrix -->"
_HEAD = "| row | fault | runs | jobs | I1 | I2 | I3 | I4 | I5 | I6 | running again after | notes |"
_RULE = "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
_POINTS = "| failpoint | what has been written there, and what has not |\n| --- | --- |\n"
_NAMES = ("I1", "I2", "I3", "I4", "I5", "I6")


def table(verdicts: Sequence[Verdict]) -> str:
    return "\n".join([_HEAD, _RULE, *(_line(list(runs)) for _, runs in groupby(verdicts, lambda v: v.row.name))]) + "\n"


def write(verdicts: Sequence[Verdict], page: Path = PAGE) -> None:
    """Put the rows that were run in place of those of the same name; the others stay as they are, and rows that are no more go."""
    before, rest = page.read_text("utf-8").split(f"{BEGIN}\n")
    old, after = rest.split(END)
    lines = {_name(line): line for line in old.splitlines() if line.startswith("| `")}
    lines |= {_name(line): line for line in table(verdicts).splitlines() if line.startswith("| `")}
    ordered = [lines[name] for row in ROWS if (name := f"`{row.name}`") in lines]
    text = before + f"{BEGIN}\n" + "\n".join([_HEAD, _RULE, *ordered]) + f"\n{END}" + after
    page.write_text(refreshed(text) if page == PAGE else text, "utf-8")


def refreshed(text: str) -> str:
    """The page with the state diagram and the list of failpoints as the code has them."""
    for begin, end, body in (
        ("```mermaid\n", "```", mermaid()),
        (_POINTS, "\n\n", "\n".join(f"| `{point}` | {words} |" for point, words in MEANING.items())),
    ):
        before, rest = text.split(begin, 1)
        text = before + begin + body + rest[rest.index(end) :]
    return text


def _name(line: str) -> str:
    return line.split("|")[1].strip()


def _line(runs: list[Verdict]) -> str:
    row = runs[0].row
    cells = [f"`{row.name}`", row.title, str(len(runs)), str(sum(run.jobs for run in runs))]
    for name in _NAMES:
        failed = sum(1 for run in runs if run.wrong.get(name))
        if name == "I6" and any(run.busy for run in runs):
            cells.append("not judged")
            continue
        cells.append("held" if not failed else f"**failed {failed}×**")
    took = [
        f"{max(run.took[kind] for run in runs if kind in run.took):.1f} s"
        for kind in ("process", "host")
        if any(kind in run.took for run in runs)
    ]
    took = ["machine busy"] if any(run.busy for run in runs) else took
    overlap = max(run.overlap for run in runs)
    notes = sorted({note for run in runs for note in run.notes})
    if overlap >= 0.1:
        notes.append(f"two attempts alive at once for {overlap:.1f} s")
    if resent := sum(run.resent for run in runs):
        notes.append(f"{resent} callbacks sent again")
    return "| " + " | ".join([*cells, ", ".join(took) or "–", "; ".join(notes) or "–"]) + " |"
