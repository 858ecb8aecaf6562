"""All probes, in the order in which they are told."""

from __future__ import annotations

from cloche.isolation.spec import NAMESPACE
from cloche.sandboxd.probes import rows_cells, rows_kernel, rows_lies, rows_limits, rows_reach
from cloche.sandboxd.probes.probe import Probe

PROBES: tuple[Probe, ...] = (
    *rows_kernel.IDENTITY,
    *rows_kernel.CALLS,
    *rows_reach.NETWORK,
    *rows_reach.FILES,
    *rows_reach.KERNEL,
    *rows_reach.PROCESSES,
    *rows_limits.LIMITS,
    *rows_limits.DEATH,
    *rows_lies.OUTPUTS,
    *rows_lies.RESULT,
    *rows_lies.FRAMES,
    *rows_lies.LEFTOVERS,
)


def for_level(level: str) -> tuple[Probe, ...]:
    """The probes of that level, each with what is expected of it there."""
    if level != NAMESPACE:
        return PROBES
    return (*(rows_cells.adapted(probe) for probe in PROBES), *rows_cells.CELLS)


def markdown(probes: tuple[Probe, ...] = PROBES) -> str:
    """The table as docs/threat-model.md shows it."""
    lines = ["| probe | what is tried | what is expected |", "| --- | --- | --- |"]
    group = None
    for probe in probes:
        if probe.group != group:
            group = probe.group
            lines.append(f"| **{group}** | | |")
        lines.append(f"| `{probe.id}` | {_cell(probe.tries)} | {_cell(probe.expects)} |")
    return "\n".join(lines) + "\n"


def markdown_of_cells() -> str:
    """What differs and what is added at level ``namespace``, as docs/threat-model.md shows it."""
    differs = tuple(now for was, now in zip(PROBES, for_level(NAMESPACE), strict=False) if was.expects != now.expects)
    return markdown((*differs, *rows_cells.CELLS))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
