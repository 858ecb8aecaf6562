"""Failpoints: off unless set, once each, refused where others could be harmed, and listed in the docs with their own words."""

import subprocess
import sys
from pathlib import Path

import pytest

from cloche import failpoints
from cloche.errors import SettingsError
from cloche.failpoints import MEANING, InjectedFault, Point

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[2]
VICTIM = """
import sys
from pathlib import Path
from cloche import failpoints
failpoints.arm(sys.argv[1], Path(sys.argv[2]), "127.0.0.1")
failpoints.hit(failpoints.Point.WORKER_CLAIMED)
print("passed")
"""


@pytest.fixture(autouse=True)
def off_again(tmp_path):
    yield
    failpoints.arm("", tmp_path, HOST)


def test_a_point_that_is_off_does_nothing(tmp_path):
    failpoints.arm("", tmp_path, HOST)
    for point in Point:
        failpoints.hit(point)
    failpoints.arm("worker.claimed=error", tmp_path, HOST)
    failpoints.hit(Point.WORKER_TAKEN)
    assert list((tmp_path / "run" / "failpoints").iterdir()) == []


def test_a_point_acts_once_and_again_when_its_mark_is_removed(tmp_path):
    failpoints.arm("worker.claimed=error", tmp_path, HOST)
    mark = tmp_path / "run" / "failpoints" / "worker.claimed"
    for _ in range(2):
        with pytest.raises(InjectedFault):
            failpoints.hit(Point.WORKER_CLAIMED)
        failpoints.hit(Point.WORKER_CLAIMED)
        assert len(mark.read_text().split()) == 2
        mark.unlink()


def test_a_kill_is_a_sigkill_and_the_next_process_passes(tmp_path):
    command = [sys.executable, "-c", VICTIM, "worker.claimed=kill", str(tmp_path)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -9
    second = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "passed" in second.stdout
    assert "FAILPOINTS ARE ARMED" in second.stdout + second.stderr


@pytest.mark.parametrize(
    "text",
    ["nowhere=kill", "worker.claimed", "worker.claimed=die", "worker.claimed=kill:3", "worker.claimed=pause",
     "worker.claimed=pause:0", "worker.claimed=pause:x", "worker.claimed=pause:1e9"],
)  # fmt: skip
def test_what_is_malformed_is_refused(tmp_path, text):
    with pytest.raises(SettingsError, match="failpoints"):
        failpoints.arm(text, tmp_path, HOST)


def test_a_server_that_others_reach_does_not_break_on_purpose(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "CLOCHE_HOME": str(tmp_path), "CLOCHE_FAILPOINTS": "worker.claimed=kill"}
    command = [sys.executable, "-m", "cloche", "web", "--host", "0.0.0.0"]
    ended = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert ended.returncode != 0
    assert "listens on 127.0.0.1" in ended.stderr


def test_each_point_is_hit_somewhere_and_documented_with_its_own_words():
    shown = (ROOT / "docs" / "reliability.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "platform").rglob("*.py") if path.name != "failpoints.py")
    assert set(MEANING) == set(Point)
    for point in Point:
        assert f"| `{point}` | {MEANING[point]} |" in shown, point
        assert f"failpoints.hit(Point.{point.name})" in sources, f"nothing comes to {point}"
