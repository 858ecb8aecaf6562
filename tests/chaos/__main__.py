"""`./run chaos`: runs rows of the fault matrix and prints the table; `--full` runs all of it and writes it into docs/reliability.md."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.chaos import invariants, report
from tests.chaos.matrix import Row, Verdict, run, stack_for
from tests.chaos.rows import ROWS

FULL_JOBS, FULL_SEEDS = 200, 3


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.docs:
        report.PAGE.write_text(report.refreshed(report.PAGE.read_text("utf-8")), "utf-8")
        return 0
    if options.list:
        for row in ROWS:
            print(f"{row.name:20} {row.title}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with everything taken down on the way out
    only = {name for names in options.only for name in names}
    chosen = [row for row in ROWS if row.name in only or (not only and (options.full or row.short))]
    verdicts: list[Verdict] = []
    for row in chosen:
        verdicts += (mine := _row(row, options))
        if options.full or options.write:
            report.write(mine)  # row by row, so that one may break off and go on with the others another time
    print(report.table(verdicts))
    for verdict in verdicts:
        for name, wrong in verdict.wrong.items():
            for line in wrong[:5]:
                print(f"{verdict.row.name} seed {verdict.seed} {name}: {line}", file=sys.stderr)
    return 0 if all(verdict.held for verdict in verdicts) else 1


def _row(row: Row, options: argparse.Namespace) -> list[Verdict]:
    seeds = options.seeds or (FULL_SEEDS if options.full else 1)
    jobs = options.jobs or (FULL_JOBS if options.full else row.short or 20)
    verdicts = []
    try:
        with stack_for(row, options.logs) as system:
            for seed in range(1, seeds + 1):
                began = time.monotonic()
                verdicts.append(run(system, row, jobs, seed))
                _say(verdicts[-1], time.monotonic() - began)
            system.stop()
            verdicts[-1].wrong["I5"] += invariants.check_stopped(system)
    except Exception as error:
        traceback.print_exc()
        broken = Verdict(row, jobs, len(verdicts) + 1, {"I1": [f"the row broke down: {error}"]})
        verdicts.append(broken)
        if options.keep:
            raise
    return verdicts


def _say(verdict: Verdict, took_s: float) -> None:
    word = "held" if verdict.held else f"FAILED {[name for name, wrong in verdict.wrong.items() if wrong]}"
    line = f"{verdict.row.name} seed {verdict.seed}: {word}, {verdict.jobs} jobs in {took_s:.0f} s, recovery {verdict.took}"
    print(line, file=sys.stderr, flush=True)


def _rows(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - {row.name for row in ROWS}:
        raise argparse.ArgumentTypeError(f"no row is called {', '.join(sorted(unknown))}: --list names them")
    return names


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run chaos", description=__doc__)
    parser.add_argument("--full", action="store_true", help=f"every row, {FULL_JOBS} jobs, {FULL_SEEDS} seeds")
    parser.add_argument("--only", action="append", default=[], metavar="ROW,…", type=_rows, help="these rows alone")
    parser.add_argument("--seeds", type=int, help="how often each row is run")
    parser.add_argument("--jobs", type=int, help="jobs of one run")
    parser.add_argument("--write", action="store_true", help="write the rows into docs/reliability.md")
    parser.add_argument("--docs", action="store_true", help="run nothing; draw the page's states and failpoints again")
    parser.add_argument("--list", action="store_true", help="name the rows")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep each stack's log there")
    parser.add_argument("--keep", action="store_true", help="stop at the first row that breaks down")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
