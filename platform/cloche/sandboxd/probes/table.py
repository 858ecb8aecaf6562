"""All probes, in the order in which they are told."""

from __future__ import annotations

from collections.abc import Mapping

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
from cloche.sandboxd.probes.probe import Differs, Probe

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


def differences(rows: Mapping[str, Differs] = rows_gvisor.DIFFERENT, where: str = "under gVisor") -> str:
    """The rows that are judged otherwise there, as docs/threat-model.md shows them."""
    lines = [f"| probe | what is expected {where} | why |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {_cell(row.expects)} | {_cell(row.why)} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def differences_of_cells() -> str:
    """The same for level ``namespace``."""
    return differences(rows_cells.DIFFERENT, "at level `namespace`")


def markdown_of_cells() -> str:
    """The probes that only level ``namespace`` has."""
    return markdown(rows_cells.CELLS)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
