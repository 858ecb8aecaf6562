"""The sandbox image on a real engine: one identity, rebuilt when its contents change, refused when it breaks a rule."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche import config
from cloche.errors import EnvironmentProblem
from cloche.sandboxd import doctor, image, image_parts
from cloche.sandboxd.engine import Engine, EngineRefused
from cloche.sandboxd.image import ensure_image
from cloche.sandboxd.tree import Node, add
from tests.support import sandbox as support
from tests.support.engine import running_engine

pytestmark = pytest.mark.docker
OWN = "cloche-sandbox:1"
TAG = "cloche-sandbox-test:1"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    client = Engine("/var/run/docker.sock")
    ensure_image(client, OWN, "host")
    yield client
    client.close()


@pytest.fixture
def tag(engine: Engine) -> Iterator[str]:
    yield TAG
    if engine.image(TAG) is not None:
        engine.remove_image(TAG)


def dockerfile(engine: Engine, tag: str, text: str) -> None:
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        add(tar, "Dockerfile", Node(mode=0o644, data=text.encode()))
    context.seek(0)
    engine.build(context, tag, {})


def test_it_has_the_same_id_on_every_build(tmp_path: Path) -> None:
    ids = []
    for name in ("a", "b"):
        with open(tmp_path / name, "w+b") as file:
            tree = image_parts.compiled(image_parts.host_tree())
            ids.append(image.write_image(file, tree, TAG, tree.digest()))
    assert ids[0] == ids[1]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.timeout(300)
def test_it_has_the_same_id_on_another_engine(engine: Engine) -> None:
    here = ensure_image(engine, OWN, "host")
    with running_engine() as second:
        client = Engine(str(second.socket))
        try:
            assert client.image(OWN) is None
            there = ensure_image(client, OWN, "host")
            loaded = client.image(there.id)
        finally:
            client.close()
    assert there == here
    assert loaded is not None
    assert loaded["RepoTags"] == [OWN]


def test_what_is_current_is_kept(engine: Engine) -> None:
    lines: list[str] = []
    first = ensure_image(engine, OWN, "host", lines.append)
    second = ensure_image(engine, OWN, "auto", lines.append)
    assert first == second
    assert first.source == "host"
    assert first.python == image_parts.PYTHON
    assert first.id.startswith("sha256:")
    assert lines == []


def test_other_contents_are_built_anew(engine: Engine, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ensure_image(engine, tag, "host")
    whole = image_parts.host_tree

    def changed() -> image_parts.Tree:
        tree = whole()
        tree.file("opt/cloche/note.txt", b"changed")
        return tree

    monkeypatch.setattr(image_parts, "host_tree", changed)
    after = ensure_image(engine, tag, "host")
    assert after.id != before.id
    assert ensure_image(engine, tag, "host") == after


def test_labels_and_no_more_than_it_needs(engine: Engine) -> None:
    facts = engine.image(OWN)
    assert facts is not None
    labels = facts["Config"]["Labels"]
    assert labels["org.cloche.python"] == image_parts.PYTHON
    assert labels["org.cloche.protocol"] == "1"
    assert facts["Config"]["User"] == "65534:65534"
    paths = image_parts.host_tree().nodes
    assert f"usr/local/bin/python{image_parts.PYTHON}" in paths
    assert "bin/sh" in paths
    assert not [path for path in paths if "/test/" in path or "/idlelib/" in path or "site-packages" in path]
    assert not [path for path in paths if path.startswith(("root/", "home/", "work/"))]


def test_on_a_base_of_the_operators_choice(engine: Engine, tag: str) -> None:
    lines: list[str] = []
    made = ensure_image(engine, tag, OWN, lines.append)
    assert made.python == image_parts.PYTHON
    assert made.source == OWN
    assert lines == [f"Building the sandbox image on {OWN} (Python {made.python})."]
    assert ensure_image(engine, tag, OWN, lines.append) == made
    assert ensure_image(engine, tag, "auto", lines.append) == made  # it stays what the operator chose
    assert len(lines) == 1
    with support.temporary_home() as home, support.running_sandboxd(home, image=tag):
        backend = support.client(home)
        facts = backend.facts()["image"]
        assert facts == {"id": made.id, "python": made.python, "source": OWN}
        outcome = support.run_job(
            backend, support.spec(support.write_bundle(home, support.plugin("return job.payload"))), {"a": 1}
        )
        backend.close()
    assert outcome.value == {"a": 1}


@pytest.mark.parametrize(
    ("line", "word"),
    [("VOLUME /data", "VOLUME"), ("HEALTHCHECK CMD true", "HEALTHCHECK"), ("ONBUILD ENV A=1", "ONBUILD")],
)
def test_bases_that_would_undo_a_sandbox(engine: Engine, tag: str, line: str, word: str) -> None:
    dockerfile(engine, tag, f"FROM {OWN}\n{line}\n")
    with pytest.raises(EnvironmentProblem, match=word):
        ensure_image(engine, "cloche-sandbox-test:never", tag)
    assert engine.image("cloche-sandbox-test:never") is None


def test_a_base_that_is_nowhere(engine: Engine) -> None:
    with pytest.raises(EngineRefused):
        ensure_image(engine, "cloche-sandbox-test:never", "cloche-no-such-image:0")


def test_the_doctor_finds_this_host_fit(tmp_path: Path) -> None:
    found = doctor.checks(config.load(home=tmp_path))
    assert [check.name for check in found] == [
        "root",
        "cgroups",
        "files",
        "disk",
        "mounts",
        "mount propagation",
        "loop devices",
        "clock",
        "engine",
        "seccomp",
        "limits",
        "swap",
        "runtimes",
        "apparmor",
        "user namespaces",
        "cells",
        "image",
        "gvisor",
    ]
    assert {check.status for check in found} <= {"ok", "warn"}, found
    assert all(check.advice for check in found if check.status != "ok")


def test_the_doctor_without_an_engine(tmp_path: Path) -> None:
    found = doctor.checks(config.load(home=tmp_path, sandbox={"docker_socket": str(tmp_path / "none.sock")}))
    (check,) = [check for check in found if check.status == "fail"]
    assert check.name == "engine"
    assert "does not answer" in check.detail
    assert "Docker" in check.advice
