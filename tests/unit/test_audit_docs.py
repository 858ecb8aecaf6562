from __future__ import annotations

import re
from pathlib import Path

from cloche.audit.event import Event
from cloche.domain.events import Action

_TEXT = (Path(__file__).parents[2] / "docs" / "audit.md").read_text("utf-8")


def _section(title: str) -> str:
    return _TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_action_is_listed_once_with_a_sentence():
    rows = re.findall(r"^\| `([a-z_:]+)` \| (.+) \|$", _section("Actions"), re.MULTILINE)
    assert [name for name, _ in rows] == [action.value for action in Action]
    assert all(sentence.endswith(".") for _, sentence in rows)


def test_every_column_is_listed():
    section = _section("What an event holds")
    named = {
        name
        for cell in re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
        for name in re.findall(r"`([a-z0-9_]+)`", cell)
    }
    assert named == set(Event._fields)
