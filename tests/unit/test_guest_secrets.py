"""Secrets inside: files that their owner alone reads, and a mapping that prints no value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloche.isolation.backend import SandboxSpec
from cloche.isolation.cell_spec import key_of
from cloche.isolation.spec import BadSpec, check_spec, template
from cloche.isolation.spec_json import parse_spec, spec_to_json
from cloche_guest import job_secrets
from cloche_guest.job_secrets import Secrets, write
from tests.support.sandbox import spec


def test_each_is_a_file_that_its_owner_alone_reads(tmp_path: Path) -> None:
    place = tmp_path / "secrets"
    write({"A": "ü-value", "B": "two\nlines\n"}, place)
    assert {path.name: path.read_text("utf-8") for path in place.iterdir()} == {"A": "ü-value", "B": "two\nlines\n"}
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o400}
    assert place.stat().st_mode & 0o777 == 0o700


def test_nothing_is_made_for_who_has_none(tmp_path: Path) -> None:
    write({}, tmp_path / "secrets")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_setup_has_put_there_is_not_written_through(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "A").write_text("mine")
    else:
        os.symlink(tmp_path / "elsewhere", tmp_path / "A")
    with pytest.raises(FileExistsError):
        write({"A": "value"}, tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_the_mapping_prints_names_alone_and_says_what_is_missing() -> None:
    secrets = Secrets({"A": "s3cr3t"})
    assert secrets["A"] == "s3cr3t"
    assert list(secrets) == ["A"]
    for text in (repr(secrets), str(secrets), f"{secrets}"):
        assert "s3cr3t" not in text
    with pytest.raises(KeyError, match="does not name it"):
        secrets["B"]


def spelled(**changes: object) -> SandboxSpec:
    return parse_spec({**spec_to_json(spec("a" * 64)), **changes})


def test_sandboxd_is_told_that_there_is_a_place_and_nothing_else() -> None:
    assert spelled(secrets=True).secrets is True
    for wrong in (1, "yes", None, ["A"]):
        with pytest.raises(BadSpec, match="secrets is true or false"):
            spelled(secrets=wrong)
    check_spec(spelled(secrets=True))


def test_one_that_was_made_without_a_place_serves_nobody_who_needs_one() -> None:
    with_place, without = spelled(secrets=True, level="namespace"), spelled(level="namespace")
    assert template(with_place) != template(without)
    image = f"sha256:{'b' * 64}"
    assert key_of(with_place, image) != key_of(without, image)


def test_the_place_is_in_memory_and_bounded() -> None:
    options = job_secrets.options(1234).split(",")
    assert f"size={16 * 65_536}" in options
    assert {"uid=1234", "gid=1234", "mode=0700", "nr_inodes=32"} <= set(options)
