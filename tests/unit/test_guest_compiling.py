"""The entry module compiled once for a slot's cells: in a process of its own, within bounds, and never by the one that asks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

RUN = """
import json, marshal, os, resource, sys, time
from pathlib import Path
from cloche_guest import compiling

source, told = Path(sys.argv[1]), Path(sys.argv[1] + ".told")
for name, value in json.loads(sys.argv[2]).items():
    setattr(compiling, name, value)
HOW = {
    "gives up": lambda: told.write_text(str(os.getpid())),
    "cannot": lambda: 1 / 0,
    "never": lambda: time.sleep(600),
    "whatever": lambda: (os.write(3, b"x" * 100), os._exit(0)),
}
before = sorted(os.listdir("/proc/self/fd"))
code = compiling.compiled(source, HOW[sys.argv[3]])
try:
    os.waitpid(-1, os.WNOHANG)
    left = True
except ChildProcessError:
    left = False
space = {}
if code is not None:
    exec(marshal.loads(code), space)
print(json.dumps({
    "value": space.get("value"), "none": code is None, "left": left, "same": sorted(os.listdir("/proc/self/fd")) == before,
    "own": told.exists() and int(told.read_text()) != os.getpid(),
}))
"""


def compiled(
    folder: Path, text: str | bytes, how: str = "gives up", bounds: Mapping[str, int] | None = None
) -> dict[str, object]:
    source = folder / "plugin.py"
    source.write_bytes(text.encode() if isinstance(text, str) else text)
    command = [sys.executable, "-c", RUN, str(source), json.dumps(bounds or {}), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    assert (found["left"], found["same"]) == (False, True), "no child and no descriptor stays"
    return found


def test_it_is_what_an_import_would_run(tmp_path: Path) -> None:
    found = compiled(tmp_path, b"# -*- coding: latin-1 -*-\nvalue = '\xe9' + str(len('x' * 300))")
    assert (found["value"], found["own"]) == ("é300", True)


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("value = (", {}),
        (b"value = '\xff'", {}),
        ("#" * 200, {"_MAX_SOURCE": 199}),
        ("value = '" + "x" * 5_000 + "'", {"_MAX_CODE": 4_000}),
    ],
    ids=["no Python", "no text", "long", "long code"],
)
def test_what_does_not_compile_within_bounds_is_left_to_the_cells(
    tmp_path: Path, text: str | bytes, bounds: dict[str, int]
) -> None:
    assert compiled(tmp_path, text, bounds=bounds)["none"]


@pytest.mark.parametrize("how", ["cannot", "never", "whatever"])
def test_nothing_is_taken_from_one_that_did_not_give_up_its_rights_or_says_half_of_it(tmp_path: Path, how: str) -> None:
    assert compiled(tmp_path, "value = 1", how, {"_SECONDS": 1})["none"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").mkdir()
    command = [sys.executable, "-c", RUN, str(tmp_path / "plugin.py"), "{}", "gives up"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["none"]
