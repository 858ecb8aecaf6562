"""The transition table: its completeness, and that the picture in the docs is drawn from it."""

import re
from pathlib import Path

import pytest

from cloche.domain import states
from cloche.domain.events import Trace
from cloche.domain.states import (
    EDGES,
    PLATFORM_REASONS,
    PLUGIN_REASONS,
    REASON_TEXT,
    RETRIABLE,
    TERMINAL,
    Reason,
    State,
)
from cloche.errors import IllegalTransition

ROOT = Path(__file__).resolve().parents[2]


def test_every_reason_has_a_sentence():
    assert set(REASON_TEXT) == set(Reason)
    assert all(text and text[0].islower() and not text.endswith(".") for text in REASON_TEXT.values())


def test_only_a_retry_by_hand_leaves_an_end_and_never_a_completed_one():
    left = {edge: reasons for edge, reasons in EDGES.items() if edge[0] in TERMINAL}
    assert {source for source, _ in left} == set(RETRIABLE) == {State.FAILED, State.CANCELED}
    assert {target for _, target in left} == {State.PENDING, State.BLOCKED}
    assert frozenset().union(*left.values()) == {Reason.RETRIED, Reason.WAITS_FOR_JOBS}


def test_the_documentation_has_every_trace_event_and_something_writes_each():
    section = (ROOT / "docs" / "states.md").read_text("utf-8").split("\n## Trace\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {event.value for event in Trace}
    code = "".join(path.read_text("utf-8") for path in (ROOT / "platform" / "cloche").rglob("*.py"))
    assert [event.name for event in Trace if f"Trace.{event.name}" not in code] == []


def test_every_state_can_be_canceled_but_the_ends():
    for state in State:
        assert (Reason.CANCELED_BY_USER in EDGES.get((state, State.CANCELED), ())) is (state not in TERMINAL)


def test_every_state_that_is_reached_can_be_left_or_is_terminal():
    reached = {target for _, target in EDGES}
    left = {source for source, _ in EDGES}
    assert reached - TERMINAL <= left


def test_fault_is_one_side_only():
    assert not PLUGIN_REASONS & PLATFORM_REASONS


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        (State.COMPLETED, State.PENDING, Reason.DUE),
        (State.PENDING, State.COMPLETED, Reason.SUCCEEDED),
        (State.PROCESSING, State.COMPLETED, Reason.CANCELED_BY_USER),
        (None, State.PROCESSING, Reason.CLAIMED),
    ],
)
def test_an_edge_that_is_not_listed_is_refused(source, target, reason):
    with pytest.raises(IllegalTransition):
        states.check(source, target, reason)


def test_the_diagram_in_the_docs_is_the_table():
    shown = (ROOT / "docs" / "states.md").read_text()
    assert states.mermaid() in shown
    for reason in Reason:
        assert f"`{reason}`" in shown
