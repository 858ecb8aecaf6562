"""Keeps what this worker holds in flight in the index, so that limits of queues count it."""

from __future__ import annotations

import threading

from cloche import logs
from cloche.errors import Unavailable
from cloche.queueing.broker import LINGER_MS, Broker, Running
from cloche.worker.holds import Holds

_log = logs.get(__name__)


class Renewal:
    """At the heartbeat's pace, in a thread of its own: Redis may keep silent for longer than a lease, and the heartbeat must not wait for it.

    ``start`` once; ``close`` ends it, safe to call twice. What could not be told lapses there, and comes with the next round.
    """

    def __init__(self, broker: Broker, holds: Holds, lease_ms: int, every_s: float) -> None:
        self._broker = broker
        self._holds = holds
        self._lease_ms = lease_ms
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="in-flight", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            held = [hold.job for hold in self._holds.all() if not (hold.settled.is_set() or hold.lost.is_set())]
            try:
                self._broker.keep(Running(job.id, job.queue, self._lease_ms + LINGER_MS) for job in held)
            except Unavailable as error:
                _log.debug("the index is not told what runs", error=str(error))
            except Exception:  # noqa: BLE001 - without this thread limits would count less than what runs
                _log.exception("the index is not told what runs")
