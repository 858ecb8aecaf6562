"""The whole suite in three processes beside each other: ``./run test`` without arguments.

Most tests wait for processes more than they compute. Each lane starts servers of its own. Every minute it says how far it is; all that it
printed comes when every one has ended, those that failed last, so that the last line is pytest's own. The exit code is the worse one.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
# Chosen so that all take about as long; whatever folder is not named here runs in the last lane.
LANES = (("chaos", "escape", "isolation"), ("contract", "integration", "migrations"))
_SAY_S = 60.0


@dataclass
class Lane:
    """A running pytest, and the file that holds what it prints."""

    process: subprocess.Popen[bytes]
    output: Path

    def ended(self, timeout_s: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
        return self.process.returncode is not None

    def text(self) -> str:
        return self.output.read_text("utf-8", errors="replace")


def lanes() -> list[list[str]]:
    """The folders of tests, each in exactly one lane."""
    folders = sorted(path.name for path in TESTS.iterdir() if path.is_dir() and any(path.rglob("test_*.py")))
    named = [name for lane in LANES for name in lane]
    rest = [name for name in folders if name not in named]
    return [[f"tests/{name}" for name in lane] for lane in (*LANES, rest)]


def main(options: list[str]) -> int:
    """Run all lanes with these options of pytest; returns the exit code. Interrupted, it lets each say what it has."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="cloche-lanes-") as folder:
        running = [_start(lane, options, Path(folder) / f"{number}.txt") for number, lane in enumerate(lanes(), 1)]
        try:
            _watch(running)
        except KeyboardInterrupt:
            for lane in running:
                lane.process.send_signal(signal.SIGINT)
            for lane in running:
                lane.process.wait()
        for lane in sorted(running, key=lambda lane: lane.process.returncode != 0):
            print(f"--- a lane ended with {lane.process.returncode} ---")
            print(lane.text(), end="", flush=True)
    return max(abs(lane.process.returncode) for lane in running)


def _start(folders: list[str], options: list[str], output: Path) -> Lane:
    command = [sys.executable, "-m", "pytest", *folders, *options]
    print("running", *command[1:], flush=True)
    with output.open("wb") as target:
        return Lane(subprocess.Popen(command, stdout=target, stderr=subprocess.STDOUT), output)


def _watch(running: list[Lane]) -> None:
    while not all(lane.ended(_SAY_S) for lane in running):
        for lane in running:
            last = lane.text().rstrip().rpartition("\n")[2]
            print(last[:160], flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
