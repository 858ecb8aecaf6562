"""One engine with gVisor for the whole folder, and one sandboxd on it for each module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import gvisor
from tests.support.engine import Engine


@pytest.fixture(scope="session")
def gvisor_engine() -> Iterator[Engine]:
    with gvisor.running_engine() as running:
        yield running


@pytest.fixture(scope="module")
def bench(gvisor_engine: Engine) -> Iterator[gvisor.Bench]:
    with gvisor.bench(gvisor_engine.socket) as opened:
        yield opened
