"""docs/sandboxd.md against the running daemon: its tables are what is there, and its client runs a job."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from cloche.domain.limits import CEILINGS, FLOORS, Limits
from cloche.domain.states import Reason
from cloche.isolation import wire
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.spec_json import spec_to_json
from cloche.sandboxd import collect, running, server
from cloche.sandboxd.main import Sandboxd
from tests.support import sandbox as support

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "sandboxd.md").read_text()
READER = support.plugin("""
    print("at work")
    (job.out / "copy.txt").write_text(job.inputs[0].read_text().upper())
    return {"read": job.inputs[0].name}
""")


def table(head: str, after: str = "") -> dict[str, list[str]]:
    """The rows of the first table whose head begins so, by the names in their first cells. ``after``: not before this text."""
    start = DOCUMENT.index(f"\n| {head} |", DOCUMENT.index(after)) + 1
    found: dict[str, list[str]] = {}
    for line in DOCUMENT[start:].split("\n\n")[0].splitlines()[2:]:
        first, *others = [cell.strip() for cell in line.strip("|").split(" | ")]
        found |= dict.fromkeys(re.findall(r"`([a-z_]+)`", first), others)
    return found


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with support.temporary_home() as folder:
        yield folder


@pytest.fixture(scope="module")
def daemon(home: Path) -> Iterator[Sandboxd]:
    with support.running_sandboxd(home) as found:
        yield found


@pytest.mark.docker
def test_the_documents_client_runs_a_job(home: Path, daemon: Sandboxd) -> None:
    code = DOCUMENT[DOCUMENT.index("```python\n") :].split("```")[1].removeprefix("python\n")
    bundle = support.write_bundle(home, READER)
    command = [sys.executable, "-I", "-c", code, str(home / "run" / "sandboxd.sock"), bundle]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["last"] == {"type": "result", "value": {"read": "letter.txt"}}
    assert told["files"] == [["copy.txt", 5]]
    assert "at work" in done.stderr
    assert told["usage"].keys() <= table("usage").keys()
    assert {"cpu_ms", "memory_peak", "output_used", "output_bytes"} <= told["usage"].keys()
    support.wait_until(lambda: not daemon.host.listing(), "nothing is left")
    refused = subprocess.run([*command[:-1], "f" * 64], capture_output=True, text=True, timeout=60, check=False)
    assert refused.stderr.startswith("bundle_unavailable: ")


@pytest.mark.docker
def test_every_operation_is_told(daemon: Sandboxd) -> None:
    assert table("`op`").keys() - {"hello"} == daemon.server._operations.keys()


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", cell))


@pytest.mark.docker
def test_what_create_health_and_finish_answer_is_told(home: Path, daemon: Sandboxd) -> None:
    operations = table("`op`")
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(home / "run" / "sandboxd.sock"))
        health = _ask(stream, {"op": "hello", "owner": "reader", "session": None}, {"op": "health"})
        assert health.keys() - {"ok"} == names(operations["health"][0]) - {"id", "python", "source"}
        spec = spec_to_json(support.spec(support.write_bundle(home, READER)))
        made = _ask(stream, {"op": "create", "spec": spec})
        assert made.keys() - {"ok"} == names(operations["create"][1])
        remains = _ask(stream, {"op": "finish", "id": made["id"]})["remains"]
        assert remains.keys() == table("member", after="### What remains").keys()


def _ask(stream: socket.socket, *requests: dict[str, Any]) -> dict[str, Any]:
    """The answer to the last of them."""
    for request in requests:
        wire.send(stream, request, wire.MAX_REQUEST)
        answer, fds = wire.receive(stream, wire.MAX_REPLY)
        wire.close_all(fds)
        assert answer is not None
        assert answer["ok"], answer
    return answer


def test_the_spec_and_its_bounds_are_told() -> None:
    assert table("member").keys() == {field.name for field in fields(SandboxSpec)}
    rows = table("limit")
    assert rows.keys() == {field.name for field in fields(Limits)}
    for name, (least, most, *_) in rows.items():
        assert [least, most] == [str(getattr(FLOORS, name)), str(getattr(CEILINGS, name))], name


def test_every_reason_is_told() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "platform" / "cloche" / "sandboxd").glob("*.py"))
    assert {str(Reason[name]) for name in re.findall(r"Reason\.([A-Z_]+)", sources)} == table("`reason`").keys()


def test_the_figures_are_told() -> None:
    for words in (
        f"at most {wire.MAX_REQUEST >> 10} KiB from the client, {wire.MAX_REPLY >> 20} MiB to it",
        f"At most {server.MAX_CONNECTIONS} connections",
        f"no greeting within {server.HELLO_SECONDS} s",
        f"waits for its death ({running.DEATH_SECONDS} s at most, {running.LONGEST_DEATH_SECONDS} s while it gets on)",
        f"of what was left out, {collect.MAX_REFUSED} at most",
    ):
        assert words in DOCUMENT, words
