"""The trail over REST and on the command line: filters, proofs, exports, keys, and that reading is in it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from cloche.audit.keys import PUBLIC_FILE, KeyRing
from cloche.audit.offline import verify_export
from cloche.cli.commands.audit import audit
from cloche.db import tables
from cloche.errors import EnvironmentProblem
from cloche.services.sealer import Sealer
from tests.support.web import problem, running_site


@pytest.fixture
def site(tmp_path, database_url):
    with running_site(tmp_path / "home", database=database_url) as site:
        site.add("vera", "viewer")
        site.add("audrey", "auditor")
        yield site


@pytest.fixture(autouse=True)
def one_minute(monkeypatch):
    """What counts for a minute here is told apart by counting alone: a minute that ended in mid-test would forget what was read."""
    monkeypatch.setattr("cloche.services.audit_reads._MINUTE_MS", 1 << 60)


@pytest.fixture
def sealed(site):
    site.upload()
    Sealer(site.services.db, site.services.keyring, "test").run_once()
    return site


def _events(site, user="audrey", **filters):
    answer = site.request("GET", "/audit", user, query_string=filters)
    assert answer.status_code == 200, answer.text
    return answer.json["items"]


def _run(site, *arguments):
    home, url = str(site.services.settings.home), site.services.db.url
    environment = {"CLOCHE_DATABASE_URL": url if url.startswith("postgresql") else f"sqlite:///{site.services.db.path}"}
    return CliRunner().invoke(audit, [*arguments, "--home", home], standalone_mode=False, env=environment)


def _keys(site):
    return site.services.settings.home / "keys" / PUBLIC_FILE


def test_filters_say_who_what_when_where_and_how_it_ended(site):
    upload = site.upload()
    site.request("GET", "/audit", "vera")
    assert {item["actor"] for item in _events(site, actor="admin")} == {"admin"}
    assert [item["object"] for item in _events(site, action="file:create")] == [f"file:{upload['id']}"]
    assert [item["action"] for item in _events(site, object=f"file:{upload['id']}")] == ["file:create"]
    assert [item["action"] for item in _events(site, outcome="denied")] == ["access:deny"]
    assert _events(site, ip="127.0.0.1")
    assert _events(site, ip="192.0.2.1") == []
    assert _events(site, until="2020-01-01T00:00:00Z") == []
    problem(site.request("GET", "/audit", "audrey", query_string={"colour": "red"}), 422)


def test_a_proof_is_checked_with_the_public_key_alone(sealed, tmp_path):
    (event,) = _events(sealed, action="file:create")
    proof = sealed.request("GET", f"/audit/{event['seq']}/proof", "audrey").json
    assert proof == sealed.request("GET", f"/audit/{event['id']}/proof", "audrey").json
    path = tmp_path / "proof.json"
    path.write_text(json.dumps(proof))
    done = _run(sealed, "verify", "--proof", str(path), "--public-key", str(_keys(sealed)), "-o", "name")
    assert (done.return_value, done.output.strip()) == (0, "valid"), done.output
    for change in (
        lambda p: p["event"].update(outcome="denied"),
        lambda p: p.update(seq=p["seq"] + 1),
        lambda p: p["path"].reverse(),
        lambda p: p.update(path=p["path"][:-1]),
        lambda p: p.update(path="x"),
        lambda p: p.update(note=p["note"].replace("batch", "batsh")),
        lambda p: p.update(note=None, announcements=[1]),
        lambda p: p.update(leaf="0" * 64),
        lambda p: p["event"].update(at="x"),
        lambda p: p["event"].pop("mac"),
        lambda p: p["people"][0].update(value="mallory"),
        lambda p: p.update(people=[{}]),
    ):
        changed = json.loads(json.dumps(proof))
        change(changed)
        path.write_text(json.dumps(changed))
        done = _run(sealed, "verify", "--proof", str(path), "-o", "name")
        assert (done.return_value, done.output.strip()) == (1, "tampered"), changed
    for text in ("", "[]", "{}", '{"format": 2}', "[" * 100_000):
        path.write_text(text)
        assert _run(sealed, "verify", "--proof", str(path)).return_value == 2


def test_what_is_not_sealed_has_no_proof_yet_and_nonsense_has_none(site):
    site.upload()
    (event,) = _events(site, action="file:create")
    problem(site.request("GET", f"/audit/{event['id']}/proof", "audrey"), 409, "audit-not-sealed")
    for place in ("99", "-1", "1" * 30, "x", "%20", "01900000-0000-7000-8000-00000000dead"):
        problem(site.request("GET", f"/audit/{place}/proof", "audrey"), 404)


def test_an_export_with_a_filter_holds_what_it_finds_each_with_a_proof(sealed, tmp_path):
    sealed.upload(name="unsealed.csv")
    answer = sealed.request("GET", "/audit/export", "audrey", query_string={"action": "file:create"})
    lines = [json.loads(line) for line in answer.text.splitlines()]
    events = [line for line in lines if "event" in line]
    assert [bool(line["path"]) for line in events] == [True, False]
    path = tmp_path / "some.ndjson"
    path.write_text(answer.text)
    verdict = verify_export(path, public_key=_keys(sealed))
    assert (verdict.exit_code, verdict.events, verdict.unsealed) == (0, 2, 1)
    kept = answer.text.splitlines(keepends=True)
    for number in range(len(kept)):
        path.write_text("".join(kept[:number] + kept[number + 1 :]))
        if number == 0:  # what is left does not say what it is
            with pytest.raises(EnvironmentProblem):
                verify_export(path, public_key=_keys(sealed))
        else:
            assert verify_export(path, public_key=_keys(sealed)).exit_code != 0, f"without line {number}"
    path.write_text(answer.text.replace('"allowed"', '"denied"', 1))
    assert verify_export(path, public_key=_keys(sealed)).exit_code == 1


def test_the_keys_are_listed_with_their_batches(sealed):
    (key,) = sealed.request("GET", "/audit/keys", "audrey").json["items"]
    assert key["public_key"] + "\n" == _keys(sealed).read_text()
    assert (key["first_batch"], key["last_batch"], key["announcement"]) == (0, None, None)


def test_reading_is_recorded_once_a_minute_and_an_export_each_time(sealed):
    for _ in range(3):
        _events(sealed, action="file:create")
        sealed.request("GET", "/audit/verify", "audrey")
        _ = sealed.request("GET", "/audit/export", "audrey").text
    mine = [item for item in _events(sealed, actor="audrey")]
    counts = {name: sum(item["action"] == name for item in mine) for name in ("audit:verify", "audit:export")}
    assert counts == {"audit:verify": 1, "audit:export": 3}
    reads = [item["details"] for item in mine if item["action"] == "audit:read"]
    assert sorted(reads, key=str) == [{"action": "file:create"}, {"actor": "given"}]  # of a name only that it was given


def test_different_reads_are_bounded_too(sealed):
    for number in range(100):
        _events(sealed, object=f"file:{number}")
    reads = [item for item in _events(sealed, action="audit:read", limit=100)]
    assert len(reads) == 61
    assert "more" in reads[0]["details"]


def test_other_reads_are_recorded_where_the_settings_say_so(tmp_path, database_url):
    from cloche import config

    load = config.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "load", lambda **given: load(**given, audit={"reads": True}))
        with running_site(tmp_path / "home", database=database_url) as site:
            site.add("vera", "viewer")
            for _ in range(3):
                site.request("GET", "/jobs", "vera")
            site.request("GET", "/jobs/none", "vera")
            found = [item["object"] for item in _events(site, "admin", action="access:read", actor="vera")]
            assert found == ["GET /api/v1/jobs"]


def test_forgetting_is_of_platform_administrators_and_recorded_without_the_name(sealed):
    problem(sealed.request("POST", "/audit/forget", "audrey", json={"value": "vera"}), 403)
    sealed.request("GET", "/jobs", "vera")
    sealed.request("GET", "/audit", "vera")  # denied, so there is an event of hers
    problem(sealed.request("POST", "/audit/forget", json={"value": "vera"}), 409, "account-active")
    sealed.services.db.write(
        lambda c: c.execute(tables.user.update().where(tables.user.c.username == "vera").values(disabled=True))
    )
    done = sealed.request("POST", "/audit/forget", json={"value": "vera"})
    assert done.status_code == 200, done.text
    problem(sealed.request("POST", "/audit/forget", json={"value": "vera"}), 404)
    (item,) = _events(sealed, action="audit:forget")
    assert "vera" not in json.dumps(item)
    (denied,) = _events(sealed, outcome="denied", action="access:deny", object="GET /api/v1/audit")
    assert denied["actor"].startswith("forgotten:")


def test_the_operator_s_commands(sealed):
    assert _run(sealed, "rotate-key").exception is None
    assert _run(sealed, "rotate-key", "--key", "hmac").exception is None
    Sealer(sealed.services.db, KeyRing.load_or_create(_keys(sealed).parent), "again").run_once()
    verdict = sealed.request("GET", "/audit/verify", "audrey").json
    assert (verdict["status"], verdict["first_bad"]) == ("valid", None)
    assert "give --yes" in str(_run(sealed, "prune", "--before", "2020-01-01T00:00:00Z").exception)
    assert "time" in str(_run(sealed, "prune", "--before", "yesterday", "--yes").exception)
