from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloche.errors import TooLarge
from cloche.staging.artifacts import ArtifactStore


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def leftovers(store: ArtifactStore) -> list[Path]:
    return list((store.root / "tmp").iterdir())


def test_put_keeps_content_and_nothing_else(store: ArtifactStore) -> None:
    stored = store.put(io.BytesIO(b"seeds"), limit=5)
    assert (stored.sha256, stored.size) == (sha(b"seeds"), 5)
    with store.open(stored.sha256) as file:
        assert file.read() == b"seeds"
    assert stat.S_IMODE(store.path(stored.sha256).stat().st_mode) == 0o444
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    assert leftovers(store) == []
    assert list(store.digests()) == [stored.sha256]


def test_put_refuses_more_than_the_limit_and_keeps_nothing(store: ArtifactStore) -> None:
    with pytest.raises(TooLarge):
        store.put(io.BytesIO(b"x" * 3_000_000), limit=2_999_999)
    assert leftovers(store) == []
    assert list(store.digests()) == []


def test_a_stream_that_breaks_leaves_nothing(store: ArtifactStore) -> None:
    class Broken:
        def read(self, size: int) -> bytes:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        store.put(Broken())
    assert leftovers(store) == []


def test_equal_content_put_at_once_is_one_whole_file(store: ArtifactStore) -> None:
    data = os.urandom(1 << 20)
    barrier = threading.Barrier(8)

    def put(_: int) -> str:
        barrier.wait()
        return store.put(io.BytesIO(data)).sha256

    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(put, range(8)))
    assert digests == {sha(data)}
    assert list(store.digests()) == [sha(data)]
    assert store.path(sha(data)).read_bytes() == data
    assert leftovers(store) == []
    assert store.path(sha(data)).stat().st_nlink == 1


def test_put_against_remove_never_loses_what_was_put(store: ArtifactStore) -> None:
    """A file whose row is gone is removed while another upload brings the same content: the upload's file stays."""
    data = b"twice"
    path = store.path(sha(data))
    for _ in range(50):
        store.put(io.BytesIO(data))
        os.utime(path, (1, 1))
        with ThreadPoolExecutor(2) as pool:
            removed = pool.submit(store.remove, sha(data), older_than_s=3_600)
            put = pool.submit(store.put, io.BytesIO(data))
            put.result()
            removed.result()
        assert path.read_bytes() == data


def test_remove_asks_whether_it_is_wanted(store: ArtifactStore) -> None:
    kept = store.put(io.BytesIO(b"a")).sha256
    assert not store.remove(kept, wanted=lambda: True)
    assert not store.remove(kept, older_than_s=60)
    assert store.remove(kept)
    assert store.remove(kept), "removing twice is fine"
    with pytest.raises(FileNotFoundError):
        store.open(kept)


def test_damaged_content_is_replaced(store: ArtifactStore) -> None:
    kept = store.put(io.BytesIO(b"whole")).sha256
    path = store.path(kept)
    path.chmod(0o600)
    path.write_bytes(b"hal")
    store.put(io.BytesIO(b"whole"))
    assert path.read_bytes() == b"whole"


def test_adopt_moves_and_hashes(store: ArtifactStore, tmp_path: Path) -> None:
    source = tmp_path / "out.bin"
    source.write_bytes(b"fruit")
    inode = source.stat().st_ino
    stored = store.adopt(source)
    assert (stored.sha256, stored.size) == (sha(b"fruit"), 5)
    assert not source.exists()
    assert store.path(stored.sha256).stat().st_ino == inode
    assert stat.S_IMODE(store.path(stored.sha256).stat().st_mode) == 0o444


def test_adopt_copies_what_has_another_name(store: ArtifactStore, tmp_path: Path) -> None:
    source, other = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"shared")
    os.link(source, other)
    stored = store.adopt(source)
    other.write_bytes(b"CHANGED")
    assert store.path(stored.sha256).read_bytes() == b"shared"


def test_adopt_refuses_what_is_no_regular_file(store: ArtifactStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s")
    (tmp_path / "link").symlink_to(secret)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError):
        store.adopt(tmp_path / "link")
    for name in ("fifo", "."):
        with pytest.raises((ValueError, OSError)):
            store.adopt(tmp_path / name)
    assert secret.exists()


def test_link_to_gives_a_readable_file_and_replaces_none(store: ArtifactStore, tmp_path: Path) -> None:
    kept = store.put(io.BytesIO(b"leaf")).sha256
    target = tmp_path / "in.txt"
    store.link_to(kept, target)
    assert target.read_bytes() == b"leaf"
    assert stat.S_IMODE(target.stat().st_mode) == 0o444
    with pytest.raises(FileExistsError):
        store.link_to(kept, target)
    with pytest.raises(FileNotFoundError):
        store.link_to("0" * 64, tmp_path / "none")


def test_link_to_copies_across_file_systems(store: ArtifactStore) -> None:
    other = Path("/dev/shm")
    assert other.stat().st_dev != store.root.stat().st_dev, "this test needs a second file system"
    kept = store.put(io.BytesIO(b"leaf")).sha256
    target = other / f"cloche-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        store.link_to(kept, target)
        assert target.read_bytes() == b"leaf"
        assert stat.S_IMODE(target.stat().st_mode) == 0o444
    finally:
        target.unlink(missing_ok=True)


def test_tenants_share_nothing(store: ArtifactStore) -> None:
    one, two = store.tenant("one"), store.tenant("two")
    digest = one.put(io.BytesIO(b"same")).sha256
    assert not two.path(digest).exists()
    two.put(io.BytesIO(b"same"))
    assert one.path(digest).stat().st_ino != two.path(digest).stat().st_ino
    assert store.tenants() == ["one", "two"]
    for bad in ("..", "a/b", "", "A"):
        with pytest.raises(ValueError, match="tenant"):
            store.tenant(bad)


@pytest.mark.parametrize("digest", ["", "../" + "0" * 61, "0" * 63, "A" * 64])
def test_a_digest_is_a_digest(store: ArtifactStore, digest: str) -> None:
    with pytest.raises(ValueError, match="digest"):
        store.path(digest)


def test_a_killed_writers_file_goes_and_a_living_ones_stays(store: ArtifactStore) -> None:
    code = (
        "import sys; from pathlib import Path; from cloche.staging.artifacts import ArtifactStore\n"
        "class S:\n"
        "    n = 0\n"
        "    def read(self, size):\n"
        "        self.n += 1\n"
        "        if self.n == 2: print('writing', flush=True); sys.stdin.read()\n"
        "        return b'x'\n"
        f"ArtifactStore(Path({str(store.root)!r})).put(S())"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        (draft,) = leftovers(store)
        os.utime(draft, (1, 1))
        assert store.clean() == 0, "its writer lives"
        writer.kill()
        writer.wait()
    os.utime(draft, (1, 1))
    assert ArtifactStore(store.root).clean() == 0, "opening the store has removed it"
    assert leftovers(store) == []
