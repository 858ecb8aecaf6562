"""A running job against DESIGN §5, line by line, and against docs/threat-model.md, which shows the same table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import sandbox as support
from tests.support.inspection import Row, Seen, markdown, running
from tests.support.inspection_rows import BIG, ROWS

MODEL = (Path(__file__).parents[2] / "docs" / "threat-model.md").read_text()
NOT_IN_A_CONTAINER = {"5.6"}  # a point on the image, which has no sshd: the probe `root_programs` looks for programs


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with support.temporary_home() as folder, support.running_sandboxd(folder):
        yield folder


@pytest.fixture(scope="module")
def seen(home: Path) -> Iterator[Seen]:
    with running(home) as job:
        yield job


@pytest.fixture(scope="module")
def on_disk(home: Path) -> Iterator[Seen]:
    with running(home, output=BIG) as job:
        yield job


@pytest.mark.docker
@pytest.mark.parametrize("row", ROWS, ids=lambda row: re.sub(r"[^A-Za-z0-9]+", "-", row.where).strip("-")[:60])
def test_what_is_promised_is_seen(request: pytest.FixtureRequest, row: Row) -> None:
    job = request.getfixturevalue("on_disk" if row.shown.startswith("ext4") else "seen")
    assert row.read(job) == row.shown


def test_the_threat_model_shows_this_table() -> None:
    assert markdown(ROWS) in MODEL, f"docs/threat-model.md lacks this table:\n{markdown(ROWS)}"


def test_every_point_of_the_benchmark_is_seen_in_a_job() -> None:
    """Each answer to CIS section 5 that speaks of a container rests on a row above, and no row answers a point that is not told."""
    section = MODEL[MODEL.index("## CIS Docker Benchmark") :]
    first = [line.split("|")[1] for line in section.splitlines() if line.startswith("| 5.")]
    told = {point for cell in first for point in re.findall(r"\b5\.\d+\b", cell)}
    assert told == {point for row in ROWS for point in row.points} | NOT_IN_A_CONTAINER
    assert told == {f"5.{number}" for number in range(1, 32)}
