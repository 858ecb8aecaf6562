"""Ranges of user ids that would meet are refused at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloche import config
from cloche.errors import SettingsError


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"egress": {"uid": 210_000}}, "egress.uid"),
        ({"egress": {"uid": 327_680 + 64 * 256 - 1}}, "egress.uid"),
        ({"cells": {"uid_base": 212_992}}, "cells.uid_base"),
        ({"sandbox": {"uid_base": 327_680}}, "cells.uid_base"),
    ],
)
def test_ranges_that_meet_are_refused(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        config.load(home=tmp_path, **settings)


def test_those_that_do_not_are_taken(tmp_path: Path) -> None:
    beyond = 327_680 + 64 * 256
    assert config.load(home=tmp_path, egress={"uid": beyond}).egress.uid == beyond
