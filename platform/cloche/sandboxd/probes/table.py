"""All probes, in the order in which they are told."""

from __future__ import annotations

from cloche.domain.runtimes import RUNSC
from cloche.isolation.spec import NAMESPACE
from cloche.sandboxd.probes import (
    rows_cells,
    rows_egress,
    rows_gvisor,
    rows_kernel,
    rows_lies,
    rows_limits,
    rows_reach,
    rows_warm,
)
from cloche.sandboxd.probes.probe import Probe

_COLD: tuple[Probe, ...] = (
    *rows_kernel.IDENTITY,
    *rows_kernel.CALLS,
    *rows_reach.NETWORK,
    *rows_egress.EGRESS,
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
PROBES: tuple[Probe, ...] = (*_COLD, *rows_warm.rows(_COLD))


def for_runtime(runtime: str) -> tuple[Probe, ...]:
    """The probes with what is expected of them under that runtime."""
    if runtime != RUNSC:
        return PROBES
    cold = tuple(rows_gvisor.adapted(probe) for probe in _COLD)
    return (*cold, *rows_warm.rows(cold))


def for_level(level: str) -> tuple[Probe, ...]:
    """The probes of that level, each with what is expected of it there."""
    if level != NAMESPACE:
        return PROBES
    cold = tuple(rows_cells.adapted(probe) for probe in _COLD)
    return (*cold, *rows_warm.rows(cold), *rows_cells.CELLS)


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


def differences() -> str:
    """The rows that are judged otherwise under gVisor, as docs/threat-model.md shows them."""
    lines = ["| probe | what is expected under gVisor | why |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {_cell(row.expects)} | {_cell(row.why)} |" for name, row in rows_gvisor.DIFFERENT.items()]
    return "\n".join(lines) + "\n"


def markdown_of_cells() -> str:
    """What differs and what is added at level ``namespace``, as docs/threat-model.md shows it."""
    differs = tuple(now for was, now in zip(PROBES, for_level(NAMESPACE), strict=False) if was.expects != now.expects)
    return markdown((*differs, *rows_cells.CELLS))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
