"""Container peers of `./run bench sandbox --peers`, on a real engine, with a program that stands for theirs."""

from __future__ import annotations

import sys
from pathlib import Path

import docker
import pytest

from bench import sandbox_peers, sandbox_pool
from bench.engine import address
from bench.sandbox_peers import Peer

_PROGRAM = """
import json, os, subprocess
run = ["docker", "run", "--network", "none"]
image = os.environ["PEERS_IMAGE"]
subprocess.run([*run, "--rm", image, "python3", "-c", "pass"], check=True)
subprocess.run([*run, "--detach", image, "sleep", "600"], check=True, capture_output=True)
print(json.dumps({"peer": "one way", "p50_ms": 2.0, "p95_ms": 3.0, "jobs_s_c8": 4.0}))
print(json.dumps({"peer": "another", "p50_ms": 1.0, "p95_ms": 1.0, "jobs_s_c8": 9.0}))
"""


@pytest.mark.docker
def test_a_peer_runs_its_own_commands_in_our_image_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "containers").mkdir()
    (tmp_path / "containers" / "good.py").write_text(_PROGRAM)
    (tmp_path / "containers" / "bad.py").write_text("raise SystemExit('no such engine')")
    good, bad = (Peer(name, f"{name}.py", (), lambda _: "1.0") for name in ("good", "bad"))
    with sandbox_pool.alone() as bench:
        image = sandbox_pool.image_of(bench)
    with sandbox_peers.opened(image) as name:
        python = Path(sys.executable)
        assert sandbox_peers.run_peer(good, tmp_path, python, name) == {
            "one way": {"version": "1.0", "p50_ms": 2.0, "p95_ms": 3.0, "jobs_s_c8": 4.0},
            "another": {"version": "1.0", "p50_ms": 1.0, "p95_ms": 1.0, "jobs_s_c8": 9.0},
        }
        failed = sandbox_peers.run_peer(bad, tmp_path, python, name)
        assert failed == {"bad": {"not measured": "bad.py: CalledProcessError: no such engine"}}
        client = docker.DockerClient(base_url=address(), timeout=60)
        left = [found.id for found in client.containers.list(filters={"ancestor": name})]
        assert len(left) == 1  # the one that waits
    with pytest.raises(docker.errors.NotFound):
        client.containers.get(left[0])
    assert not client.images.list(name)
    client.close()
