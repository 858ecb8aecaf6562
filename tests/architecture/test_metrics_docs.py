"""Every metric stands in docs/operations.md with its own words and labels."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from cloche.db import tables as t
from cloche.isolation.egress import EgressReport
from cloche.services import egress
from cloche.web import metrics
from tests.support.web import running_site

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text("utf-8")
POOL = dict.fromkeys(
    ("warm", "filling", "busy", "hits", "cold_starts", "evictions", "expired", "lost", "failures", "memory"), 3
)


def test_every_metric_is_documented_and_no_other(tmp_path):
    lines = [line for line in DOCS.partition("## Metrics")[2].splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = {name.strip("`"): (set(re.findall(r"`(\w+)`", labels)), text) for name, labels, text in cells}
    with running_site(tmp_path / "home") as site:
        workers = site.services.workers
        workers.register("w1", "host-1", 1, ["default"], 2)
        pools = [{"plugin": "noop", "version": "1.0.0", "last_error": None, **POOL}] * 2
        site.services.db.write(lambda c: c.execute(t.worker.update().values(pools=pools)))
        reached = EgressReport((), 2, 10, 20, {"closed": 2})
        site.services.db.write(lambda c: egress.count(c, reached))
        place = {"name": "file", "place": "/x", "due_at": 0, "tries": 0}
        site.services.db.write(lambda c: c.execute(t.audit_sink.insert(), place))
        text = metrics.render(site.services).decode()
    families = list(text_string_to_metric_families(text))
    found = {family.name + ("_total" if family.type == "counter" else ""): family for family in families}
    assert rows.keys() == found.keys()
    for name, family in found.items():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert rows[name][0] == labels, name
        assert rows[name][1] == family.documentation, name
    (hits,) = found["cloche_pool_hits_total"].samples
    assert (hits.labels, hits.value) == ({"host": "host-1", "plugin": "noop", "version": "1.0.0"}, 6.0)
