"""Each start is on record with digests of the settings; a change between two starts says which groups, and no secret is in it."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select

from cloche import config
from cloche.db import tables as t
from cloche.db.audit_log import AuditLog
from cloche.domain.permissions import system_actor
from cloche.services.settings_record import effective, record_start
from tests.support import stores
from tests.support.jobs import KEY

PASSWORD = "a password of the first administrator"


@pytest.fixture
def started(db, tmp_path):
    """Start with such settings; the events that this left, as (action, before, after, details)."""
    actor = system_actor(stores.add_tenant(db), "web")
    audit = AuditLog(KEY)
    seen = 0

    def start(**given):
        nonlocal seen
        settings = config.load(home=str(tmp_path / "home"), admin={"password": PASSWORD}, **given)
        db.write(lambda c: record_start(c, audit, actor, settings, {"version": "1"}))
        event = t.audit_event.c
        query = select(event.action, event.before_sha256, event.after_sha256, event.details).order_by(event.id)
        rows = db.read(lambda c: c.execute(query).all())[seen:]
        seen += len(rows)
        assert PASSWORD not in repr(rows)
        return [(row[0], row[1], row[2], json.loads(row[3])) for row in rows]

    return start


def test_the_first_start_has_nothing_to_compare_with(started):
    ((action, before, after, details),) = started()
    assert (action, before) == ("platform:start", None)
    assert after
    assert details["version"] == "1"
    assert {"server", "worker", "retry"} <= {text.split()[0] for text in details["settings"]}


def test_the_same_settings_are_no_change(started):
    ((_, _, first, _),) = started()
    ((action, _, again, _),) = started()
    assert (action, again) == ("platform:start", first)


def test_a_change_names_its_groups_with_digests_before_and_after(started):
    ((_, _, first, _),) = started()
    change, start = started(worker={"slots": 7}, retry={"worker_deaths": 5})
    assert (change[0], change[1], change[3]) == ("settings:change", first, {"changed": ["retry", "worker"]})
    assert change[2] == start[2] != first
    assert started()[0][3]["changed"] == ["retry", "worker"], "and back"


def test_of_a_secret_only_whether_it_is_set_is_seen(started):
    started(database={"url": "sqlite:////tmp/one.db"})
    assert [action for action, *_ in started(database={"url": "sqlite:////tmp/two.db"})] == ["platform:start"], (
        "another value: no digest of it"
    )
    change, _ = started()
    assert (change[0], change[3]) == ("settings:change", {"changed": ["database"]})


def test_passwords_in_urls_of_stores_are_not_shown(tmp_path):
    url = "postgresql+psycopg://cloche:very-secret-word@127.0.0.1/cloche"
    shown = effective(config.load(home=str(tmp_path), database={"url": url}, admin={"password": PASSWORD}))
    assert "very-secret-word" not in json.dumps(shown)
    assert PASSWORD not in json.dumps(shown)


@pytest.mark.parametrize(
    "given",
    [
        {"secret": {"keys": "ab" * 32}},
        {"audit": {"checkpoint_webhook": "https://witness.example/s3cret"}},
    ],
)
def test_a_secret_that_is_set_or_taken_away_is_a_change(started, given):
    started()
    change, _ = started(**given)
    assert (change[0], change[3]) == ("settings:change", {"changed": list(given)})
    change, _ = started()
    assert (change[0], change[3]) == ("settings:change", {"changed": list(given)})


def test_checkpoints_that_are_turned_to_another_receiver_are_a_change(started):
    def to(url):
        return started(audit={"checkpoint_webhook": url})

    to("https://witness.example/s3cret")
    change, _ = to("https://witness.example:8443/s3cret")
    assert (change[0], change[3]) == ("settings:change", {"changed": ["audit"]})


def test_of_a_receivers_url_only_where_it_is_is_seen(tmp_path):
    url = "https://witness.example/s3cret?key=s3cret"
    shown = effective(config.load(home=str(tmp_path), audit={"checkpoint_webhook": url}))
    assert shown["audit"]["checkpoint_webhook"] == "https://witness.example:443"
    assert "s3cret" not in json.dumps(shown)
