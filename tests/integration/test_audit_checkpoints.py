"""Checkpoints that leave the machine: to a file, to a real remote, to a real receiver; what fails is shown, recorded once, and tried again."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest
from sqlalchemy import select

from cloche import config, wiring
from cloche.audit.note import notes_in
from cloche.audit.offline import Trust, verify_store
from cloche.db import tables
from cloche.domain.callbacks import parse_reach, parse_url
from cloche.errors import SettingsError
from cloche.services import checkpoint_sinks
from cloche.services.audit_keeping import rotate_signing_key
from cloche.services.checkpoint_sinks import CheckpointSender, Sink, file_sink, remote_sink, webhook_sink
from cloche.services.remotes import RemoteService
from cloche.staging.transfer import RemoteFiles, never
from cloche.staging.vault import OptionVault
from cloche.webhooks.client import Sender
from cloche.worker import scheduler
from tests.support import rclone, stores
from tests.support.audit import Platform
from tests.support.receiver import answers, receiving, writes

HOUR = 3_600_000


@pytest.fixture
def platform(tmp_path, database_url):
    platform = Platform(tmp_path / "home", database_url)
    stores.add_tenant(platform.db)
    yield platform.filled(2, 1)
    platform.db.close()


def _sender(platform: Platform, *sinks: Sink, interval_ms: int = HOUR) -> CheckpointSender:
    return CheckpointSender(platform.db, platform.log, sinks, interval_ms, b"k" * 32)


def _state(platform: Platform, name: str = "file"):
    query = select(tables.audit_sink).where(tables.audit_sink.c.name == name)
    return platform.db.read(lambda c: c.execute(query).mappings().one())


def _due(platform: Platform) -> None:
    platform.db.write(lambda c: c.execute(tables.audit_sink.update().values(due_at=0)))


def _recorded(platform: Platform) -> list[tuple[str, dict]]:
    event = tables.audit_event.c
    query = select(event.outcome, event.details).where(event.action == "checkpoint:send").order_by(event.id)
    return [(row.outcome, json.loads(row.details)) for row in platform.db.read(lambda c: c.execute(query).all())]


def _valid(platform: Platform, kept: str) -> int:
    keys = platform.keyring
    return verify_store(platform.url, Trust(keys.verifier, keys.hmac_keys()), checkpoint=kept).exit_code


def test_each_new_checkpoint_is_appended_when_it_is_due(platform, tmp_path):
    path = tmp_path / "kept"
    sender = _sender(platform, file_sink(path))
    assert [sender.run_once() for _ in range(3)] == [1, 0, 0]
    platform.filled(1, 1)
    assert sender.run_once() == 0  # the interval is not over
    _due(platform)
    assert [sender.run_once(), sender.run_once()] == [1, 0]
    _due(platform)
    assert sender.run_once() == 0  # nothing new
    notes = notes_in(path.read_text())
    assert ["batch 1\n" in notes[0], "batch 2\n" in notes[1], len(notes)] == [True, True, 2]
    assert _valid(platform, path.read_text()) == 0
    assert _recorded(platform) == []
    assert _state(platform)["number"] == 2


def test_what_announces_a_key_is_never_left_out(platform, tmp_path):
    path = tmp_path / "kept"
    sender = _sender(platform, file_sink(path))
    sender.run_once()
    rotate_signing_key(platform.db, platform.keyring)
    platform.filled(2, 1)
    _due(platform)
    sender.run_once()
    assert [line for line in path.read_text().splitlines() if line.startswith("batch ")] == [
        "batch 1",
        "batch 2",
        "batch 4",
    ]
    assert _valid(platform, path.read_text()) == 0


def test_a_line_torn_by_a_crash_does_not_spoil_the_next_note(platform, tmp_path):
    path = tmp_path / "kept"
    sender = _sender(platform, file_sink(path))
    sender.run_once()
    whole = path.read_text()
    path.write_text(whole + whole[:60])
    platform.filled(1, 1)
    _due(platform)
    sender.run_once()
    assert len(notes_in(path.read_text())) == 2
    assert _valid(platform, path.read_text()) == 0


def test_a_link_is_not_followed(platform, tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "kept").symlink_to(target)
    _sender(platform, file_sink(tmp_path / "kept")).run_once()
    assert target.read_text() == "precious"
    assert _state(platform)["tries"] == 1


def test_what_fails_is_shown_recorded_once_and_tried_again(platform, tmp_path):
    folder = tmp_path / "share"
    sender = _sender(platform, file_sink(folder / "kept"))
    for tries in (1, 2, 3):
        _due(platform)
        assert sender.run_once() == 0
        assert _state(platform)["tries"] == tries
    assert _state(platform)["due_at"] - platform.db.now_ms() <= 20_000  # 5 s, 10 s, 20 s …
    ((place, since, why),) = platform.db.read(checkpoint_sinks.failing)
    assert "file" in place and since > 0 and "No such file" in why
    ((outcome, details),) = _recorded(platform)
    assert (outcome, details["tries"]) == ("failed", 1)
    folder.mkdir()
    _due(platform)
    assert sender.run_once() == 1
    assert platform.db.read(checkpoint_sinks.failing) == []
    assert [outcome for outcome, _ in _recorded(platform)] == ["failed", "allowed"]
    platform.sealer.run_once()
    assert platform.verify().exit_code == 0


def test_two_schedulers_send_it_once(platform, tmp_path):
    sinks = [file_sink(tmp_path / "kept")]
    first, second = _sender(platform, *sinks), _sender(platform, *sinks)
    assert first.run_once() + second.run_once() == 1


def test_another_place_begins_anew_and_one_that_is_no_longer_named_is_forgotten(platform, tmp_path):
    _sender(platform, file_sink(tmp_path / "a")).run_once()
    assert _sender(platform, file_sink(tmp_path / "b")).run_once() == 1
    assert (tmp_path / "b").exists()
    assert _sender(platform).run_once() == 0
    assert platform.db.read(checkpoint_sinks.states) == []


def test_another_path_of_the_same_receiver_is_another_place(platform, witness):
    first = _sender(platform, _webhook(witness, "/kept/s3cret"))
    assert first.run_once() == 1
    second = _sender(platform, _webhook(witness, "/kept/an0ther"))
    assert (second.run_once(), second.run_once()) == (1, 0)
    assert [got.line.split()[1] for got in witness.got] == ["/kept/s3cret", "/kept/an0ther"]
    again = _sender(platform, _webhook(witness, "/kept/an0ther"))
    assert again.run_once() == 0, "the same place, after a restart"
    row = dict(_state(platform, "webhook"))
    assert row["place"] == f"http://127.0.0.1:{witness.port}"
    assert "s3cret" not in repr(row) and "an0ther" not in repr(row)


def test_a_place_written_before_places_had_marks_begins_anew(platform, tmp_path):
    sender = _sender(platform, file_sink(tmp_path / "kept"))
    sender.run_once()
    platform.db.write(lambda c: c.execute(tables.audit_sink.update().values(mark="")))
    assert _sender(platform, file_sink(tmp_path / "kept")).run_once() == 1


def test_a_scheduler_with_the_settings_of_before_sends_to_the_old_place_no_more(platform, tmp_path):
    old = _sender(platform, file_sink(tmp_path / "old"))
    old.run_once()
    new = _sender(platform, file_sink(tmp_path / "new"))
    new.run_once()
    platform.filled(1, 1)
    _due(platform)
    assert old.run_once() == 0
    assert _state(platform)["number"] == 1
    assert new.run_once() == 1
    assert len(notes_in((tmp_path / "old").read_text())) == 1


def test_what_was_sent_to_the_place_of_before_vouches_for_nothing_at_the_new_one(platform, tmp_path):
    """The settings change while a sending is under way."""
    new = _sender(platform, file_sink(tmp_path / "gone" / "new"))
    slow = file_sink(tmp_path / "old")

    def send(sealed):
        slow.send(sealed)
        assert new.run_once() == 0

    _sender(platform, replace(slow, send=send)).run_once()
    row = _state(platform)
    assert (row["place"], row["number"], row["tries"]) == (str(tmp_path / "gone" / "new"), None, 1)


@pytest.mark.parametrize("fails", [False, True])
def test_a_sending_slower_than_its_claim_sets_nothing_back(platform, tmp_path, fails):
    """Another scheduler has sent a newer checkpoint meanwhile."""
    place = file_sink(tmp_path / "kept")

    def send(sealed):
        platform.filled(1, 1)
        _due(platform)
        assert _sender(platform, place).run_once() == 1
        if fails:
            raise OSError("at last")

    _sender(platform, replace(place, send=send)).run_once()
    row = _state(platform)
    assert (row["number"], row["tries"], row["failing_since"]) == (2, 0, None)
    assert _recorded(platform) == []


def test_a_scheduler_whose_settings_name_no_place_forgets_them_all(platform, tmp_path):
    _sender(platform, file_sink(tmp_path / "gone" / "kept")).run_once()
    assert platform.db.read(checkpoint_sinks.failing)
    settings = config.load(home=str(platform.home))
    rclone_never_asked = None
    sender = scheduler._checkpoints(settings, platform.db, platform.log, rclone_never_asked, threading.Event())
    assert sender.run_once() == 0
    assert platform.db.read(checkpoint_sinks.failing) == platform.db.read(checkpoint_sinks.states) == []


def test_a_remote_gets_a_file_for_each(platform, tmp_path, home):
    tenant = platform.db.read(checkpoint_sinks.default_tenant)
    admin = stores.add_actor(platform.db, tenant, "alma")
    with rclone.serving("webdav", tmp_path / "vault") as server, rclone.daemon(home / "run") as daemon:
        vault = OptionVault.load_or_create(home / "keys" / "remotes.key")
        remotes = RemoteService(platform.db, platform.log, vault, daemon)
        remotes.create(admin, "vault", "webdav", server.options)
        files = RemoteFiles(daemon, remotes.config_for, tenant, never)
        sender = _sender(platform, remote_sink("vault:cloche/kept", files))
        assert sender.run_once() == 1
        platform.sealer.run_once()
        _due(platform)
        assert sender.run_once() == 1
        names = sorted(path.name for path in (tmp_path / "vault/cloche/kept").iterdir())
        assert [name[:24] for name in names] == ["checkpoint-000000000001-", "checkpoint-000000000002-"]
        kept = "".join((tmp_path / "vault/cloche/kept" / name).read_text() for name in names)
        assert _valid(platform, kept) == 0
        # A rolled back database seals another batch under the same number: what is there stays as it is
        remote_sink("vault:cloche/kept", files).send([checkpoint_sinks.Sealed(2, "another\n")])
        assert len(list((tmp_path / "vault/cloche/kept").iterdir())) == 3
        assert "".join((tmp_path / "vault/cloche/kept" / name).read_text() for name in names) == kept
        lost = _sender(platform, remote_sink("nowhere:x", files))
        assert lost.run_once() == 0
        assert "nowhere" in _state(platform, "remote")["error"]


@pytest.fixture
def witness():
    with receiving() as receiver:
        yield receiver


def _webhook(receiver, path="/kept/s3cret?key=s3cret"):
    target = parse_url(f"http://127.0.0.1:{receiver.port}{path}")
    return webhook_sink(target, Sender(parse_reach(True, [target.authority]), 2.0))


def test_a_webhook_gets_what_a_file_would_hold(platform, witness):
    sender = _sender(platform, _webhook(witness))
    assert [sender.run_once(), sender.run_once()] == [1, 0]
    rotate_signing_key(platform.db, platform.keyring)
    platform.filled(2, 1)
    _due(platform)
    assert sender.run_once() == 1
    first, second = witness.got
    assert first.line == "POST /kept/s3cret?key=s3cret HTTP/1.1"
    assert (first.headers["content-type"], first.headers["cloche-batch"]) == ("text/plain; charset=utf-8", "1")
    assert len(notes_in(second.body.decode())) >= 2, "what announces the key as well"
    assert _valid(platform, (first.body + second.body).decode()) == 0


@pytest.mark.parametrize(
    ("behave", "says"),
    [
        (answers(500), "answered 500"),
        (answers(302, Location="http://127.0.0.1/"), "redirects are not followed"),
        (writes(b"nonsense\r\n\r\n"), "not HTTP/1.1"),
        (writes(b""), "ended before an answer"),
    ],
)
def test_a_webhook_that_does_not_take_it_is_tried_again_and_its_url_is_shown_nowhere(platform, witness, behave, says):
    witness.behaviour = [behave]
    sender = _sender(platform, _webhook(witness))
    assert sender.run_once() == 0
    row = _state(platform, "webhook")
    assert (row["place"], row["number"]) == (f"http://127.0.0.1:{witness.port}", None)
    assert says in row["error"]
    _due(platform)
    assert sender.run_once() == 1
    assert "s3cret" not in repr([dict(_state(platform, "webhook")), _recorded(platform)])
    assert [outcome for outcome, _ in _recorded(platform)] == ["failed", "allowed"]


@pytest.mark.parametrize(
    "url", ["witness.example", "ftp://x/y", "https://u:s3cret@x/", "https://x/#s3cret", "https://x:22/"]
)
def test_an_url_that_is_none_is_refused_at_the_start(tmp_path, url):
    settings = config.load(home=str(tmp_path), audit={"checkpoint_webhook": url})
    with pytest.raises(SettingsError, match=r"audit\.checkpoint_webhook") as refused:
        wiring.build(settings, "test")
    assert "s3cret" not in str(refused.value)


def test_readiness_warns_and_stays_ready(tmp_path, database_url):
    from tests.support.web import running_site

    with running_site(tmp_path / "home", database=database_url) as site:
        row = {
            "name": "file",
            "place": "/x",
            "due_at": 0,
            "tries": 3,
            "failing_since": 1_700_000_000_000,
            "error": "full",
        }
        site.services.db.write(lambda c: c.execute(tables.audit_sink.insert(), row))
        (warning,) = site.client().get("/readyz").json["warnings"]
        assert (warning["part"], warning["reason"]) == ("checkpoints", "file /x: full")
        assert site.client().get("/readyz").json["reasons"] == ["no worker is alive"]


def test_where_a_place_is_only_the_operator_reads(tmp_path, database_url):
    from tests.support.web import running_site

    with running_site(tmp_path / "home", database=database_url) as site:
        site.add("vera", "viewer")
        site.add("adam", "admin")
        row = {"name": "file", "place": "/mnt/x", "due_at": 0, "tries": 3, "failing_since": 1, "error": "/mnt/x: full"}
        site.services.db.write(lambda c: c.execute(tables.audit_sink.insert(), row))

        def told(user):
            headers = site.headers(user)
            answer = site.client().get("/readyz", headers=headers, environ_overrides={"REMOTE_ADDR": "198.51.100.7"})
            assert answer.json["reasons"] == ["no worker is alive"]
            return [warning["reason"] for warning in answer.json["warnings"]]

        assert told("vera") == told("adam") == ["checkpoints do not reach the file"]
        assert told("admin") == ["file /mnt/x: /mnt/x: full"]
