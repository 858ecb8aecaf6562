from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from cloche.db import tables as t
from cloche.db.audit_log import AuditLog
from cloche.errors import Forbidden, Invalid, NotFound
from cloche.registry.catalog import Catalog
from cloche.services.plugins import PluginService
from tests.support.plugins import write_bundle

PARAMS = '[params]\ntype = "object"\nproperties = { width = { type = "integer", default = 3 } }\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "plugins"
    write_bundle(found, "sample", "1.0.0", more=PARAMS)
    write_bundle(found, "sample", "2.0.0")
    write_bundle(found, "sample", "3.0.0-rc.1")
    return found


def service(db, *folders: Path) -> PluginService:
    return PluginService(db, Catalog(folders), AuditLog(b"k" * 32))


def resolved(db, plugins: PluginService, spec: str | None, name: str = "sample") -> str:
    return db.read(lambda c: plugins.resolve(c, name, spec))[0].manifest.version


def open_ones(admin, plugins: PluginService) -> list[str]:
    return [item["version"] for item in plugins.list(admin) if item["enabled"]]


def recorded(db) -> list[tuple[str, str, str]]:
    event = t.audit_event
    query = select(event.c.action, event.c.object, event.c.outcome).order_by(event.c.id)
    return [tuple(row) for row in db.read(lambda c: c.execute(query).all())]


def digests(db, action: str) -> tuple[str | None, str | None]:
    event = t.audit_event.c
    here = (event.action == action) & (event.object == "plugin:sample==2.0.0")
    return db.read(lambda c: c.execute(select(event.before_sha256, event.after_sha256).where(here)).one())


def test_sync_registers_each_version_once(db, tenant: str, folder: Path):
    service(db, folder).sync(tenant)
    service(db, folder).sync(tenant)
    assert sorted(recorded(db)) == [
        ("plugin:register", f"plugin:sample=={version}", "allowed") for version in ("1.0.0", "2.0.0", "3.0.0-rc.1")
    ]
    rows = db.read(lambda c: c.execute(select(t.plugin_version)).mappings().all())
    catalog = Catalog([folder])
    assert {row["digest"] for row in rows} == {bundle.digest for bundle in catalog.bundles()}


def test_a_version_that_changed_takes_no_new_jobs(db, admin, tenant: str, folder: Path):
    service(db, folder).sync(tenant)
    (folder / "sample/2.0.0/plugin.py").write_text("# edited in place\n")
    plugins = service(db, folder)
    plugins.sync(tenant)
    assert recorded(db)[-1] == ("plugin:changed", "plugin:sample==2.0.0", "denied")
    first, found = (digests(db, action) for action in ("plugin:register", "plugin:changed"))
    assert (first[0], found[0]) == (None, first[1])
    assert found[1] not in (None, found[0])
    assert open_ones(admin, plugins) == ["3.0.0-rc.1", "1.0.0"]
    with pytest.raises(Invalid, match="publish a new version") as caught:
        resolved(db, plugins, None)
    assert caught.value.problems[0].pointer == "/version"
    assert resolved(db, plugins, "==1.*") == "1.0.0"
    # Another process that has not synced itself knows too
    assert open_ones(admin, service(db, folder)) == ["3.0.0-rc.1", "1.0.0"]


def test_a_version_that_was_put_back_is_available_again(db, tenant: str, folder: Path):
    source = folder / "sample/2.0.0/plugin.py"
    code = source.read_text()
    service(db, folder).sync(tenant)
    source.write_text("# edited\n")
    service(db, folder).sync(tenant)
    source.write_text(code)
    plugins = service(db, folder)
    plugins.sync(tenant)
    assert resolved(db, plugins, None) == "2.0.0"


def test_unknown_plugins_are_neither_resolved_nor_found(db, admin, folder: Path):
    plugins = service(db, folder)
    with pytest.raises(Invalid):
        resolved(db, plugins, "9.0.0")
    with pytest.raises(Invalid):
        resolved(db, plugins, None, "other")
    with pytest.raises(NotFound):
        plugins.get(admin, "other")
    with pytest.raises(NotFound):
        plugins.get(admin, "sample", "9.0.0")


def test_what_a_client_sees(db, admin, tenant: str, folder: Path):
    plugins = service(db, folder)
    plugins.sync(tenant)
    listed = plugins.list(admin)
    assert [(item["name"], item["version"], item["default"]) for item in listed] == [
        ("sample", "3.0.0-rc.1", False),
        ("sample", "2.0.0", True),
        ("sample", "1.0.0", False),
    ]
    one = plugins.get(admin, "sample", "1.0.0")
    assert (
        one.items()
        >= {"id": "sample==1.0.0", "enabled": True, "summary": "A sample.", "isolation": "container"}.items()
    )
    assert one["params"]["properties"]["width"]["default"] == 3
    assert one["inputs"] == {"min": 0, "max": 0, "accept": []}
    assert one["limits"]["memory"] == 256 << 20
    assert one["configuration"]["runtime"] == "runc"
    assert len(one["digest"]) == 64
    assert one["first_seen_at"].endswith("Z")
    assert plugins.get(admin, "sample")["version"] == "2.0.0"
    assert plugins.get(admin, "sample")["versions"] == ["3.0.0-rc.1", "2.0.0", "1.0.0"]


def test_seeing_plugins_needs_its_permission(db, admin, folder: Path):
    nobody = replace(admin, permissions=frozenset())
    with pytest.raises(Forbidden):
        service(db, folder).list(nobody)
    with pytest.raises(Forbidden):
        service(db, folder).get(nobody, "sample")
