"""What sandboxd and the egress proxy say to each other, and what is left to tell of a job's connections.

sandboxd connects to the proxy's socket and sends one request at a time, as frames of :mod:`cloche.isolation.wire`:

====== ============================ ==================================================================
op     fields                       answer
====== ============================ ==================================================================
open   sandbox, peers or group,     ``ok``; the request brings the sandbox's listening socket
       allow
close  sandbox                      ``ok`` and ``report``: see :func:`report_to_json`
health                              ``ok``, ``sandboxes``, ``connections``: how many are open
====== ============================ ==================================================================

``peers``: user ids whose connections count; ``group``: the cgroup whose processes' do, as /proc/PID/cgroup names it. ``allow``: endpoints as
text. When the connection ends, so does every sandbox's egress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from cloche.domain.egress import MAX_DECLARED, BadRule, Endpoint, parse_endpoint

MAX_RECORDED = 50  # connections of one attempt that are told one by one
SOCKET_NAME = "egress.sock"  # in the sandbox's own run/ folder, which is /run/cloche inside


class Verdict(StrEnum):
    """How a connection ended. `docs/plugins.md` lists each; a test compares."""

    CLOSED = "closed"
    NOT_ALLOWED = "not_allowed"
    ADDRESS_REFUSED = "address_refused"
    NO_SUCH_HOST = "no_such_host"
    UNREACHABLE = "unreachable"
    MALFORMED = "malformed"
    WRONG_USER = "wrong_user"
    TOO_MANY = "too_many_connections"
    BUSY = "busy"
    IDLE = "idle"
    TIME_LIMIT = "time_limit"
    BYTE_LIMIT = "byte_limit"
    JOB_ENDED = "job_ended"


@dataclass(frozen=True)
class EgressConnection:
    """One connection a job made or tried. ``address``: the pinned one, once there was one. Bytes as the job sees them; milliseconds,
    ``started_ms`` from the hand-over."""

    host: str | None
    port: int | None
    address: str | None
    verdict: str
    bytes_up: int
    bytes_down: int
    started_ms: int
    duration_ms: int


@dataclass(frozen=True)
class EgressReport:
    """All connections of one attempt: the first ``MAX_RECORDED`` one by one, and the sums of all."""

    connections: tuple[EgressConnection, ...] = ()
    total: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    verdicts: Mapping[str, int] = field(default_factory=dict)  # how many ended how


class BadMessage(ValueError):
    """A message between sandboxd and the egress proxy that is malformed."""


def parse_allow(value: Any) -> tuple[Endpoint, ...]:
    """Endpoints from the JSON that came over a socket.

    Raises:
        BadMessage: no list of endpoints, empty, or longer than a manifest may declare.
    """
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_DECLARED:
        raise BadMessage(f"allow is a list of 1 to {MAX_DECLARED} endpoints")
    try:
        return tuple(parse_endpoint(text) if isinstance(text, str) else _refuse() for text in value)
    except BadRule as error:
        raise BadMessage(f"allow: an entry {error}") from None


def report_to_json(report: EgressReport) -> dict[str, Any]:
    """What :func:`parse_report` reads."""
    return {
        "connections": [asdict(connection) for connection in report.connections],
        "total": report.total,
        "bytes_up": report.bytes_up,
        "bytes_down": report.bytes_down,
        "verdicts": dict(report.verdicts),
    }


def parse_report(value: Any) -> EgressReport:
    """
    Raises:
        BadMessage: it is none.
    """
    try:
        connections = [EgressConnection(**item) for item in _list(value["connections"])][:MAX_RECORDED]
        verdicts = {str(Verdict(name)): int(count) for name, count in value["verdicts"].items()}
        return EgressReport(
            tuple(connections), int(value["total"]), int(value["bytes_up"]), int(value["bytes_down"]), verdicts
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadMessage("no report of connections") from None


def cgroup_of(pid: int, proc: Path = Path("/proc")) -> str | None:
    """The cgroup of a process, by which its number is limited with version 1; None when that cannot be told."""
    found = None
    try:
        text = (proc / str(pid) / "cgroup").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        if "pids" in names.split(","):
            return path
        if not names:
            found = path
    return found


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise BadMessage("connections is a list")
    return value


def _refuse() -> Endpoint:
    raise BadMessage("an endpoint is text")
