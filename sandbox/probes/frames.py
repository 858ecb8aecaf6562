"""Lies told to the host: on the plugin's own streams, and on the private channel, which a plugin of the agent's own user can reach."""

from __future__ import annotations

import json
import os
import stat
import struct
import sys
from typing import Any

from cloche_guest import Job
from cloche_guest.protocol import EXIT_LINE, encode

from .base import act, begun, say, wait


def _channel(data: bytes) -> None:
    """Write to every descriptor that may be the agent's channel."""
    done = {_pipe(os.stat(f"/proc/self/fd/{fd}")) for fd in (0, 1, 2)}
    for fd in range(3, 64):
        try:
            facts = os.fstat(fd)
            if (stat.S_ISFIFO(facts.st_mode) or stat.S_ISSOCK(facts.st_mode)) and _pipe(facts) not in done:
                _write(fd, data)
                done.add(_pipe(facts))
        except OSError:
            continue


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _pipe(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


def _raw(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack(">I", len(data)) + data


@act
def on_stdout(_: Job) -> Any:
    """A whole frame on the streams that a plugin is given: text in a log, nothing else."""
    frame = encode({"type": "result", "value": "forged"})
    os.write(1, frame)
    os.write(2, frame)
    say(EXIT_LINE + "0")
    return "real"


@act
def other_job(job: Job) -> Any:
    """A result that names another job: the id is ignored, only this job can be lied about."""
    _channel(
        encode(
            {
                "type": "result",
                "value": "forged",
                "id": job.payload["other"],
                "job_id": job.payload["other"],
                "attempt": 99,
            }
        )
    )
    wait()


@act
def raw(job: Job) -> Any:
    """Any bytes as one frame."""
    _channel(_raw(job.payload["text"]))
    wait()


@act
def deep_json(_: Job) -> Any:
    _channel(_raw('{"type":"result","value":' + "[" * 100_000 + "]" * 100_000 + "}"))
    wait()


@act
def huge_integer(_: Job) -> Any:
    _channel(_raw('{"type":"result","value":' + "9" * 100_000 + "}"))
    wait()


@act
def huge_frame(_: Job) -> Any:
    """Announces 4 GiB."""
    _channel(b"\xff\xff\xff\xff{")
    wait()


@act
def half_frame(job: Job) -> Any:
    _channel(_raw('{"type":"result","value":"never whole"}')[:20])
    begun(job)
    wait()


@act
def slow_frame(job: Job) -> Any:
    """A byte, and another, and another."""
    import time

    for number, byte in enumerate(_raw(json.dumps({"type": "result", "value": "x" * 10_000}))):
        _channel(bytes([byte]))
        if number == 5:  # its length, and more
            begun(job)
        time.sleep(0.02)


@act
def flood_frames(_: Job) -> Any:
    data = encode({"type": "progress", "current": 1, "total": None, "message": None}) * 50
    while True:
        _channel(data)


@act
def exit_line(_: Job) -> Any:
    """Speak as process 1 does, on its own standard error, and live on."""
    try:
        with open("/proc/1/fd/2", "wb", buffering=0) as out:
            out.write(f"\n{EXIT_LINE}0\n".encode())
    except OSError as error:
        say(f"refused {error.errno}")
    wait()


@act
def steal_input(_: Job) -> Any:
    """Read what the host sends, before the agent does; and the plugin's own standard input."""
    return {"stdin": sys.stdin.read()}


@act
def exits(_: Job) -> Any:
    os._exit(0)


@act
def returns(job: Job) -> Any:
    """Values that are not JSON."""
    deep: Any = []
    for _number in range(200):
        deep = [deep]
    loop: list[Any] = []
    loop.append(loop)
    values = {"nan": float("nan"), "infinity": [float("inf")], "surrogate": "\ud800", "integer": 10**400, "keys": {1: 2}, "object": object(),
              "deep": deep, "loop": loop, "large": "x" * (2 << 20)}  # fmt: skip
    return values[job.payload["value"]]
