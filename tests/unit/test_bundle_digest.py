from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.registry import digest as module
from cloche.registry.digest import BundleError, bundle_digest, bundle_files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


FILES = {"plugin.toml": b"x", "plugin.py": b"y", "data/one.txt": b"1", "data/two.txt": b""}


def test_the_digest_is_pinned():
    """Its canonical form is a promise: digests stand in databases and audit trails."""
    files = {"a.txt": b"hello", "b/c.txt": b""}
    with tempfile.TemporaryDirectory() as folder:
        found = bundle_digest(write(Path(folder), files))
    expected = hashlib.sha256(b"cloche-bundle-v1\n")
    for path in sorted(files):
        expected.update(
            path.encode() + b"\0" + str(len(files[path])).encode() + b"\0" + hashlib.sha256(files[path]).digest()
        )
    assert found == expected.hexdigest()
    assert found == "9c86f53346887cf74710e5eefeb43d7a38a5060f752f3da083b08d1654e1ed9d"


def test_it_depends_on_paths_and_contents_only(tmp_path: Path):
    one = write(tmp_path / "one", FILES)
    two = write(tmp_path / "two", dict(reversed(FILES.items())))
    os.chmod(two / "plugin.py", 0o755)
    os.utime(two / "plugin.py", (0, 0))
    write(two, {"__pycache__/plugin.cpython-311.pyc": b"z", "data/__pycache__/x": b"z", "stale.pyc": b"z"})
    assert bundle_digest(one) == bundle_digest(two)
    assert [item.path for item in bundle_files(two)] == sorted(FILES)


@pytest.mark.parametrize(
    "change",
    [
        {"plugin.py": b"Y"},
        {"new": b""},
        {"data/two.txt": b"1", "data/one.txt": b""},
        {"__pycache__x": b""},
    ],
)
def test_every_change_shows(tmp_path: Path, change: dict[str, bytes]):
    before = bundle_digest(write(tmp_path, FILES))
    assert bundle_digest(write(tmp_path, change)) != before


@given(
    st.dictionaries(
        st.text("ab/", min_size=1, max_size=6).filter(lambda t: "//" not in t),
        st.binary(max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_contents_cannot_be_shifted_between_files(files: dict[str, bytes]):
    flat = {path.replace("/", "_"): content for path, content in files.items()}
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        first = bundle_digest(write(Path(one), flat))
        joined = {"_".join(flat): b"".join(flat.values())}
        second = bundle_digest(write(Path(two), joined))
        assert (first == second) == (flat == joined)


def test_links_and_special_files_are_refused(tmp_path: Path):
    for number, make in enumerate(
        (
            lambda path: path.symlink_to("/etc/hostname"),
            lambda path: path.symlink_to("missing"),
            lambda path: path.symlink_to("/etc"),
            os.mkfifo,
            lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
        )
    ):
        folder = write(tmp_path / str(number), {"plugin.py": b""})
        make(folder / "odd")
        with pytest.raises(BundleError, match="odd: only regular files"):
            bundle_digest(folder)


@pytest.mark.parametrize("name", [b"new\nline", b"\xff", b"back\\slash", b"\xe2\x80\xaertl"])
def test_odd_names_are_refused(tmp_path: Path, name: bytes):
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(b"")
    with pytest.raises(BundleError, match="printable"):
        bundle_digest(tmp_path)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, FILES)
    monkeypatch.setattr(module, "MAX_FILES", 3)
    with pytest.raises(BundleError, match="more than 3 files"):
        bundle_digest(tmp_path)
    monkeypatch.setattr(module, "MAX_FILES", 4)
    monkeypatch.setattr(module, "MAX_BYTES", 2)
    with pytest.raises(BundleError, match="larger than 2 bytes"):
        bundle_digest(tmp_path)
    deep = tmp_path / "deep" / "/".join("d" * 1 for _ in range(40))
    deep.mkdir(parents=True)
    with pytest.raises(BundleError, match="nested deeper"):
        bundle_digest(tmp_path / "deep")


def test_a_missing_folder_is_an_error_not_an_empty_bundle(tmp_path: Path):
    with pytest.raises(BundleError, match="cannot be read"):
        bundle_digest(tmp_path / "nowhere")
