"""What the documents say of egress is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from cloche.isolation.egress import Verdict

ROOT = Path(__file__).resolve().parents[2]


def test_every_verdict_is_explained_to_authors():
    table = (ROOT / "docs" / "plugins.md").read_text().partition("| verdict | |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \| \S", table, re.MULTILINE) == [verdict.value for verdict in Verdict]


def test_metrics_and_trace_events_are_documented():
    operations, rest = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("operations", "rest"))
    for word in ("cloche_egress_connections_total", "cloche_egress_bytes_total", "egress_connections"):
        assert word in operations
    for word in ("egress_connection", "egress_closed", "egress_denied", "egress_policy:update"):
        assert f"`{word}`" in rest
