from __future__ import annotations

import platform
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cloche.registry import unpack as unpacking
from cloche.registry import wheels
from cloche.registry.lockfile import LockedWheel, LockError, format_lock, parse_lock
from cloche.registry.unpack import UnpackError, unpack
from cloche.registry.wheels import WheelError, digest_for, fetch, select
from tests.support.plugins import lock_for, locked, make_wheel, write_bundle

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
THUMBNAIL = Path(__file__).parents[2] / "plugins" / "thumbnail" / "1.0.0"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels which is all that pip can see: no test here reaches a network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def bundle(tmp_path: Path, index: Path) -> Path:
    wheel = make_wheel(index, files={"sampled/__init__.py": "VALUE = 1\n", "sampled-1.0.data/purelib/extra.py": ""})
    more = '[requires]\npython = ["sampled==1.0"]\n'
    return write_bundle(tmp_path / "plugins", more=more, files={"wheels.lock": lock_for(wheel)})


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_fetch_unpacks_once_and_needs_no_index_again(
    bundle: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = tmp_path / "home"
    folder = fetch(bundle, HERE, home)
    assert folder == home / "wheels" / digest_for(bundle, HERE)
    assert {"sampled/__init__.py", "extra.py", "sampled-1.0.dist-info/METADATA"} <= files(folder / "site")
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*")} == {0o444, 0o555}
    next(index.iterdir()).unlink()
    monkeypatch.setattr(wheels, "_pip", lambda *_: pytest.fail("pip was started"))
    assert fetch(bundle, HERE, home) == folder
    assert fetch(bundle, HERE, tmp_path / "other", cache=home / "wheels" / "downloads").is_dir()


def test_a_kept_download_that_rotted_is_fetched_again(bundle: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    fetch(bundle, HERE, tmp_path / "one", cache=cache)
    (kept,) = cache.iterdir()
    kept.write_bytes(b"rotten")
    assert fetch(bundle, HERE, tmp_path / "two", cache=cache).is_dir()
    assert kept.read_bytes() != b"rotten"


def test_another_file_under_the_same_name_is_refused(bundle: Path, index: Path, tmp_path: Path):
    make_wheel(index, files={"sampled/__init__.py": "VALUE = 'evil'\n"})
    with pytest.raises(WheelError, match=r"(?i)hash"):
        fetch(bundle, HERE, tmp_path / "home")
    assert not list((tmp_path / "home" / "wheels").glob("*/site"))


def test_the_hash_is_checked_here_too(bundle: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Even a pip that does not check must not get another file in."""

    def lax(arguments: list[str], folder: Path) -> None:
        (folder / "sampled-1.0-py3-none-any.whl").write_bytes(b"anything")

    monkeypatch.setattr(wheels, "_pip", lax)
    with pytest.raises(WheelError, match="has SHA-256"):
        fetch(bundle, HERE, tmp_path / "home")


def test_source_distributions_are_never_built(bundle: Path, index: Path, tmp_path: Path):
    for path in index.iterdir():
        path.unlink()
    trace = tmp_path / "built"
    source = tmp_path / "sampled-1.0"
    source.mkdir()
    (source / "setup.py").write_text(f"open({str(trace)!r}, 'w')\n")
    with tarfile.open(index / "sampled-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, "sampled-1.0")
    with pytest.raises(WheelError, match="pip could not bring"):
        fetch(bundle, HERE, tmp_path / "home")
    assert not trace.exists()


def test_a_failed_fetch_leaves_nothing_half_made(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unpacking, "MAX_BYTES", 3)
    monkeypatch.setattr(wheels, "unpack", lambda wheel, site: unpack(wheel, site, max_bytes=3))
    with pytest.raises(WheelError, match="more than it may"):
        fetch(bundle, HERE, tmp_path / "home")
    assert [path.name for path in (tmp_path / "home" / "wheels").iterdir()] == ["downloads"]


def test_the_digest_names_lock_python_and_machine(bundle: Path):
    one = digest_for(bundle, "3.11", "x86_64")
    assert one == digest_for(bundle, "cp311", "x86_64")
    others = {digest_for(bundle, "3.12", "x86_64"), digest_for(bundle, "3.11", "aarch64")}
    (bundle / "wheels.lock").write_text(format_lock([]))
    assert len({one, *others, digest_for(bundle, "3.11", "x86_64")}) == 4
    with pytest.raises(WheelError, match="not a Python version"):
        digest_for(bundle, "two", "x86_64")


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_shipped_lock_fits_every_supported_image(python: str, machine: str):
    (chosen,) = select(wheels.read_lock(THUMBNAIL), python, machine)
    assert chosen.name == "pillow"
    assert f"cp{python.replace('.', '')}" in chosen.filename
    assert machine in chosen.filename


def test_select_prefers_the_closest_wheel():
    sha = "0" * 64
    names = [
        "fast-1.0-py3-none-any.whl",
        "fast-1.0-cp39-abi3-manylinux_2_17_x86_64.whl",
        "fast-1.0-cp312-cp312-manylinux_2_28_x86_64.whl",
        "fast-1.0-cp312-cp312-manylinux_2_39_x86_64.whl",
        "fast-1.0-cp312-cp312-musllinux_1_2_x86_64.whl",
        "fast-1.0-cp312-cp312-win_amd64.whl",
    ]
    items = [LockedWheel("fast", "1.0", name, sha) for name in names]
    assert select(items, "3.12", "x86_64")[0].filename == names[2]
    assert select(items, "3.11", "x86_64")[0].filename == names[1]
    assert select(items, "3.11", "aarch64")[0].filename == names[0]
    with pytest.raises(WheelError, match="no wheel of fast for cp311"):
        select(items[2:], "3.11", "x86_64")


def test_lock_names_every_file_and_its_dependencies(index: Path):
    first, second = make_wheel(index), make_wheel(index, "second", "2.0")
    text = wheels.lock(["sampled==1.0", "second==2.0"], pythons=[HERE], machines=[platform.machine()])
    assert text == lock_for(first, second)
    assert parse_lock(text) == (locked(second), locked(first)) or parse_lock(text) == (locked(first), locked(second))


def test_the_command_writes_a_lock(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(wheels, "PYTHONS", ("cp311",))
    wheel = make_wheel(index)
    source = write_bundle(tmp_path, more='[requires]\npython = ["sampled==1.0"]\n')
    assert wheels.main([str(source)]) == 0
    assert (source / "wheels.lock").read_text() == lock_for(wheel)
    assert wheels.main([str(write_bundle(tmp_path, "plain"))]) == 1
    assert "nothing to lock" in capsys.readouterr().err
    assert wheels.main([]) == 2


ENTRY = {"name": "a", "version": "1", "filename": "a-1-py3-none-any.whl", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"sha256": "xyz"}, "64 hex"),
        ({"filename": "b-1-py3-none-any.whl"}, "filename says b"),
        ({"filename": "a-1.tar.gz"}, "filename"),
        ({"filename": "x/../a-1-py3-none-any.whl"}, "filename"),
        ({"version": "2"}, "filename says a 1"),
        ({"name": "A"}, "filename says a 1"),
        ({"extra": "x"}, "nothing else"),
        ({"modules": "a"}, "a list of at most 1000"),
    ],
)
def test_a_malformed_lock_is_refused(change: dict[str, str], hint: str):
    lines = [f'{key} = "{value}"' for key, value in (ENTRY | change).items()]
    with pytest.raises(LockError, match=hint):
        parse_lock("format = 1\n[[wheel]]\n" + "\n".join(lines))


def test_a_lock_says_what_its_wheels_provide(tmp_path: Path):
    files = (
        "one/__init__.py",
        "one/sub/__init__.py",
        "two.py",
        "three.cpython-311-x86_64-linux-gnu.so",
        "four/five.py",
        "one.libs/x.so",
        "a-b.py",
        "six.pth",
    )
    wheel = make_wheel(
        tmp_path,
        files=dict.fromkeys((*files, "sampled-1.0.data/purelib/seven.py", "sampled-1.0.data/scripts/eight.py"), ""),
    )
    assert wheels.modules_of(wheel) == ("one", "seven", "three", "two")
    assert parse_lock(lock_for(wheel)) == (locked(wheel),)
    with pytest.raises(WheelError, match="cannot be read"):
        wheels.modules_of(tmp_path / "none.whl")


@pytest.mark.parametrize("names", ['"one.two"', '""', "1", '"a\\n"', '"é"', ", ".join(['"a"'] * 1001)])
def test_modules_that_are_none(names: str):
    lines = [f'{key} = "{value}"' for key, value in ENTRY.items()]
    with pytest.raises(LockError, match="modules must"):
        parse_lock("format = 1\n[[wheel]]\n" + "\n".join(lines) + f"\nmodules = [{names}]\n")


@pytest.mark.parametrize(
    "text", ["", "format = 2", "format = 1\nother = 1", "format = 1\nwheel = 3", "=", "format=1\nwheel=[3]"]
)
def test_a_lock_of_another_shape_is_refused(text: str):
    with pytest.raises(LockError):
        parse_lock(text)


def wheel_with(folder: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    path = folder / "bad-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def info(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    entry.create_system = 3
    return entry


@pytest.mark.parametrize(
    "name",
    [
        "../evil.py",
        "a/../../evil.py",
        "/etc/evil",
        "a//b",
        "./a",
        "a/./b",
        "C:/evil",
        "a\\..\\evil",
        "new\nline",
        "a" * 500,
    ],
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str):
    site = tmp_path / "site"
    site.mkdir()
    with pytest.raises(UnpackError):
        unpack(wheel_with(tmp_path, ("fine.py", b""), (name, b"x")), site)
    assert files(tmp_path) == {"bad-1.0-py3-none-any.whl"}


def test_a_data_folder_cannot_lead_out_either(tmp_path: Path):
    (tmp_path / "site").mkdir()
    with pytest.raises(UnpackError, match="would leave"):
        unpack(wheel_with(tmp_path, ("bad-1.0.data/purelib/../../../evil.py", b"x")), tmp_path / "site")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR])
def test_links_and_special_entries_are_refused(tmp_path: Path, kind: int):
    (tmp_path / "site").mkdir()
    with pytest.raises(UnpackError, match="neither a regular file"):
        unpack(wheel_with(tmp_path, (info("odd", kind | 0o777), b"/etc/passwd")), tmp_path / "site")


def test_duplicate_and_conflicting_entries_are_refused(tmp_path: Path):
    (tmp_path / "site").mkdir()
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = wheel_with(tmp_path, ("a.py", b"1"), ("a.py", b"2"))
    with pytest.raises(UnpackError, match="two entries"):
        unpack(twice, tmp_path / "site")
    (tmp_path / "other").mkdir()
    with pytest.raises(UnpackError, match="two entries"):
        unpack(wheel_with(tmp_path, ("a", b"1"), ("a/b", b"2")), tmp_path / "other")


def test_bombs_are_refused_by_what_comes_out(tmp_path: Path):
    (tmp_path / "site").mkdir()
    bomb = wheel_with(tmp_path, ("zeros", bytes(4 << 20)))
    assert bomb.stat().st_size < 8_192
    with pytest.raises(UnpackError, match="more than it may"):
        unpack(bomb, tmp_path / "site", max_bytes=1 << 20)
    (tmp_path / "many").mkdir()
    with pytest.raises(UnpackError, match="more than 2 entries"):
        unpack(wheel_with(tmp_path, *((f"f{n}", b"") for n in range(3))), tmp_path / "many", max_entries=2)


def declare_smaller(data: bytes) -> bytes:
    """Lie about the size in the central directory; the local header stays."""
    at = data.rindex(b"PK\x01\x02")
    return data[: at + 24] + (1).to_bytes(4, "little") + data[at + 28 :]


def flip(data: bytes) -> bytes:
    """One bit of the compressed content."""
    return data[:40] + bytes([data[40] ^ 0x10]) + data[41:]


@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda _: b"not a zip", declare_smaller, flip])
def test_damaged_archives_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes]):
    (tmp_path / "site").mkdir()
    path = wheel_with(tmp_path, ("a.py", b"print()\n" * 1_000))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UnpackError):
        unpack(path, tmp_path / "site")


def test_what_an_installer_would_run_is_left_out(tmp_path: Path):
    site = tmp_path / "site"
    site.mkdir()
    path = wheel_with(
        tmp_path,
        ("pkg/__init__.py", b""),
        ("pkg/data.pth", b"kept: only those at the top are ever executed\n"),
        ("start.pth", b"import os; os._exit(1)\n"),
        ("bad-1.0.data/purelib/late.PTH", b"import os\n"),
        ("bad-1.0.data/scripts/tool", b"#!python\n"),
        ("bad-1.0.data/data/etc/cron.d/x", b""),
        ("bad-1.0.data/headers/x.h", b""),
        ("bad-1.0.data/platlib/native.so", b"\x7fELF"),
        ("pkg/__pycache__/old.cpython-311.pyc", b""),
    )
    unpack(path, site)
    assert files(site) == {"pkg/__init__.py", "pkg/data.pth", "native.so"}
