"""How values look on a page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from cloche.clock import from_rfc3339
from cloche.domain.events import Trace
from cloche.domain.states import State
from cloche.web.dashboard import show
from cloche.web.dashboard.skeleton import fields, skeleton
from cloche.web.dashboard.waterfall import WIDTH, bars


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1024, "1 KB"), (1536, "1.5 KB"), (1 << 20, "1 MB"),
     ((1 << 20) - 1, "1 MB"), (5 << 40, "5 TB"), (5000 << 40, "5000 TB")],
)  # fmt: skip
def test_sizes(count, text):
    assert show.size(count) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [(None, "–"), (0.2, "< 1 ms"), (240, "240 ms"), (1_240, "1.24 s"), (12_340, "12.3 s"), (185_000, "3 min 5 s"),
     (7_440_000, "2 h 4 min"), (90_000_000, "1 d 1 h")],
)  # fmt: skip
def test_durations(ms, text):
    assert show.duration(ms) == text


@given(st.text())
def test_visible_text_has_no_markup_of_its_own_and_nothing_invisible(text):
    shown = show.visible(text)
    bare = Markup(shown).striptags()
    assert "<" not in shown.replace("<span", "").replace("</span>", "")
    assert not {char for char in bare if char in "\u202e\u2066\x1b\x00\r\u200b\u2028"}


def test_symbols_say_which_character_they_stand_for():
    assert show.visible("a\x1b[0m\r\nb\r") == (
        'a<span class="ctl" title="U+001B">ESC</span>[0m\nb<span class="ctl" title="U+000D">CR</span>'
    )
    assert Markup(show.visible("x\u202ey")).striptags() == "xU+202Ey"
    assert Markup(show.visible("x\u200d\ufeff\u3164\U000e0041y")).striptags() == "xU+200DU+FEFFU+3164U+E0041y"
    assert show.visible("\u2714\ufe0f") == "\u2714\ufe0f"


def test_every_state_and_trace_event_has_a_word():
    assert {str(state) for state in State} == show.STATUS_WORD.keys()
    assert {str(event) for event in Trace} == show.TRACE_WORD.keys()


@pytest.mark.parametrize(
    ("name", "kind", "shown"), [("a.PNG", None, True), ("a.svg", None, False), ("a.png", "text/html", False)]
)
def test_previews(name, kind, shown):
    assert show.previewable(name, kind) is shown


def test_a_payload_to_start_from():
    schema = {
        "type": "object",
        "required": ["name", "size", "nested"],
        "properties": {
            "name": {"type": "string"},
            "size": {"type": "integer", "minimum": 3},
            "format": {"enum": ["png", "webp"], "default": "webp"},
            "left_out": {"type": "string"},
            "nested": {"type": "object", "properties": {"deep": {"type": ["boolean", "null"], "default": True}}},
        },
    }
    assert skeleton(schema) == (
        '{\n  "name": "",\n  "size": 3,\n  "format": "webp",\n  "nested": {\n    "deep": true\n  }\n}'
    )
    kinds = [(field.name, field.kind, field.required) for field in fields(schema)]
    assert kinds[2] == ("format", 'one of "png", "webp"', False)
    assert fields(schema)[1].rules == ("at least 3",)


@pytest.mark.parametrize("schema", [{}, {"type": "array"}, {"properties": {"a": True}}, {"type": []}])
def test_any_schema_gives_an_object(schema):
    assert skeleton(schema) == "{}"


def _event(name: str, second: float, **details):
    stamp = f"2026-01-01T00:00:{second:06.3f}Z"
    return {"event_type": name, "timestamp": stamp, "attempt": 1, "details": details}


def test_bars_lie_where_their_time_was_spent():
    trace = [
        _event("accepted", 0),
        _event("claimed", 2, waited_ms=2_000),
        _event("staged_in", 3, duration_ms=1_000, count=1, files=[{"size": 2048}]),
        _event("started", 4),
        _event("finished", 9.5, duration_ms=5_000),
        _event("failed", 10, reason="out_of_memory"),
    ]
    drawn = bars(trace)
    assert [(bar.label, bar.length_ms) for bar in drawn] == [
        ("Accepted", None),
        ("Waited in its queue", 2_000),
        ("Inputs brought in", 1_000),
        ("Plugin loaded", 1_000),
        ("Plugin ran", 5_000),
        ("Failed", None),
    ]
    assert [(bar.x, bar.width) for bar in drawn][1:5] == [(0, 200), (200, 100), (300, 100), (400, 500)]
    assert drawn[2].note == "1 file, 2 KB"
    assert drawn[5].note == "the plugin used more memory than its limit"


def test_a_running_plugin_has_a_bar_until_now():
    trace = [_event("accepted", 0), _event("started", 4)]
    last = bars(trace, from_rfc3339("2026-01-01T00:00:08Z"))[-1]
    assert (last.label, last.length_ms, last.x, last.width) == ("Plugin is running", 4_000, 500, 500)
    assert len(bars(trace)) == 2


@given(st.lists(st.tuples(st.sampled_from([*Trace]), st.floats(0, 59), st.integers(0, 10**9)), max_size=12))
def test_no_bar_leaves_the_drawing(steps):
    for bar in bars([_event(str(name), second, duration_ms=ms) for name, second, ms in steps]):
        assert 0 <= bar.x <= bar.x + bar.width <= WIDTH + 0.02
