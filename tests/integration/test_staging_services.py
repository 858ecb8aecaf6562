"""Files and remotes as the REST layer uses them: tenants, audit, encryption, versions."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import pytest
from sqlalchemy import select, update

from cloche.clock import uuid7
from cloche.db import tables as t
from cloche.db.audit_log import AuditLog
from cloche.errors import Conflict, Forbidden, Invalid, NotFound, TooLarge, Unavailable
from cloche.queueing.memory_broker import MemoryBroker
from cloche.redact import MASK
from cloche.services import remotes as remotes_module
from cloche.services.files import FileService
from cloche.services.remotes import RemoteService
from cloche.staging.artifacts import GRACE_S, ArtifactStore
from cloche.staging.vault import OptionVault
from tests.support import jobs, stores
from tests.support import rclone as support

URL = "https://93.184.216.34/dav"
OPTIONS = {"url": URL, "user": "u", "pass": "geheim"}


@pytest.fixture
def audit() -> AuditLog:
    return AuditLog(b"k" * 32)


@pytest.fixture
def store(home: Path) -> ArtifactStore:
    return ArtifactStore(home / "artifacts")


@pytest.fixture
def files(db, store, audit) -> FileService:
    return FileService(db, store, audit)


@pytest.fixture
def remotes(db, home: Path, audit):
    with support.daemon(home / "run", allow_addresses=False) as daemon:
        yield RemoteService(db, audit, OptionVault.load_or_create(home / "keys" / "remotes.key"), daemon)


@pytest.fixture
def stranger(db):
    return stores.add_actor(db, stores.add_tenant(db, "elsewhere"), "mallory")


def events(db) -> list[tuple[str, str, dict]]:
    columns = t.audit_event.c
    rows = db.read(
        lambda c: c.execute(select(columns.action, columns.object, columns.details).order_by(columns.id)).all()
    )
    return [(row.action, row.object, json.loads(row.details)) for row in rows]


def upload(
    files: FileService, actor, data: bytes = b"a,b\n", name: str = "t.csv", kind: str | None = None, limit: int = 100
):
    return files.upload(actor, name, kind, io.BytesIO(data), limit)


def test_a_file_goes_in_and_comes_out(db, files: FileService, admin) -> None:
    made = upload(files, admin)
    assert set(made) == {"id", "name", "size", "sha256", "media_type", "created_at"}
    assert (made["name"], made["size"], made["media_type"]) == ("t.csv", 4, "text/csv")
    assert made["sha256"] == hashlib.sha256(b"a,b\n").hexdigest()
    assert files.get(admin, made["id"]) == made
    with files.open(admin, made["id"]) as stream:
        assert stream.read() == b"a,b\n"
    assert events(db) == [
        ("file:create", f"file:{made['id']}", {key: made[key] for key in ("name", "size", "sha256", "media_type")})
    ]


def test_another_tenants_file_does_not_exist(files: FileService, admin, stranger) -> None:
    made = upload(files, admin)
    for act in (files.get, files.open, files.delete):
        for file_id in (made["id"], uuid7(), "nonsense", "../x"):
            with pytest.raises(NotFound):
                act(stranger, file_id)
    assert files.get(admin, made["id"]) == made


def test_uploads_that_are_refused_leave_nothing(db, files: FileService, store, admin) -> None:
    with pytest.raises(TooLarge):
        upload(files, admin, b"x" * 101)
    for name in ("", ".", "..", "a/b", "a\\b", "a\nb", "-rf", "x" * 256, "\ud800"):
        with pytest.raises(Invalid) as refusal:
            upload(files, admin, name=name)
        assert refusal.value.problems[0].pointer == "/name"
    assert events(db) == []
    assert store.tenants() == [] or list(store.tenant(admin.tenant_id).digests()) == []


def test_names_and_types_are_made_plain(files: FileService, admin) -> None:
    made = upload(files, admin, name="U\u0308bersicht.PNG", kind="application/octet-stream")
    assert (made["name"], made["media_type"]) == ("Übersicht.PNG", "image/png")
    assert upload(files, admin, kind="Text/Plain; charset=utf-8")["media_type"] == "text/plain"
    assert upload(files, admin, kind="x\r\nSet-Cookie: a=b/c")["media_type"] == "text/csv"


def test_delete_takes_the_content_with_the_last_name(db, files: FileService, store, admin) -> None:
    one, two = upload(files, admin), upload(files, admin, name="again.csv")
    path = store.tenant(admin.tenant_id).path(one["sha256"])
    os.utime(path, (1, 1))
    files.delete(admin, one["id"])
    assert path.exists(), "the other file has the same content"
    files.delete(admin, two["id"])
    assert not path.exists()
    assert [action for action, _, _ in events(db)] == ["file:create", "file:create", "file:delete", "file:delete"]
    with pytest.raises(NotFound):
        files.delete(admin, two["id"])


def test_young_content_waits_for_the_sweep(files: FileService, store, admin) -> None:
    kept, gone = upload(files, admin, b"kept"), upload(files, admin, b"gone")
    path = store.tenant(admin.tenant_id).path(gone["sha256"])
    files.delete(admin, gone["id"])
    assert path.exists()
    assert files.sweep() == 0
    old = path.stat().st_mtime - GRACE_S - 1
    for sha256 in (kept["sha256"], gone["sha256"]):
        os.utime(store.tenant(admin.tenant_id).path(sha256), (old, old))
    assert files.sweep() == 1
    assert not path.exists()
    with files.open(admin, kept["id"]) as stream:
        assert stream.read() == b"kept"


def test_a_file_that_a_job_waits_for_stays(db, files: FileService, admin) -> None:
    made = upload(files, admin)
    source = {"from": f"artifact:{made['id']}", "to": "t.csv", "sha256": made["sha256"]}
    job_id = jobs.submit(db, MemoryBroker(), admin, inputs=[source])
    with pytest.raises(Conflict, match=job_id):
        files.delete(admin, made["id"])
    db.write(lambda c: c.execute(t.job.update().values(state="completed")))
    files.delete(admin, made["id"])


def test_only_its_owner_and_administrators_delete_a_file(db, files: FileService, admin, tenant) -> None:
    bob, eve = (stores.add_actor(db, tenant, name, "submitter") for name in ("bob", "eve"))
    made = upload(files, bob)
    with pytest.raises(Forbidden):
        files.delete(eve, made["id"])
    files.delete(admin, made["id"])
    files.delete(bob, upload(files, bob)["id"])


def test_lost_content_is_said_to_be_ours(files: FileService, store, admin) -> None:
    made = upload(files, admin)
    store.tenant(admin.tenant_id).remove(made["sha256"])
    with pytest.raises(Unavailable):
        files.open(admin, made["id"])


def test_a_remote_shows_no_secret_anywhere(db, remotes: RemoteService, admin, home: Path) -> None:
    made = remotes.create(admin, "dav", "webdav", OPTIONS)
    assert made["options"] == {"url": URL, "user": "u", "pass": MASK}
    assert (made["name"], made["type"], made["version"]) == ("dav", "webdav", 1)
    assert remotes.get(admin, "dav") == made
    assert remotes.list(admin) == [made]
    assert remotes.config_for(admin.tenant_id, "dav").options == OPTIONS
    changed = remotes.update(admin, "dav", {"user": "v", "root": "team"}, 1)
    assert changed["version"] == 2
    assert changed["options"] == {"url": URL, "user": "v", "pass": MASK, "root": "team"}
    assert remotes.config_for(admin.tenant_id, "dav").options["pass"] == "geheim"
    remotes.delete(admin, "dav", 2)
    assert remotes.list(admin) == []
    assert [(a, o, d.get("changed")) for a, o, d in events(db)] == [
        ("remote:create", "remote:dav", ["pass", "url", "user"]),
        ("remote:update", "remote:dav", ["root", "user"]),
        ("remote:delete", "remote:dav", None),
    ]
    for path in home.rglob("*"):
        if path.is_file():
            assert b"geheim" not in path.read_bytes()
    assert b"geheim" not in stores.everything(db)


def test_another_tenants_remote_does_not_exist(remotes: RemoteService, admin, stranger) -> None:
    remotes.create(admin, "dav", "webdav", OPTIONS)
    assert remotes.list(stranger) == []
    for act in (
        lambda: remotes.get(stranger, "dav"),
        lambda: remotes.update(stranger, "dav", {"user": "v"}, 1),
        lambda: remotes.delete(stranger, "dav", 1),
        lambda: remotes.test(stranger, "dav"),
        lambda: remotes.config_for(stranger.tenant_id, "dav"),
    ):
        with pytest.raises(NotFound):
            act()
    remotes.create(stranger, "dav", "webdav", OPTIONS | {"user": "theirs"})
    assert remotes.get(admin, "dav")["options"]["user"] == "u"


def test_a_row_copied_to_another_tenant_does_not_open(db, remotes: RemoteService, admin, stranger) -> None:
    remotes.create(admin, "dav", "webdav", OPTIONS)
    remotes.create(stranger, "dav", "webdav", OPTIONS | {"pass": "own"})
    row = t.remote.c
    stolen = db.read(
        lambda c: c.execute(select(row.options_encrypted).where(row.tenant_id == admin.tenant_id)).scalar_one()
    )
    db.write(
        lambda c: c.execute(
            t.remote.update().where(row.tenant_id == stranger.tenant_id).values(options_encrypted=stolen)
        )
    )
    with pytest.raises(Unavailable, match="decrypted"):
        remotes.get(stranger, "dav")


def test_a_secret_does_not_follow_its_remote_to_another_server(remotes: RemoteService, admin) -> None:
    remotes.create(admin, "dav", "webdav", OPTIONS)
    with pytest.raises(Invalid) as refusal:
        remotes.update(admin, "dav", {"url": "https://1.1.1.1/"}, 1)
    assert refusal.value.problems[0].pointer == "/options/pass"
    with pytest.raises(Invalid, match="not saved"):
        remotes.update(admin, "dav", {"pass": MASK}, 1)
    moved = remotes.update(admin, "dav", {"url": "https://1.1.1.1/", "pass": "neu"}, 1)
    assert moved["options"]["url"] == "https://1.1.1.1/"
    assert "pass" not in remotes.update(admin, "dav", {"pass": None, "user": None}, 2)["options"]


def test_a_change_over_a_change_is_refused(remotes: RemoteService, admin) -> None:
    remotes.create(admin, "dav", "webdav", OPTIONS)
    remotes.update(admin, "dav", {"user": "v"}, 1)
    with pytest.raises(Conflict):
        remotes.update(admin, "dav", {"user": "w"}, 1)
    with pytest.raises(Conflict):
        remotes.update(admin, "dav", {"user": "w"}, 7)
    with pytest.raises(Conflict):
        remotes.delete(admin, "dav", 1)
    assert remotes.get(admin, "dav")["options"]["user"] == "v"


def test_a_removal_does_not_take_what_was_changed_meanwhile(db, remotes: RemoteService, admin, monkeypatch) -> None:
    """On PostgreSQL somebody else's change can end between the removal's two statements; on SQLite nobody writes then."""
    remotes.create(admin, "dav", "webdav", OPTIONS)
    read = remotes_module._found

    def meanwhile(connection, *arguments):
        row = read(connection, *arguments)
        monkeypatch.setattr(remotes_module, "_found", read)
        if db.kind == "postgresql":
            remotes.update(admin, "dav", {"user": "v"}, 1)
        else:
            connection.execute(update(t.remote).values(version=t.remote.c.version + 1))
        return row

    monkeypatch.setattr(remotes_module, "_found", meanwhile)
    with pytest.raises(Conflict):
        remotes.delete(admin, "dav", 1)
    remotes.get(admin, "dav")


def test_bad_remotes_are_refused_and_not_stored(db, remotes: RemoteService, admin) -> None:
    for name in ("", "a b", "../x", "UPPER", "x" * 33, "artifact", "a:b", "name,x=y"):
        with pytest.raises(Invalid) as refusal:
            remotes.create(admin, name, "webdav", OPTIONS)
        assert refusal.value.problems[0].pointer == "/name"
    for options in (
        OPTIONS | {"bearer_token_command": "touch /tmp/X"},
        OPTIONS | {"url": "http://127.0.0.1:9/"},
        OPTIONS | {"url": "https://169.254.169.254/"},
        OPTIONS | {"pass": MASK},
        {},
    ):
        with pytest.raises(Invalid):
            remotes.create(admin, "dav", "webdav", options)
    remotes.create(admin, "dav", "webdav", OPTIONS)
    with pytest.raises(Conflict):
        remotes.create(admin, "dav", "webdav", OPTIONS)
    assert [action for action, _, _ in events(db)] == ["remote:create"]


@pytest.mark.parametrize("kind", ["webdav", "s3", "sftp"])
def test_test_tells_what_is_wrong(db, home: Path, audit, admin, kind: str) -> None:
    vault = OptionVault.load_or_create(home / "keys" / "remotes.key")
    secret = "secret_access_key" if kind == "s3" else "pass"
    with support.daemon(home / "run") as daemon:
        service = RemoteService(db, audit, vault, daemon)
        with support.serving(kind, home / "srv" / "garden") as server:
            (server.folder / "a.txt").write_bytes(b"a")
            service.create(admin, "good", kind, server.options)
            service.create(admin, "bad", kind, server.options | {secret: "wrong-" * 4})
            assert service.test(admin, "good") == {"ok": True, "detail": "the root lists 1 entries"}
            refused = service.test(admin, "bad")
            assert not refused["ok"]
            assert refused["detail"].startswith("the server refused")
            assert server.options[secret] not in json.dumps(refused)
        gone = service.test(admin, "good")
        assert not gone["ok"]
        assert "could not be used" in gone["detail"]


def test_test_without_rclone_is_unavailable(db, home: Path, audit, admin) -> None:
    from cloche.staging.rclone import RcloneDaemon

    daemon = RcloneDaemon(home / "no-rclone", home / "run", allow_addresses=True)
    service = RemoteService(db, audit, OptionVault.load_or_create(home / "k"), daemon)
    service.create(admin, "dav", "webdav", OPTIONS)
    with pytest.raises(Unavailable, match="no rclone"):
        service.test(admin, "dav")
