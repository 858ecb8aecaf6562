"""The demo and the quick start, run as a user runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import PASSWORD, running

pytestmark = pytest.mark.docker

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cloche-demo-test-") as name:
        yield Path(name)


def demo(folder: Path, *files: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TMPDIR": str(folder)}
    command = [sys.executable, str(ROOT / "examples" / "demo"), *files]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.timeout(330)
def test_the_demo_holds_and_leaves_nothing(folder: Path) -> None:
    own = folder / "own.csv"
    own.write_text("city,people\nA,1\nB,2\n")
    ran = demo(folder, str(own))
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert "✗" not in ran.stdout
    assert "your own.csv" in ran.stdout
    assert re.search(r"\d+ checks held", ran.stdout)
    assert "\x1b" not in ran.stdout, "plain where there is no terminal"
    assert sorted(path.name for path in folder.iterdir()) == ["own.csv"]


def test_a_file_that_is_not_there_is_said_before_anything_starts(folder: Path) -> None:
    ran = demo(folder, str(folder / "missing.csv"))
    assert ran.returncode == 2
    assert "there is no file" in ran.stderr
    assert ran.stdout == ""


def test_the_quick_start_works_word_for_word(folder: Path) -> None:
    """Every ``bash`` block of docs/quickstart.md, in order, in one shell; only the address is another."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "quickstart.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 6
    (folder / "examples").mkdir()
    shutil.copytree(ROOT / "examples" / "data", folder / "examples" / "data")
    with running(folder, CLOCHE_ADMIN_PASSWORD=PASSWORD) as stack:
        script = "set -euo pipefail\n" + "\n".join(blocks).replace("http://127.0.0.1:8080", stack.url)
        ran = subprocess.run(
            ["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert '"status": "completed"' in ran.stdout or '"status":"completed"' in ran.stdout
    assert "# Table profile" in ran.stdout
    assert "job:submit" in ran.stdout
