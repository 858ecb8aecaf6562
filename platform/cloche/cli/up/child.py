"""One supervised process: what to run, and one run of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cloche.cli.up.tether import tether


@dataclass(frozen=True)
class Service:
    """What the supervisor keeps running.

    ``argv`` gets the id of the run, a UUIDv7 that is new at each start. Services start in ascending ``stage`` and stop in descending;
    those of one stage stop together. ``grace_s``: seconds between SIGTERM and SIGKILL. ``ready`` is asked after the start, for at most
    ``ready_s`` seconds, before the next stage starts; it must answer at once. ``final``: exit codes after which it is not started again, each
    with what is said then.
    """

    name: str
    stage: int
    argv: Callable[[str], Sequence[str]]
    grace_s: float = 10.0
    ready: Callable[[], bool] | None = None
    ready_s: float = 10.0
    environment: Mapping[str, str] = field(default_factory=dict)
    final: Mapping[int, str] = field(default_factory=dict)


class Run:
    """One run of a service: a process that leads a group of its own and writes into a pipe.

    ``start`` in the main thread; ``reap`` exactly once, after ``pidfd`` became readable.
    """

    def __init__(self, service: Service, run_id: str, keep: Sequence[int] = ()) -> None:
        self.service = service
        self.id = run_id
        self.started = time.monotonic()
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            self.process = subprocess.Popen(
                list(service.argv(run_id)),
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                env=dict(service.environment),
                process_group=0,  # Ctrl-C reaches the supervisor alone; it decides the order
                pass_fds=keep,
                # Safe beside our threads: it makes one system call, resolved beforehand, and takes no lock.
                preexec_fn=tether(),
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        os.set_blocking(read, False)
        self.pipe = read
        try:
            self.pidfd = os.pidfd_open(self.process.pid)
        except OSError:  # no descriptor is left: a process nobody watches must not run
            self.kill()
            self.process.wait()
            os.close(read)
            raise

    def terminate(self) -> None:
        """Ask it to stop. Safe at any time before ``reap``."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the whole group. Safe at any time before ``reap``: until then the group's id cannot belong to another."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def reap(self) -> int:
        """Kill what the dead process left in its group and return its exit code (negative: the signal)."""
        self.kill()
        code = self.process.wait()
        os.close(self.pidfd)
        return code

    @property
    def lived_s(self) -> float:
        return time.monotonic() - self.started


def how_it_ended(code: int) -> str:
    """``-9`` → ``"was killed by SIGKILL"``; ``3`` → ``"exited with 3"``."""
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
