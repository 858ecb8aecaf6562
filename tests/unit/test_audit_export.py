"""An export is verified away from the platform, by whoever holds the public key."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloche.audit.event import Event, canonical_bytes, leaf_bytes, mac
from cloche.audit.keys import PUBLIC_FILE
from cloche.audit.merkle import Frontier, leaf_hash
from cloche.audit.note import NO_PREVIOUS, Checkpoint, note_hash
from cloche.audit.trail import Batch, Leaf
from cloche.audit.verify import verify
from cloche.clock import now_ms
from cloche.domain.permissions import Actor
from cloche.errors import EnvironmentProblem
from cloche.services.auditing import AuditService, verify_export
from tests.support.audit import ALICE, Platform

BOB = Actor("user-bob", "bob", "tenant-2", frozenset(), ip="198.51.100.7")


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    platform = Platform(tmp_path_factory.mktemp("export")).filled(2)
    platform.job(BOB)
    platform.job(ALICE)
    platform.sealer.run_once()
    platform.job(ALICE)
    yield platform
    platform.db.close()


@pytest.fixture(scope="module")
def lines(platform):
    return list(AuditService(platform.db, platform.keyring).export(ALICE))


@pytest.fixture
def check(platform, tmp_path):
    def run(lines, **given):
        path = tmp_path / "export.ndjson"
        path.write_text("".join(lines))
        return verify_export(path, **(given or {"public_key": platform.keys / PUBLIC_FILE}))

    return run


def test_an_export_is_valid_with_the_public_key_alone_and_for_ever(lines, check, monkeypatch):
    later = now_ms() + 10**9
    monkeypatch.setattr("cloche.services.auditing.clock.now_ms", lambda: later)
    verdict = check(lines)
    assert (verdict.exit_code, verdict.leaves, verdict.batches, verdict.unsealed) == (0, 20, 3, 4)
    assert verdict.events == 21


def test_with_the_keys_the_unsealed_are_checked_too(lines, check, platform):
    assert check(lines, keys=platform.keys).hmac_checked


def test_another_tenant_s_events_are_hashes_only(lines):
    text = "".join(lines)
    assert "tenant-2" not in text
    assert "bob" not in text
    assert sum(json.loads(line).keys() == {"leaf", "seq"} for line in lines) == 3


def test_it_holds_what_is_behind_the_commitments(lines):
    people = [json.loads(line)["person"] for line in lines if '"person"' in line]
    assert {(person["kind"], person["value"]) for person in people} == {("name", "alice"), ("ip", "203.0.113.9")}


def _find(lines, word, nth=0):
    return [number for number, line in enumerate(lines) if word in line][nth]


def _edited(lines, number, old, new):
    assert old in lines[number]
    return [*lines[:number], lines[number].replace(old, new), *lines[number + 1 :]]


def _without(lines, number):
    return [*lines[:number], *lines[number + 1 :]]


ATTACKS = {
    "edit an event": (lambda x: _edited(x, _find(x, '"seq":9'), '"allowed"', '"denied"'), 9, "not the one"),
    "leave an event out": (lambda x: _without(x, _find(x, '"seq":9')), 9, "leaf is missing"),
    "add a column": (lambda x: _edited(x, _find(x, '"seq":9'), '"outcome"', '"extra":1,"outcome"'), 9, "columns"),
    "edit a batch": (lambda x: _edited(x, _find(x, '"batch":', 1), '"size":14', '"size":15'), 7, "signed note"),
    "leave a batch out": (lambda x: _without(x, _find(x, '"batch":', 1)), 7, "batch 1 is missing"),
    "edit a hash": (lambda x: _edited(x, _find(x, '{"leaf"'), '"leaf":"', '"leaf":"zz'), 14, "malformed"),
    "rename a person": (lambda x: _edited(x, _find(x, '"alice"'), '"alice"', '"mallory"'), None, "name behind"),
    "hide an own event": (
        lambda x: [*x[: _find(x, '"seq":0')], json.dumps({"leaf": json.loads(x[_find(x, '"seq":0')])["leaf"], "seq": 0}) + "\n",
                   *x[_find(x, '"seq":0') + 1 :]], None, "line of the export"),
    "leave out an unsealed event": (lambda x: _without(x, _find(x, "audit:export")), None, "line of the export"),
    "edit the tenant": (lambda x: _edited(x, 0, "tenant-1", "tenant-9"), None, "line of the export"),
    "break a line": (lambda x: _edited(x, _find(x, '"seq":9'), '{"event"', '{"event'), 9, "not JSON"),
    "end of another": (lambda x: [*x[:-1], x[-1].replace("sha256 ", "sha256 0")], None, "end line"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_each_change_is_found(lines, check, name):
    attack, seq, why = ATTACKS[name]
    verdict = check(attack(lines))
    assert verdict.exit_code == 1
    assert verdict.first_bad is not None
    assert (verdict.first_bad.seq, why in verdict.first_bad.why) == (seq, True), verdict.first_bad


@pytest.mark.parametrize("cut", [1, 2, 6, 9])
def test_a_cut_off_export_is_incomplete(lines, check, cut):
    verdict = check(lines[:-cut])
    assert (verdict.status.value, verdict.exit_code) == ("incomplete", 2)


def test_an_export_cut_in_the_middle_of_a_line_is_incomplete(lines, check):
    assert check(["".join(lines)[:-40]]).exit_code == 2
    assert check(["".join(lines[:-4]), lines[-4][:-10]]).exit_code == 2


def test_another_platform_s_export_is_not_this_one_s(lines, check, tmp_path):
    other = Platform(tmp_path / "other")
    other.db.close()
    verdict = check(lines, keys=other.keys)
    assert verdict.exit_code == 1


@pytest.mark.parametrize("content", ["", "{}\n", "[]\n", "text\n", '{"export":{"format":2}}\n'])
def test_what_is_no_export_is_explained(check, content):
    with pytest.raises(EnvironmentProblem, match="not an audit export"):
        check([content])


def _passes(path, platform) -> bool:
    try:
        return verify_export(path, keys=platform.keys).exit_code == 0
    except EnvironmentProblem:  # a first line that no longer says what the file is
        return False


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_of_a_single_byte_passes(lines, platform, tmp_path, data):
    content = bytearray("".join(lines).encode())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    path = tmp_path / "changed.ndjson"
    path.write_bytes(content)
    assert not _passes(path, platform)


class _Made:
    """A valid trail made as it is read, of any length."""

    truncated = False
    as_of = None

    def __init__(self, platform: Platform, count: int, size: int = 500) -> None:
        self._platform, self._count, self._size = platform, count, size

    def _events(self):
        for number in range(self._count):
            event = Event(
                f"{number:036d}",
                number,
                "t",
                "system",
                None,
                "job:start",
                "job:1",
                number + 1,
                "allowed",
                None,
                None,
                None,
                None,
                None,
                "{}",
                "",
            )
            yield event._replace(mac=mac(self._platform.keyring.hmac_key, canonical_bytes(event)))

    def prunes(self):
        return iter(())

    def leaves(self, start=0):
        for seq, event in enumerate(self._events()):
            yield Leaf(seq, event.id, leaf_hash(leaf_bytes(canonical_bytes(event), event.mac)).hex(), event)

    def batches(self):
        frontier, previous = Frontier(), NO_PREVIOUS
        for leaf in self.leaves():
            frontier.append(bytes.fromhex(leaf.hash))
            if frontier.size % self._size == 0:
                point = Checkpoint(
                    self._platform.keyring.origin,
                    frontier.size,
                    frontier.root(),
                    frontier.size // self._size - 1,
                    1,
                    previous,
                )
                note = self._platform.keyring.sign_note(point.body())
                yield Batch(point.number, point.size, point.root.hex(), previous, 1, note)
                previous = note_hash(note)

    def unsealed(self):
        return iter(())

    def breaks(self):
        return iter(())

    def persons(self):
        return iter(())

    def finish(self, key, until):
        return iter(())


def test_memory_does_not_grow_with_the_trail(platform):
    peaks = []
    for count in (500, 5_000):
        trail = _Made(platform, count)
        tracemalloc.start()
        verdict = verify(trail, key=platform.keyring.verifier, hmac_key=platform.keyring.hmac_key, now_ms=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (verdict.exit_code, verdict.leaves) == (0, count), verdict
    assert peaks[1] < peaks[0] + 100_000, peaks
