"""`./run bench sandbox`: sandboxd by itself at both levels and under both runtimes, after other ways to run a job in a container.

All in one run, one after the other. The peers of ``--peers DIR`` run first, on the same engine and the same image's files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench import sandbox_cells, sandbox_peers, sandbox_pool, sandbox_preload, sandbox_runsc
from bench.figures import Row
from bench.peers_environment import Figures

_RUNSC, _INSIDE = "runsc: ", "inside: "  # how rows of sandbox_runsc begin


@dataclass
class Run:
    """Everything of one run: rows of level ``container`` under runc, and under runsc by the same names; of level ``namespace``; of what a
    plugin's work costs inside both runtimes."""

    load: tuple[float, float] = (0.0, 0.0)  # of the machine in the minute before this run began and at its end
    peers: dict[str, Figures] = field(default_factory=dict)
    container: list[Row] = field(default_factory=list)
    namespace: list[Row] = field(default_factory=list)
    runsc: list[Row] = field(default_factory=list)
    inside: list[Row] = field(default_factory=list)

    def ratios(self, peer: Figures) -> dict[str, float]:
        """How many times as long a peer's median job takes as ours (whole jobs), and how many times as many jobs a second are ours."""
        found = {row["what"]: row for row in (*self.container, *self.namespace)}
        names = {"cold": sandbox_pool.COLD_WHOLE, "warm": sandbox_pool.WARM_WHOLE, "namespace": sandbox_cells.WHOLE}
        longer = {name: peer["p50_ms"] / found[what]["median_ms"] for name, what in names.items()}
        faster = {
            "container": rate(self.container, sandbox_pool.SUSTAINED) / peer["jobs_s_c8"],
            "namespace": rate(self.namespace, sandbox_cells.SUSTAINED) / peer["jobs_s_c8"],
        }
        return {f"its median / {name}": round(value, 1) for name, value in longer.items()} | {
            f"{name}, jobs a second / its": round(value, 2) for name, value in faster.items()
        }


def rate(rows: Iterable[Row], ending: str) -> float:
    """Jobs a second of the row whose name ends so."""
    return next(float(row["jobs_per_s"]) for row in rows if row["what"].endswith(ending))


def rows(run: Run, count: int, folder: Path | None) -> Iterator[Row]:
    """Measure all into ``run``; rows as they come."""
    before = os.getloadavg()[0]
    yield {"what": "load of the machine before", "processes": round(before, 1)}
    with sandbox_pool.alone() as bench:
        image = sandbox_pool.image_of(bench)
    run.peers = sandbox_peers.measured(folder, image)
    for name, found in run.peers.items():
        yield {"what": name, **found}
    yield from _kept(run.container, sandbox_pool.rows(count))
    yield from _kept(run.namespace, sandbox_cells.rows(10 * count))
    yield from _kept(run.namespace, sandbox_preload.rows(5 * count))
    for row in sandbox_runsc.rows(count):
        into = run.inside if row["what"].startswith(_INSIDE) else run.runsc
        into.append({**row, "what": row["what"].removeprefix(_RUNSC).removeprefix(_INSIDE)})
        yield row
    for name, found in run.peers.items():
        if "not measured" not in found:
            yield {"what": f"ratios to {name}", **run.ratios(found)}
    run.load = (before, os.getloadavg()[0])


def _kept(into: list[Row], some: Iterable[Row]) -> Iterator[Row]:
    for row in some:
        into.append(row)
        yield row
