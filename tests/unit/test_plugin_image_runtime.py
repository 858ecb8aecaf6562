"""The runtime that goes into plugins' own images: whole or not at all, and taking nothing from around it."""

from __future__ import annotations

import os
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.errors import EnvironmentProblem
from cloche.isolation.plugin_image import ENVIRONMENT, interpreter
from cloche.sandboxd import image_parts, runtime
from cloche.sandboxd.tree import Tree


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cl-") as place:
        yield Path(place) / "runtime"


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cl-") as place:
        yield runtime.ensure_runtime(Path(place) / "runtime")


def ask(root: Path, code: str, **environment: str) -> list[str]:
    command = [*interpreter(str(root)), "-c", code]
    done = subprocess.run(command, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_it_runs_the_guest(made: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(made / 'opt/cloche')!r}); import cloche_guest.command as c; print(c.__file__)"
    assert ask(made, code) == [str(made / "opt/cloche/cloche_guest/command.py")]


def test_only_root_reaches_it_and_every_job_reads_it(made: Path) -> None:
    assert made.parent.stat().st_mode & 0o777 == 0o700
    for place, names, files in os.walk(made):
        for name in [*names, *files]:
            mode = (Path(place) / name).stat().st_mode
            assert mode & 0o022 == 0, name
            assert mode & 0o444 == 0o444, name


def test_what_lies_above_it_is_not_looked_at(made: Path) -> None:
    """An interpreter looks for its library upwards from where it lies: in an image that is somebody else's folder."""
    above = made.parent.parent
    places = [above, above / "runtime"]
    name = f"python{image_parts.PYTHON.replace('.', '')}"
    try:
        for place in places:
            (place / "lib").mkdir()
            with zipfile.ZipFile(place / "lib" / f"{name}.zip", "w") as archive:
                archive.writestr("encodings/__init__.py", "import os; os._exit(66)")
            (place / "pyvenv.cfg").write_text("home = /nowhere\n")
        assert ask(made, "import sys; print(sys.prefix, sys.exec_prefix)") == [str(made / "usr/local")] * 2
    finally:
        for place in places:
            (place / "lib" / f"{name}.zip").unlink()
            (place / "lib").rmdir()
            (place / "pyvenv.cfg").unlink()


def test_it_is_written_once(made: Path) -> None:
    before = (made / "ld.so").stat()
    assert runtime.ensure_runtime(made.parent) == made
    assert (made / "ld.so").stat() == before


def test_what_a_crash_or_an_older_version_left_is_not_taken_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".new-abc" / "usr").mkdir(parents=True)
    (folder / ("0" * 64)).mkdir()

    def stop(_folder: Path) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(runtime, "_flush", stop)
        with pytest.raises(OSError, match="full"):
            runtime.ensure_runtime(folder)
    assert os.listdir(folder) == []
    target = runtime.ensure_runtime(folder)
    assert os.listdir(folder) == [target.name]


def test_an_interpreter_that_takes_something_from_elsewhere_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_PROVE", "print('/lib/evil.so')")
    with pytest.raises(EnvironmentProblem, match=r"takes /lib/evil\.so from outside"):
        runtime.ensure_runtime(folder)
    monkeypatch.setattr(runtime, "_PROVE", "raise SystemExit('broken')")
    with pytest.raises(EnvironmentProblem, match="does not run on this host: broken"):
        runtime.ensure_runtime(folder)


def test_a_host_without_a_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_parts, "host_tree", Tree)
    with pytest.raises(EnvironmentProblem, match="cannot be run"):
        runtime.runtime_tree()
