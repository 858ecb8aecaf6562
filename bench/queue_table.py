"""The run of `./run bench queue` as the tables of docs/performance.md."""

from __future__ import annotations

from typing import Any

from bench import page
from bench.queue import LINES, Run

_NOT = "not measured"


def text(run: Run) -> str:
    """Markdown: what was measured, its marks, and the peers of the same run."""
    lines = [
        page.machine(run.load),
        "",
        "| what | mark | SQLite | PostgreSQL |",
        "| --- | --- | --- | --- |",
    ]
    for what, mark, shown in (
        ("one job, `POST` to result, level `namespace`: median, p95", "≤ 10 ms", _one("namespace", 10)),
        ("the same, level `container`, pool full", "≤ 20 ms", _one("container", 20)),
        ("a backlog through the whole system, level `namespace`", "", _rate("drain")),
        ("ratio to RQ's fork", "≥ 2, aim 4", _ratio("drain", run.rq.get("drain"), 2)),
        ("`POST` by `POST` to the last end, level `namespace`", "", _rate("live")),
        ("ratio to RQ's fork", "≥ 2, aim 4", _ratio("live", run.rq.get("e2e"), 2)),
        (f"submits, {LINES} connections", "", _rate("submits")),
        ("ratio to bare Flask and one `XADD`", "≥ 0.3", _ratio("submits", run.bare, 0.3)),
        ("batches of 10,000", "≥ 5,000 jobs/s", _rate("batch", 5_000)),
    ):
        lines.append(f"| {what} | {mark} | {' | '.join(shown(run.databases[name]) for name in run.databases)} |")
    lines += [
        "",
        "| peer, same run | a backlog | one by one | one job: median, p95 |",
        "| --- | --- | --- | --- |",
    ]
    for name, found in run.peers.items():
        if _NOT in found:
            lines.append(f"| {name} | {_NOT} | {_NOT} | {_NOT} |")
        else:
            one = f"{found['res_p50']:.1f} ms, {found['res_p95']:.1f} ms"
            lines.append(f"| {name} ({found['version']}) | {_per_s(found['drain'])} | {_per_s(found['e2e'])} | {one} |")
    lines += [f"| bare Flask and one `XADD`, {LINES} connections | {_per_s(run.bare)} | | |"]
    return "\n".join(lines)


def write(run: Run) -> None:
    """Put the tables into docs/performance.md, between their marks."""
    page.put("queue", text(run))


def _rate(name: str, mark: float | None = None) -> Any:
    def shown(found: dict[str, Any]) -> str:
        if name not in found:
            return _NOT
        return _per_s(found[name]) + (_judged(found[name] >= mark) if mark else "")

    return shown


def _ratio(name: str, other: float | None, mark: float) -> Any:
    def shown(found: dict[str, Any]) -> str:
        if name not in found or not other:
            return _NOT
        ratio = found[name] / other
        return f"{ratio:.2f}{_judged(ratio >= mark)}"

    return shown


def _one(name: str, mark_ms: float) -> Any:
    def shown(found: dict[str, Any]) -> str:
        if name not in found:
            return _NOT
        median, p95 = found[name]["median_ms"], found[name]["p95_ms"]
        return f"{median:.1f} ms, {p95:.1f} ms{_judged(median <= mark_ms)}"

    return shown


def _per_s(rate: float) -> str:
    return f"{rate:,.0f} /s"


def _judged(reached: bool) -> str:
    return " ✓" if reached else ", **missed**"
