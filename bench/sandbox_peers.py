"""Other ways to run a job in a container, in the same run on the same machine and engine.

``folder`` (``--peers``, ``CLOCHE_BENCH_PEERS``) holds ``containers/d_dockercli.py`` and ``containers/d_dockerpy.py``. Each takes
``PEERS_IMAGE`` (a local image with ``python3``, ``sleep`` and no entrypoint) and ``DOCKER_HOST`` from the environment, runs a Python that does
nothing, and prints one JSON line for each way it knows: ``peer`` (its name), ``p50_ms`` and ``p95_ms`` of jobs one after the other, and
``jobs_s_c8``, jobs a second of eight clients. How many jobs is theirs to say.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker

from bench.engine import address
from bench.peers_environment import Figures, NotInstalled, environment, unmeasured, version

_SECONDS = 300  # for one program
_SLEEP = (
    b'#!/bin/sh\nexec python3 -I -c "import time; time.sleep($1)"\n'  # an image made from the host's Python has none
)


@dataclass(frozen=True)
class Peer:
    """``program`` in ``containers/``, what it needs installed, and how its version is found in that environment."""

    name: str
    program: str
    needs: tuple[str, ...]
    version: Callable[[Path], str]


def _client(_python: Path) -> str:
    """Version of the command line."""
    told = subprocess.run(["docker", "--version"], capture_output=True, text=True, check=True).stdout
    return told.removeprefix("Docker version ").partition(",")[0]


PEERS = (
    Peer("docker's command line", "d_dockercli.py", (), _client),
    Peer("docker-py", "d_dockerpy.py", ("docker",), lambda python: version(python, "docker")),
)


def measured(folder: Path | None, image: str) -> dict[str, Figures]:
    """Figures of every way by its name; of a peer that could not be measured, by the peer's. ``image``: config digest of the sandboxes' own."""
    names = [peer.name for peer in PEERS]
    if folder is None:
        return unmeasured(names, "no folder of peers is given (--peers)")
    if shutil.which("docker") is None:
        return unmeasured(names, "docker is not on PATH")
    with tempfile.TemporaryDirectory(prefix="cloche-peers-") as home:
        try:
            python = environment(Path(home), *(need for peer in PEERS for need in peer.needs))
        except NotInstalled as error:
            return unmeasured(names, str(error))
        with opened(image) as plain:
            return {name: found for peer in PEERS for name, found in run_peer(peer, folder, python, plain).items()}


def run_peer(peer: Peer, folder: Path, python: Path, image: str) -> dict[str, Figures]:
    """Figures of each way that its program knows; or the reason why there are none."""
    variables = {**os.environ, "DOCKER_HOST": address(), "PEERS_IMAGE": image}
    command = [python, folder / "containers" / peer.program]
    try:
        done = subprocess.run(
            command, cwd=folder / "containers", env=variables, capture_output=True, timeout=_SECONDS, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        last = (error.stderr or b"").decode(errors="replace").strip().rpartition("\n")[2]
        return unmeasured([peer.name], f"{peer.program}: {type(error).__name__}: {last[:200]}")
    found = [json.loads(line) for line in done.stdout.decode().splitlines()]
    told = peer.version(python)
    return {row["peer"]: {"version": told, **{k: v for k, v in row.items() if k != "peer"}} for row in found}


@contextmanager
def opened(image: str) -> Iterator[str]:
    """A name for the same files, and ``sleep``, in an image that starts whatever it is told to. Afterwards it and all its containers are gone."""
    name = f"cloche-bench-peers:{uuid.uuid4().hex}"
    repository, _, tag = name.partition(":")
    client = docker.DockerClient(base_url=address(), timeout=60)
    try:
        made = client.containers.create(image, ["python3"], entrypoint=[""], network_mode="none")  # [""] takes it away
        try:
            made.put_archive("/usr/local/bin", _archive("sleep", _SLEEP))
            made.commit(repository, tag)
        finally:
            made.remove()
        try:
            yield name
        finally:
            for left in client.containers.list(all=True, filters={"ancestor": name}):
                left.remove(force=True)
            client.images.remove(name)
    finally:
        client.close()


def _archive(name: str, text: bytes) -> bytes:
    """A tar with one program."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(text), 0o755
        tar.addfile(member, io.BytesIO(text))
    return whole.getvalue()
