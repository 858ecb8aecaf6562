"""The short fault matrix on the real stack. Times (I6) are measured by `./run chaos` and not judged here."""

from __future__ import annotations

import pytest

from cloche.failpoints import Point
from tests.chaos import report
from tests.chaos.matrix import Shared, Verdict, run
from tests.chaos.rows import ROWS

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


SHORT = sorted(
    (row for row in ROWS if row.short), key=lambda row: (row.setting is not None, sorted(row.settings.items()))
)


@pytest.fixture(scope="module")
def stacks():
    with Shared() as shared:
        yield shared


@pytest.mark.parametrize("row", SHORT, ids=lambda row: row.name)
def test_nothing_is_lost_or_doubled(row, stacks):
    verdict = run(stacks.stack(row), row, row.short, seed=1)
    judged = {name: wrong for name, wrong in verdict.wrong.items() if name != "I6" and wrong}
    assert not judged, judged


def test_nothing_is_left_after_a_stop(stacks):
    assert not stacks.close()


def test_something_dies_at_every_failpoint():
    assert {point for row in ROWS for point in row.points} == set(Point)


def test_the_page_shows_what_is_drawn_from_the_code():
    assert report.refreshed(report.PAGE.read_text("utf-8")) == report.PAGE.read_text("utf-8"), (
        "run: .venv/bin/python -m tests.chaos --docs"
    )


def test_the_page_names_every_row():
    text = report.PAGE.read_text("utf-8")
    assert [row.name for row in ROWS if f"`{row.name}`" not in text] == []


def test_rows_that_were_run_replace_their_own_lines_alone(tmp_path):
    page = tmp_path / "page.md"
    kept = f"| `{ROWS[1].name}` | kept |"
    page.write_text(
        f"before\n{report.BEGIN}\n| `gone` | no row any more |\n{kept}\n| `{ROWS[0].name}` | old |\n{report.END}\nafter\n"
    )
    report.write([Verdict(ROWS[0], 5, 1, {"I1": ["x"]}, {"process": 1.25})], page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "`gone`" not in text
    mine = f"| `{ROWS[0].name}` | {ROWS[0].title} | 1 | 5 | **failed 1×** | held |"
    assert 0 < text.index(mine) < text.index(kept), "in the order of the rows"
