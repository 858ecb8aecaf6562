"""The agent for a plugin with an image of its own: runs the image's command between two files, ``/job/job.json`` and ``/job/result.json``.

The interpreter under this module is Cloche's own runtime; of the image only the command and what it loads are run, in a child process.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cloche_guest import first, job_secrets
from cloche_guest.link import Link
from cloche_guest.main import INPUTS, OUT, Agent, python_version, start, wait_for_the_end, way_out
from cloche_guest.protocol import PROTOCOL, ProtocolError, parse
from cloche_guest.relay import Relay

JOB = Path("/job")
_READ_ONLY_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Refused(Exception):
    """What the command left is no result. ``reason`` and ``numbers``: as in an error frame."""

    def __init__(self, reason: str, message: str, numbers: Mapping[str, int] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.numbers = numbers


@dataclass(frozen=True)
class Order:
    """What sandboxd says to run, and its whole environment."""

    command: Sequence[str]
    environment: Mapping[str, str]


class CommandAgent(Agent):
    """Like the agent of a Python plugin, with a command in the place of ``run``."""

    def __init__(
        self, link: Link, relay: Relay, order: Order, job: Path = JOB, inputs: Path = INPUTS, out: Path = OUT
    ) -> None:
        super().__init__(link, relay, inputs, out, job / Path(job_secrets.PLACE).name)
        self._order = order
        self._folder = job
        self._process: subprocess.Popen[bytes] | None = None
        self._canceled = False
        self._process_lock = threading.Lock()

    def serve_command(self) -> None:
        """Say ``ready``, wait for the job, run it. Returns after the result or error frame."""
        threading.Thread(target=self._read, name="frames", daemon=True).start()
        self._link.send({"type": "ready", "protocol": PROTOCOL, "python": python_version()})
        self._arrived.wait()
        frame = self._frame
        limits = frame["limits"]
        self._relay.allow(int(limits["log"]))
        network = way_out(frame.get("egress"))
        try:
            self._write_job(frame)
            job_secrets.write(self._secrets, self._place)
            code = self._run_command({} if network is None else network.environment)
            if code < 0:
                self._flush()
                die_of(-code)
            if code > 0:
                raise Refused("plugin_failed", f"the command ended with exit code {code}")
            value = read_result(self._folder / "result.json", int(limits["result"]))
        except Refused as error:
            self._fail(error.reason, str(error), None, error.numbers)
        else:
            self._succeed(value, int(limits["result"]))

    def _write_job(self, frame: Mapping[str, Any]) -> None:
        job = {
            "id": str(frame["id"]),
            "attempt": int(frame["attempt"]),
            "payload": frame["payload"],
            "inputs": [str(self._inputs / name) for name in frame["inputs"]],
            "out": str(self._out),
            "limits": frame["limits"],
        }
        data = json.dumps(job, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        fd = os.open(
            self._folder / "job.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        with os.fdopen(fd, "wb") as file:
            file.write(data)

    def _run_command(self, proxy: Mapping[str, str]) -> int:
        """Its exit code, or minus the signal that killed it. What is left of its process group has been killed then.

        ``proxy``: variables that tell it of its way out, where it has one.
        """
        try:
            with self._process_lock:
                self._process = process = subprocess.Popen(
                    self._order.command,
                    stdin=subprocess.DEVNULL,
                    cwd=self._out,
                    env={**self._order.environment, **proxy},
                    process_group=0,
                )
                if self._canceled:
                    os.killpg(process.pid, signal.SIGTERM)
        except OSError as error:
            message = f"the command {self._order.command[0]} cannot be started: {error.strerror}"
            raise Refused("plugin_failed", message) from None
        # Its number stays its own until it is reaped: until then its group can be signalled without meeting another.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._process_lock:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            self._process = None
            return process.wait()

    def _cancel(self) -> None:
        with self._process_lock:
            self._canceled = True
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGTERM)


def read_result(path: Path, limit: int) -> Any:
    """What the command says is its result: strict JSON in a regular file of at most ``limit`` bytes.

    Raises:
        Refused: there is none, it is something else, or too large.
    """
    try:
        fd = os.open(path, _READ_ONLY_FILE)
    except FileNotFoundError:
        raise Refused("no_result", f"the command ended with exit code 0 and left no {path}") from None
    except OSError as error:
        what = (
            "is not a regular file"
            if error.errno in (errno.ELOOP, errno.ENXIO)
            else f"cannot be read: {error.strerror}"
        )
        raise Refused("bad_result", f"{path} {what}") from None
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise Refused("bad_result", f"{path} is not a regular file")
        if facts.st_size > limit:
            message = f"{path} has {facts.st_size} bytes; the limit of a result is {limit}"
            raise Refused("result_too_large", message, {"used": facts.st_size})
        with os.fdopen(fd, "rb", closefd=False) as file:
            data = file.read(facts.st_size)
    finally:
        os.close(fd)
    try:
        return parse(data)
    except ProtocolError as error:
        raise Refused("bad_result", f"{path} was refused: {error}") from None


def die_of(number: int) -> NoReturn:
    """End as the command did, so that process 1 tells the host of the same signal."""
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)  # SIGKILL has no handler to reset
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def main(argument: str) -> NoReturn:
    """Entry of the container. ``argument``: the order as JSON, which sandboxd put together."""
    given = json.loads(argument)
    order = Order(given["command"], given["environment"])
    link, relay = start()
    first.set_dumpable(False)  # nothing of the plugin's runs in this process: it may end it, not speak for it
    CommandAgent(link, relay, order).serve_command()
    wait_for_the_end()
