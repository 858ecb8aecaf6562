from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys

import pytest

from cloche.audit import keys
from cloche.audit.keys import (
    HMAC_FILE,
    PRIVATE_FILE,
    PUBLIC_FILE,
    KeyRing,
    read_hmac_keys,
    read_public_key,
    read_signing_keys,
)
from cloche.errors import EnvironmentProblem


def test_keys_are_made_once_and_private(tmp_path):
    folder = tmp_path / "keys"
    first, second = KeyRing.load_or_create(folder), KeyRing.load_or_create(folder)
    assert (first.hmac_key, first.public_key) == (second.hmac_key, second.public_key)
    assert sorted(os.listdir(folder)) == sorted([HMAC_FILE, PRIVATE_FILE, PUBLIC_FILE])
    for name in os.listdir(folder):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert read_public_key(folder / PUBLIC_FILE).verify(first.sign(b"text"), b"text")
    assert read_hmac_keys(folder) == [first.hmac_key]


def test_two_platforms_are_two_logs(tmp_path):
    assert KeyRing.load_or_create(tmp_path / "a").origin != KeyRing.load_or_create(tmp_path / "b").origin


def test_printing_shows_no_key(tmp_path):
    ring = KeyRing.load_or_create(tmp_path)
    assert repr(ring) == f"KeyRing({ring.origin})"


def test_processes_that_start_at_once_get_the_same_keys(tmp_path):
    code = (
        "import sys, pathlib; from cloche.audit.keys import KeyRing; sys.stdin.readline();"
        "ring = KeyRing.load_or_create(pathlib.Path(sys.argv[1])); print(ring.hmac_key.hex(), ring.public_key)"
    )
    folder = tmp_path / "keys"
    command = [sys.executable, "-c", code, str(folder)]
    starts = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    for process in starts:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = {process.communicate()[0] for process in starts}
    assert [process.returncode for process in starts] == [0] * 6
    assert len(answers) == 1
    assert len(os.listdir(folder)) == 3


@pytest.mark.parametrize("name", [HMAC_FILE, PRIVATE_FILE])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_others_can_read_is_refused(tmp_path, name, mode):
    KeyRing.load_or_create(tmp_path)
    (tmp_path / name).chmod(mode)
    with pytest.raises(EnvironmentProblem, match=f"{name} is open to other users"):
        KeyRing.load_or_create(tmp_path)


def test_a_public_key_others_can_write_is_refused_one_they_can_read_is_not(tmp_path):
    ring = KeyRing.load_or_create(tmp_path)
    (tmp_path / PUBLIC_FILE).chmod(0o644)
    assert KeyRing.load_or_create(tmp_path).public_key == ring.public_key
    (tmp_path / PUBLIC_FILE).chmod(0o666)
    with pytest.raises(EnvironmentProblem, match="open to other users"):
        KeyRing.load_or_create(tmp_path)


@pytest.mark.parametrize("name", [HMAC_FILE, PRIVATE_FILE])
@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_key_of_another_length_is_refused(tmp_path, name, content):
    KeyRing.load_or_create(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EnvironmentProblem, match="instead of 32"):
        KeyRing.load_or_create(tmp_path)


def test_a_public_key_of_another_private_key_is_refused(tmp_path):
    KeyRing.load_or_create(tmp_path / "a")
    other = KeyRing.load_or_create(tmp_path / "b")
    (tmp_path / "a" / PUBLIC_FILE).write_text(other.public_key + "\n")
    with pytest.raises(EnvironmentProblem, match="is not the public key of"):
        KeyRing.load_or_create(tmp_path / "a")


def test_links_and_folders_are_not_keys(tmp_path):
    KeyRing.load_or_create(tmp_path)
    path = tmp_path / HMAC_FILE
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EnvironmentProblem):
        KeyRing.load_or_create(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(EnvironmentProblem):
        KeyRing.load_or_create(tmp_path)


def test_an_auditor_s_files_are_explained(tmp_path):
    assert read_hmac_keys(tmp_path) == []
    with pytest.raises(EnvironmentProblem, match="No such file"):
        read_public_key(tmp_path / "none")
    (tmp_path / "bad").write_text("not a key")
    with pytest.raises(EnvironmentProblem, match="form"):
        read_public_key(tmp_path / "bad")


@pytest.mark.parametrize("done", ["open to others", "cut short", "a link"])
def test_a_signing_key_that_is_wrong_is_said_and_not_passed_over(tmp_path, done):
    ring = KeyRing.load_or_create(tmp_path / "keys")
    path = tmp_path / "keys" / PRIVATE_FILE
    if done == "open to others":
        path.chmod(0o644)
    elif done == "cut short":
        path.write_bytes(b"x" * 31)
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EnvironmentProblem):
        ring.held()
    with pytest.raises(EnvironmentProblem):
        read_signing_keys(tmp_path / "keys", ring.origin)


def test_signing_keys_that_only_another_user_reads_are_none_far_away_and_an_error_in_the_server(tmp_path, monkeypatch):
    ring = KeyRing.load_or_create(tmp_path)
    read = keys._read

    def refused(path, *, secret):
        if path.name == PRIVATE_FILE:  # as the kernel refuses it to anybody but root and the owner
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path, secret=secret)

    monkeypatch.setattr(keys, "_read", refused)
    assert read_signing_keys(tmp_path, ring.origin) == []
    with pytest.raises(EnvironmentProblem, match="Permission denied"):
        ring.held()
