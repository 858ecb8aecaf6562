"""A probe's oracle notices a breach: facts of a sandbox that lets something through are not held, and what the guest looks at shows it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloche.domain.runtimes import RUNC, RUNSC
from cloche.isolation.spec import CONTAINER, NAMESPACE
from cloche.sandboxd.probes import own_names, scenes
from cloche.sandboxd.probes.bench import ProbeBroken
from cloche.sandboxd.probes.probe import Probe, Verdict
from cloche.sandboxd.probes.run import Runner
from cloche.sandboxd.probes.table import for_level, for_runtime
from tests.support.probe_facts import CASES, EVERYWHERE, spoilt

ROOT = Path(__file__).parents[2]
ROWS: dict[str, dict[str, Probe]] = {
    where: {probe.id: probe for probe in probes}
    for where, probes in zip(EVERYWHERE, (for_runtime(RUNC), for_level(NAMESPACE), for_runtime(RUNSC)), strict=True)
}


def held(probe: Probe, facts: Any) -> bool:
    class Bench:
        def once(self, _observe: Any) -> Any:
            return {probe.id: facts} if probe.observe is None else facts

    return Runner(Bench(), [probe]).judge(probe).verdict is Verdict.HELD  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("where", "name", "facts", "breaches"), CASES, ids=[f"{where}-{name}" for where, name, *_ in CASES]
)
def test_an_oracle_tells_a_breach(
    where: str, name: str, facts: Any, breaches: list[tuple[tuple[Any, ...], Any]]
) -> None:
    probe = ROWS[where][name]
    assert held(probe, facts)
    for path, value in breaches:
        assert not held(probe, spoilt(facts, path, value)), (path, value)


@pytest.mark.parametrize("where", EVERYWHERE)
def test_a_wall_that_could_not_be_tried_is_not_held(where: str) -> None:
    """What raised has shown nothing, but where it says by name what is not there; nor has what died, but for a call table that kills."""
    killed = {("table_32bit", -31), ("table_32bit", -11), ("table_x32", -31)}
    for probe in ROWS[where].values():
        if probe.observe is not None:
            continue
        for raised in ("TypeError: no", "FileNotFoundError: no", "PermissionError: no"):
            assert not held(probe, {"raised": raised}), (probe.id, raised)
        for code in (-31, -11, -9, 0, 1):
            assert held(probe, {"died": code}) == ((probe.id, code) in killed), (probe.id, code)


_LOOK = """
import json
from sandbox.probes import files, identity
print(json.dumps({"descriptors": files.descriptors(None)["self"], "environment": identity.environment(None)}))
"""


def look(fds: list[int], **more: str) -> dict[str, Any]:
    """What the guest's own code sees in a process that was started with these descriptors and variables beside the usual ones."""
    done = subprocess.run(
        [sys.executable, "-c", _LOOK],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        pass_fds=fds,
        check=True,
        text=True,
    )
    return dict(json.loads(done.stdout))


def test_a_descriptor_or_a_variable_more_in_a_cell_is_a_breach() -> None:
    """Held with the channel and the pipes that a cell's probe has; not with whatever an agent or a runner could leave open beside them."""
    descriptors, environment = ROWS[NAMESPACE]["descriptors"], ROWS[NAMESPACE]["environment"]
    with ExitStack() as stack:

        def opened(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        channel, _other = (stack.enter_context(end) for end in socket.socketpair())
        usual = [channel.fileno(), *(opened(os.pipe()[0]) for _ in range(2))]  # beside its standard output and error
        leaks = {
            "pidfd": opened(os.pidfd_open(os.getpid())),
            "namespace": opened(os.open("/proc/self/ns/mnt", os.O_RDONLY)),
            "folder": opened(os.open("/", os.O_RDONLY)),
            "pipe": opened(os.pipe()[1]),
            "socket": stack.enter_context(socket.socket(socket.AF_UNIX)).fileno(),
            "memory": opened(os.memfd_create("left")),
        }
        seen = look(usual)
        assert held(descriptors, {"self": seen["descriptors"], "1": "ENOENT"}), seen
        for name, fd in leaks.items():
            assert not held(descriptors, {"self": look([*usual, fd])["descriptors"], "1": "ENOENT"}), name
    assert held(environment, seen["environment"] | {"first": "ENOENT"}), seen
    assert not held(environment, look([], CLOCHE_DATABASE_URL="x")["environment"] | {"first": "ENOENT"})


def test_names_of_the_probes_change_in_the_same_file(tmp_path: Path) -> None:
    names = own_names.OwnNames(tmp_path / "names", {"web.test": "127.0.0.1", "moving.test": "127.0.0.1"})
    file = tmp_path / "names" / "hosts"
    before = file.stat().st_ino
    assert file.read_text().splitlines() == ["127.0.0.1 localhost", "127.0.0.1 web.test", "127.0.0.1 moving.test"]
    names.change(moving="169.254.169.254")
    assert file.read_text().splitlines()[1:] == ["127.0.0.1 web.test", "169.254.169.254 moving.test"]
    assert file.stat().st_ino == before, "a mount holds on to the file that it was made of"
    assert oct(file.stat().st_mode & 0o777) == "0o644"


def test_memory_of_sockets_is_looked_at_while_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host counts after the sandbox's end tells nothing of it."""

    class Live:
        log = "sent 17000000\nfilled\n"
        ended = False

        def until(self, *_: object) -> None:
            pass

        def facts(self) -> dict[str, Any]:
            self.ended = True
            return {}

    class Bench:
        @contextmanager
        def live(self, *_: object) -> Iterator[Live]:
            yield made

    made, looked = Live(), list[bool]()

    def count() -> int:
        looked.append(made.ended)
        return 0 if len(looked) == 1 else 78 * 1_000_000

    monkeypatch.setattr(scenes, "_host_tcp_bytes", count)
    monkeypatch.setattr(scenes, "OTHERS_SECONDS", 0.5)
    facts = scenes.socket_memory(Bench())  # type: ignore[arg-type]
    assert len(looked) > 2
    assert not any(looked)
    assert not held(ROWS[CONTAINER]["socket_memory"], facts)


@pytest.mark.parametrize("began", [True, False])
def test_a_job_that_never_began_shows_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, began: bool) -> None:
    """It is not held for the silence that it has in common with one that was at its act."""
    if began:
        (tmp_path / "begun").touch()
    live = SimpleNamespace(
        running=SimpleNamespace(site=SimpleNamespace(folders=SimpleNamespace(out=tmp_path))),
        drive=lambda _: None,
        facts=lambda: {"overdue": True, "frames": {"ready": 1}},
        processes=list,
    )

    class Bench:
        @contextmanager
        def live(self, *_: object) -> Iterator[Any]:
            yield live

    monkeypatch.setattr(scenes, "BEGUN_SECONDS", 0.2)
    for name in ("frame_half", "frame_slow", "stops_itself"):
        observe = ROWS[CONTAINER][name].observe
        assert observe is not None
        if began:
            assert held(ROWS[CONTAINER][name], observe(Bench()))  # type: ignore[arg-type]
        else:
            with pytest.raises(ProbeBroken):
                observe(Bench())  # type: ignore[arg-type]
