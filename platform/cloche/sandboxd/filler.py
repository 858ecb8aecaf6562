"""The threads behind the pools: they make what the pools ask for, and clear away what those give up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cloche import logs
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.spec import BadSpec
from cloche.sandboxd.pool import Pool
from cloche.sandboxd.pools import Pools
from cloche.sandboxd.warm import Warm
from cloche.sandboxd.watch import Watch

log = logs.get(__name__)
_SWEEP_S = 1.0


class Filler:
    """``start`` once, ``close`` once. At most one sandbox is being made per two CPUs, so that running jobs keep theirs."""

    def __init__(
        self,
        pools: Pools,
        watch: Watch,
        *,
        cpus: int,
        make: Callable[[SandboxSpec], Warm],
        destroy: Callable[[Warm], None],
    ) -> None:
        self._pools = pools
        self._watch = watch
        self._make = make
        self._destroy = destroy
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._fill, name=f"filler-{number}", daemon=True)
            for number in range(max(1, cpus // 2))
        ]
        self._threads.append(threading.Thread(target=self._look, name="pool-watch", daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Give up all that waits, and end; what could not be destroyed by then is left to whoever owns the host."""
        self._stop.set()
        self._pools.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=60)
        self._watch.close()

    def _fill(self) -> None:
        while True:
            pool: Pool | None = None
            with self._pools.changed:
                dead = self._pools.doomed()
                if dead is None:
                    if self._stop.is_set():
                        return
                    pool, wait_s = self._pools.next_fill()
                    if pool is None:
                        self._pools.changed.wait(wait_s)
            if dead is not None:
                self._clear_away(dead)
            elif pool is not None:
                self._fill_one(pool)

    def _fill_one(self, pool: Pool) -> None:
        try:
            warm = self._make(pool.key.template)
        except PlatformFailure as failure:
            self._pools.unfilled(pool, failure)
        except BadSpec as error:
            self._pools.unfilled(pool, PlatformFailure(Reason.BUNDLE_UNAVAILABLE, str(error)))
        except Exception:
            log.exception("warm_sandbox_not_made", bundle=pool.key.template.bundle)
            self._pools.unfilled(pool, PlatformFailure(Reason.PLATFORM_FAILED, "an unexpected error; see the log"))
        else:
            self._pools.filled(pool, warm)

    def _clear_away(self, warm: Warm) -> None:
        try:
            self._destroy(warm)
        except Exception as error:  # noqa: BLE001 - the host's keeper tries again
            log.error("warm_sandbox_not_destroyed", sandbox=warm.running.id, error=str(error))
        finally:
            self._pools.cleared()

    def _look(self) -> None:
        swept = time.monotonic()
        while not self._stop.is_set():
            left = swept + _SWEEP_S - time.monotonic()
            try:
                if new := self._watch.wait(max(0.0, left)):
                    self._pools.noticed(new)
                if left <= 0:
                    swept = time.monotonic()
                    self._pools.sweep()
            except Exception:
                log.exception("pool_watch_failed")
                self._stop.wait(_SWEEP_S)
