"""The run of `./run bench sandbox` as the tables of docs/performance.md."""

from __future__ import annotations

import operator
from collections.abc import Callable

from bench import page, sandbox_cells, sandbox_pool
from bench.figures import Row
from bench.sandbox import Run

_NOT = "not measured"
# By how the row's name ends: the mark in words, the value's place in the row, and how that must stand to the number.
_MARKS: dict[str, tuple[str, str, Callable[[float, float], bool], float]] = {
    sandbox_pool.WARM: ("≤ 5 ms", "median_ms", operator.le, 5),
    sandbox_pool.COLD_RATIO: ("≤ 1.15", "ratio", operator.le, 1.15),
    sandbox_pool.ENGINE_RATIO: ("≥ 0.9", "ratio", operator.ge, 0.9),
    sandbox_pool.WAITING: ("≤ 25 MB", "MB", operator.le, 25),
    sandbox_cells.RESULT: ("≤ 5 ms", "median_ms", operator.le, 5),
    sandbox_cells.SUSTAINED: ("≥ 600 /s", "jobs_per_s", operator.ge, 600),
}
_UNITS = {"jobs_per_s": " /s", "per_s": " /s", "ratio": "", "MB": " MB", "ms": " ms"}


def text(run: Run) -> str:
    """Markdown: level ``container`` under both runtimes, level ``namespace``, and the peers of the same run."""
    return "\n\n".join(
        (page.machine(run.load), _container(run), "Level `namespace`, the same run:", _namespace(run), _peers(run))
    )


def inside(run: Run) -> str:
    """Markdown: what a plugin's work costs inside."""
    if not run.inside:
        return f"{_NOT.capitalize()}: {_why_no_runsc(run)}."
    lines = ["| inside | runc | gVisor | ratio |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {row['what']} | {row['runc_ms']:,.0f} ms | {row['runsc_ms']:,.0f} ms | {row['ratio']} |"
        for row in run.inside
    ]
    return "\n".join(lines)


def write(run: Run) -> None:
    """Put the tables into docs/performance.md, between their marks."""
    page.put("sandbox", text(run))
    page.put("gvisor", inside(run))


def _container(run: Run) -> str:
    other = {row["what"]: row for row in run.runsc}
    lines = ["| what | runc: median | p95 | mark | gVisor: median | p95 |", "| --- | --- | --- | --- | --- | --- |"]
    for row in run.container:
        beside = other.get(row["what"], {})
        cells = (row["what"], _value(row), _p95(row), _mark(row), _value(beside), _p95(beside))
        lines.append(f"| {' | '.join(cells)} |")
    if not run.inside:
        lines += ["", f"gVisor was {_NOT}: {_why_no_runsc(run)}."]
    return "\n".join(lines)


def _namespace(run: Run) -> str:
    lines = ["| what | median | p95 | mark |", "| --- | --- | --- | --- |"]
    lines += [f"| {row['what']} | {_value(row)} | {_p95(row)} | {_mark(row)} |" for row in run.namespace]
    return "\n".join(lines)


def _peers(run: Run) -> str:
    lines = [
        "| peer, same run | one job: median, p95 | that / cold, warm, `namespace` | 8 clients | `container` / that, `namespace` / that |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in run.peers.items():
        if _NOT in found:
            lines.append(f"| {name} | {_NOT}: {found[_NOT]} | | | |")
            continue
        cold, warm, namespace, container_rate, namespace_rate = run.ratios(found).values()
        lines.append(
            f"| {name} ({found['version']}) | {found['p50_ms']} ms, {found['p95_ms']} ms | {cold}, {warm}, {namespace} "
            f"| {found['jobs_s_c8']} /s | {container_rate}, {namespace_rate} |"
        )
    return "\n".join(lines)


def _why_no_runsc(run: Run) -> str:
    return next((str(row[_NOT]) for row in run.runsc if _NOT in row), "nothing of it came")


def _value(row: Row) -> str:
    if "median_ms" in row:
        return f"{row['median_ms']:,} ms"
    said = next((f"{row[name]:,}{unit}" for name, unit in _UNITS.items() if name in row), "")
    return f"{said}, {row['warm']} warm" if "warm" in row else said


def _p95(row: Row) -> str:
    return f"{row['p95_ms']:,} ms" if "p95_ms" in row else ""


def _mark(row: Row) -> str:
    for ending, (words, place, stands, number) in _MARKS.items():
        if row["what"].endswith(ending):
            return f"{words} ✓" if stands(row[place], number) else f"{words}, **missed**"
    return ""
