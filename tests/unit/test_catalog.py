from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cloche.errors import Invalid, PlatformFailure
from cloche.registry.catalog import Catalog, load
from cloche.registry.digest import bundle_digest
from cloche.registry.store import BundleStore
from cloche.registry.tables import ManifestError
from tests.support.plugins import lock_for, make_wheel, manifest_text, write_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "plugins"
    for version in ("1.0.0", "1.2.0", "1.10.0", "2.0.0-rc.1"):
        write_bundle(found, "sample", version)
    return found


def versions(catalog: Catalog, name: str = "sample") -> list[str]:
    return [bundle.manifest.version for bundle in catalog.versions(name)]


@pytest.mark.parametrize(
    ("spec", "version"),
    [
        (None, "1.10.0"),
        ("==1.*", "1.10.0"),
        ("~=1.2.0", "1.2.0"),
        ("<1.10", "1.2.0"),
        ("1.0.0", "1.0.0"),
        ("==2.0.0rc1", "2.0.0-rc.1"),
        ("2.0.0-rc.1", "2.0.0-rc.1"),
        (">=1, <2", "1.10.0"),
    ],
)
def test_resolve(folder: Path, spec: str | None, version: str):
    catalog = Catalog([folder])
    assert catalog.problems == ()
    assert catalog.resolve("sample", spec).manifest.version == version


@pytest.mark.parametrize(
    ("name", "spec", "pointer", "hint"),
    [
        ("nothing", None, "/type", "there are: sample"),
        ("../../etc", None, "/type", "there are: sample"),
        ("sample", ">=3", "/version", "1.10.0, 1.2.0, 1.0.0"),
        ("sample", "newest", "/version", "is not a version specifier"),
        ("sample", "", "/version", "no version"),
        ("sample", "=" * 200, "/version", "at most 100"),
    ],
)
def test_what_cannot_be_resolved_is_pointed_at(folder: Path, name: str, spec: str | None, pointer: str, hint: str):
    if spec == "":
        assert Catalog([folder]).resolve(name, spec).manifest.version == "1.10.0"  # the empty specifier fits all
        return
    with pytest.raises(Invalid) as caught:
        Catalog([folder]).resolve(name, spec)
    assert [problem.pointer for problem in caught.value.problems] == [pointer]
    assert hint in caught.value.detail


def test_only_prereleases_have_no_default(tmp_path: Path):
    write_bundle(tmp_path, "early", "0.1.0-beta.2")
    with pytest.raises(Invalid, match="only pre-releases"):
        Catalog([tmp_path]).resolve("early", None)


def test_one_bad_bundle_does_not_take_the_others_down(folder: Path):
    write_bundle(folder, "unknown_key", more="[surprise]\n")
    write_bundle(folder, "linked")
    (folder / "linked/1.0.0/leak").symlink_to("/etc/hostname")
    write_bundle(folder, "misnamed")
    (folder / "misnamed/1.0.0").rename(folder / "misnamed/1.0.1")
    write_bundle(folder, "no_entry", more='entry = "main"\n')
    write_bundle(folder, "unlocked", more='[requires]\npython = ["pillow==13.0.0"]\n')
    write_bundle(folder, "overlocked", files={"wheels.lock": "format = 1\n"})
    (folder / "empty" / "1.0.0").mkdir(parents=True)
    write_bundle(folder, "binary")
    (folder / "binary/1.0.0/plugin.toml").write_bytes(b"\xff\xfe")
    (folder / "README.md").write_text("not a plugin")
    catalog = Catalog([folder, folder / "missing"])
    assert {bundle.manifest.name for bundle in catalog.bundles()} == {"sample"}
    listed = "\n".join(catalog.problems)
    for hint in (
        "surprise: unknown key",
        "linked/1.0.0: leak: only regular files",
        "its folder must be misnamed/1.0.0",
        "there is no main.py",
        "wheels.lock is missing",
        "is empty, yet there is a wheels.lock",
        "there is no plugin.toml",
        "is not UTF-8",
        "missing: no such folder",
    ):
        assert hint in listed
    assert len(catalog.problems) == 9


def test_the_first_folder_wins_and_a_difference_is_told(folder: Path, tmp_path: Path):
    again = tmp_path / "again"
    write_bundle(again, "sample", "1.0.0", code="# other\n")
    write_bundle(again, "sample", "1.2.0")
    catalog = Catalog([folder, again])
    first = catalog.get("sample", "1.0.0")
    assert first is not None
    assert first.source.is_relative_to(folder)
    assert [problem for problem in catalog.problems if "comes first" in problem] == list(catalog.problems)
    assert len(catalog.problems) == 1


def test_what_the_project_ships_is_sound():
    catalog = Catalog([ROOT / "plugins", ROOT / "examples" / "hostile"])
    assert catalog.problems == ()
    names = {(bundle.manifest.name, bundle.manifest.version) for bundle in catalog.bundles()}
    assert names >= {
        ("csv_profile", "1.0.0"),
        ("thumbnail", "1.0.0"),
        ("text_stats", "1.0.0"),
        ("text_stats", "2.0.0"),
        ("open_socket", "1.0.0"),
        ("read_host", "1.0.0"),
    }
    for bundle in catalog.bundles():
        assert bundle.manifest.params.get("additionalProperties") is False, f"{bundle.manifest.name} swallows typos"


def test_freeze_copies_once_and_read_only(folder: Path, tmp_path: Path):
    catalog = Catalog([folder])
    bundle = catalog.resolve("sample", None)
    store = BundleStore(tmp_path / "home", catalog)
    frozen = store.freeze(bundle)
    assert frozen == tmp_path / "home" / "bundles" / bundle.digest
    assert bundle_digest(frozen) == bundle.digest
    assert {path.stat().st_mode & 0o777 for path in frozen.iterdir()} == {0o444}
    assert frozen.stat().st_mode & 0o777 == 0o555
    inode = (frozen / "plugin.py").stat().st_ino
    assert store.freeze(bundle) == frozen
    assert (frozen / "plugin.py").stat().st_ino == inode
    assert [path.name for path in frozen.parent.iterdir()] == [bundle.digest]


def test_a_frozen_copy_outlives_its_source(folder: Path, tmp_path: Path):
    catalog = Catalog([folder])
    bundle = catalog.resolve("sample", "1.0.0")
    digest, home = bundle.digest, tmp_path / "home"
    BundleStore(home, catalog).freeze(bundle)
    (bundle.source / "plugin.py").write_text("# edited in place\n")
    later = Catalog([folder])
    assert later.by_digest("sample", "1.0.0", digest) is None
    kept = BundleStore(home, later).bundle("sample", "1.0.0", digest)
    assert kept is not None
    assert kept.digest == digest
    assert BundleStore(home, later).freeze(kept) == home / "bundles" / digest
    assert BundleStore(home, later).bundle("sample", "1.2.0", digest) is None
    assert BundleStore(home, later).bundle("sample", "1.0.0", "0" * 64) is None


def test_a_source_that_changed_since_the_scan_is_not_frozen(folder: Path, tmp_path: Path):
    catalog = Catalog([folder])
    bundle = catalog.resolve("sample", None)
    (bundle.source / "plugin.py").write_text("# edited\n")
    with pytest.raises(PlatformFailure, match="changed since") as caught:
        BundleStore(tmp_path / "home", catalog).freeze(bundle)
    assert caught.value.reason == "bundle_unavailable"
    assert list((tmp_path / "home" / "bundles").iterdir()) == []


def test_a_damaged_copy_is_replaced(folder: Path, tmp_path: Path):
    catalog = Catalog([folder])
    bundle = catalog.resolve("sample", None)
    store = BundleStore(tmp_path / "home", catalog)
    frozen = store.freeze(bundle)
    os.chmod(frozen, 0o755)
    (frozen / "extra.py").write_text("# smuggled in\n")
    assert store.freeze(bundle) == frozen
    assert not (frozen / "extra.py").exists()
    assert [path.name for path in frozen.parent.iterdir()] == [bundle.digest]


def test_two_at_once_make_one_copy(folder: Path, tmp_path: Path):
    catalog = Catalog([folder])
    bundle = catalog.resolve("sample", None)
    start = threading.Barrier(8)
    failures: list[Exception] = []

    def freeze() -> None:
        start.wait()
        try:
            BundleStore(tmp_path / "home", catalog).freeze(bundle)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=freeze) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [path.name for path in (tmp_path / "home" / "bundles").iterdir()] == [bundle.digest]


def test_a_manifest_that_is_too_large_is_a_problem_not_a_burden(tmp_path: Path):
    source = write_bundle(tmp_path, "vast")
    (source / "plugin.toml").write_text(manifest_text("vast") + "#" * (1 << 20))
    assert "larger than" in Catalog([tmp_path]).problems[0]


CELLS = "[requires]\npython = ['sampled==1.0']\n[sandbox]\nisolation = 'namespace'\npreload = ['sampled']\n"


def test_what_is_preloaded_is_in_the_locked_wheels(tmp_path: Path):
    good = lock_for(make_wheel(tmp_path, files={"sampled/__init__.py": ""}))
    assert load(write_bundle(tmp_path / "good", more=CELLS, files={"wheels.lock": good})).manifest.preload == (
        "sampled",
    )
    (tmp_path / "other").mkdir()
    other = lock_for(make_wheel(tmp_path / "other", files={"other.py": "", "another.py": ""}))
    of_before = "".join(line for line in good.splitlines(keepends=True) if not line.startswith("modules"))
    for number, (files, hint) in enumerate(
        [
            ({"wheels.lock": other}, "'sampled' is no module of the locked wheels; they provide another, other"),
            ({"wheels.lock": of_before}, "make it anew with 'python -m cloche.registry.wheels FOLDER'"),
            ({"wheels.lock": good, "sampled.py": ""}, "'sampled' is in the bundle itself"),
            ({"wheels.lock": good, "sampled/x.py": ""}, "'sampled' is in the bundle itself"),
        ]
    ):
        with pytest.raises(ManifestError) as caught:
            load(write_bundle(tmp_path / str(number), more=CELLS, files=files))
        assert caught.value.key == "sandbox.preload"
        assert hint in caught.value.detail
