"""What the container engine does by itself."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import docker


def engine_rate(image: str, count: int, threads: int = 2) -> float:
    """Containers a second that are created, started, killed and removed."""
    client = docker.DockerClient(base_url="unix:///var/run/docker.sock", timeout=60)

    def once(_n: int) -> None:
        made = client.containers.create(
            image, ["/bin/sh", "-c", "sleep 60"], entrypoint=[], network_mode="none", read_only=True
        )
        made.start()
        made.remove(force=True)

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(once, range(count)))
    rate = count / (time.perf_counter() - began)
    client.close()
    return rate
