"""Migrations form one line: two that follow the same one would stop every upgrade."""

from __future__ import annotations

from alembic.script import ScriptDirectory

from cloche.db import migrate


def test_there_is_one_newest_migration():
    assert len(ScriptDirectory.from_config(migrate._config()).get_heads()) == 1
