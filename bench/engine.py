"""What the container engine does by itself: the one that the settings name."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import docker

from cloche import config
from cloche.domain.runtimes import RUNC


def socket_path() -> str:
    """Its socket."""
    return str(config.load().sandbox.docker_socket)


def address() -> str:
    """Its address."""
    return f"unix://{socket_path()}"


def has_runtime(name: str) -> bool:
    client = docker.DockerClient(base_url=address(), timeout=60)
    try:
        return name in (client.info().get("Runtimes") or {})
    finally:
        client.close()


def run_seconds(image: str, program: str, *arguments: str, runtime: str = RUNC) -> float:
    """`docker run` of one program, as its user waits for it."""
    command = ["docker", "--host", address(), "run", "--rm", "--network", "none", "--read-only", "--runtime", runtime]
    began = time.perf_counter()
    subprocess.run([*command, "--entrypoint", program, image, *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


def engine_rate(image: str, count: int, threads: int = 2, runtime: str = RUNC) -> float:
    """Containers a second that are created, started, killed and removed."""
    client = docker.DockerClient(base_url=address(), timeout=60)

    def once(_n: int) -> None:
        waits = ["/bin/sh", "-c", "read line"]  # for input that never comes; not every image has a `sleep`
        made = client.containers.create(
            image, waits, entrypoint=[], stdin_open=True, network_mode="none", read_only=True, runtime=runtime
        )
        made.start()
        made.remove(force=True)

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(once, range(count)))
    rate = count / (time.perf_counter() - began)
    client.close()
    return rate
