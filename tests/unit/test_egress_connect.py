"""What the egress proxy says in its log of a connection that it refuses: nothing that a job was given."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from structlog.testing import capture_logs

from cloche.domain.egress import Endpoint
from cloche.egress.connect import Connector, ConnectRefused


@pytest.mark.parametrize(
    ("host", "logged"), [("10.1.2.3", None), ("secret.example", "10.9.8.7")], ids=["an address", "a name"]
)
def test_a_refused_address_is_logged_unless_the_job_named_it(host: str, logged: str | None) -> None:
    async def resolve(_: str) -> list[str]:
        return ["10.9.8.7"]

    connector = Connector(resolve, 1.0, 1.0)
    # In a thread of its own: a browser that earlier tests drove leaves its event loop running in this one.
    with ThreadPoolExecutor(1) as thread, capture_logs() as lines, pytest.raises(ConnectRefused):
        thread.submit(lambda: asyncio.run(connector.connect(Endpoint(host, 443), ()))).result()
    (line,) = [line for line in lines if line["event"] == "egress_address_refused"]
    assert line["address"] == logged
    assert host not in str(lines)
