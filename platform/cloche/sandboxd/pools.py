"""All pools of a host: who gets which waiting sandbox, and which is to be made next. Decides; makes and destroys nothing itself."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cloche import logs
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.spec import out_on_disk, template
from cloche.sandboxd.budget import Share
from cloche.sandboxd.disk import WAITING_MARGIN
from cloche.sandboxd.pool import Key, Pool, Ticket
from cloche.sandboxd.sizing import Backoff, Bounds, Bucket
from cloche.sandboxd.turns import Turns
from cloche.sandboxd.warm import Warm
from cloche.sandboxd.watch import Watch

log = logs.get(__name__)
MAX_POOLS = 64  # versions with waiting sandboxes; the one longest unused goes first
SETUP_S = 30.0  # as long as a worker waits for a guest to be ready
WAIT_S = 10.0  # a job waits this long for a sandbox that is being made, then starts cold
_QUIET_S = 0.1  # after a request: a short job ends before the next sandbox is made beside it
_LONGEST_QUIET_S = 0.3  # however fast the requests follow each other
_GIVEN_UP_S = 0.01  # until what was given up is cleared away, and the room looked at again
_HOLD_S = 1.0  # while jobs wait for cold starts, one is made this often at most


@dataclass(frozen=True)
class Load:
    """Of the host: how many more sandboxes there may be, how many jobs wait for a cold start, and the free bytes of its disk."""

    room: int
    cold: int
    disk: int


class Pools:
    """Thread-safe; one lock guards all. ``take`` from any thread; fillers loop over ``next_fill``, then ``filled`` or ``unfilled``,
    and destroy what ``doomed`` hands out (it is dead already), then ``cleared``; a watcher calls ``noticed``, and ``sweep`` every second."""

    def __init__(
        self,
        bounds: Bounds,
        watch: Watch,
        load: Callable[[], Load],
        share: Share,
        *,
        fill_rate: float,
        cpus: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bounds = bounds
        self._watch = watch
        self._load = load
        self._share = share
        self._cpus = cpus
        self._now = now
        self._bucket = Bucket(fill_rate, burst=max(1.0, fill_rate))
        self._lock = threading.Lock()
        self.changed = threading.Condition(self._lock)  # something may be to fill or to destroy
        self._pools: dict[Key, Pool] = {}
        self._where: dict[Warm, Pool] = {}
        self._doomed: deque[Warm] = deque()
        self._clearing = 0  # handed out by ``doomed``: each has its place on the host until it is destroyed
        self._asked: deque[Ticket] = deque()
        self._turns = Turns()
        self._pause = Backoff()  # of the engine, not of a plugin
        self._last_fill = float("-inf")
        self._closed = False

    # --- what jobs ask for ---

    def take(self, spec: SandboxSpec, owner: str, image: str) -> Ticket:
        """A waiting sandbox, or the reason why there is none; the ticket is settled. Waits only for one that is being made already.

        Of requests that come at once, :class:`Turns` says which is served first.
        """
        ticket = Ticket(Key(template(spec), image), owner, spec.priority, self._turns.number())
        self._asked.append(ticket)  # before the lock: whoever has it next serves all who ask, the first of them first
        with self._lock:
            self._serve()
            self.changed.notify()
        if not ticket.settled.wait(WAIT_S):
            with self._lock:
                if not ticket.settled.is_set():
                    self._refuse(self._pools.get(ticket.key), ticket, "none was made in time")
        return ticket

    def _serve(self) -> None:
        asked = []
        while self._asked:
            asked.append(self._asked.popleft())
        while (first := self._turns.first(asked)) is not None:
            asked.remove(first)
            self._answer(first)

    def _answer(self, ticket: Ticket) -> None:
        now = self._now()
        if self._closed:
            ticket.refuse("sandboxd is stopping")
            return
        pool = self._open(ticket.key)
        pool.arrivals.note(now)
        for kept in (pool.idle, pool.warming):
            while kept:
                warm = kept[0]
                why = warm.check()
                if why is None:
                    self._let_go(pool, warm)
                    self._grant(pool, ticket, warm)
                    return
                self._lose(pool, warm, why)
        if pool.making <= len(pool.waiting):
            last = self._turns.last(pool.waiting)
            if last is None or last.priority >= ticket.priority:
                self._refuse(pool, ticket, pool.refusal(now))
                return
            self._refuse(pool, last, "one of a higher priority took its turn")
        pool.waiting.append(ticket)

    def _grant(self, pool: Pool, ticket: Ticket, warm: Warm) -> None:
        pool.counts.hits += 1
        if warm.ready:
            pool.backoff.succeeded()
            pool.problem = pool.kind = None
        self._turns.served(ticket)
        ticket.grant(warm)

    def _refuse(self, pool: Pool | None, ticket: Ticket, why: str) -> None:
        if pool is not None:
            pool.counts.cold += 1
            if ticket in pool.waiting:
                pool.waiting.remove(ticket)
        ticket.refuse(why)

    def _open(self, key: Key) -> Pool:
        pool = self._pools.get(key)
        if pool is None:
            if len(self._pools) >= MAX_POOLS:
                self._drop(min(self._pools.values(), key=lambda pool: pool.arrivals.last))
            pool = self._pools[key] = Pool(key)
        return pool

    # --- what fillers do ---

    def next_fill(self) -> tuple[Pool | None, float]:
        """The pool to make one for now (then counted there); or None, and after how many seconds to ask again at the latest. Holds the
        lock already: call it with ``changed``."""
        now = self._now()
        held = max(self._bucket.wait_s(now), self._pause.until - now)
        load = self._load()
        if load.cold >= self._cpus:
            held = max(held, self._last_fill + _HOLD_S - now)
        if held > 0 or self._closed:
            return None, max(0.01, min(held, 1.0))
        soonest = 1.0
        needy = [pool for pool in self._pools.values() if pool.shortage(self._bounds, now) > 0]
        for pool in sorted(needy, key=lambda pool: (pool.fails(), pool.kept(), -pool.arrivals.last)):
            pool.short_since = now if pool.short_since is None else pool.short_since
            if (quiet := min(pool.arrivals.last + _QUIET_S, pool.short_since + _LONGEST_QUIET_S) - now) > 0:
                soonest = min(soonest, quiet)
            elif self._fits(pool, load):
                pool.making += 1
                pool.short_since = None
                self._bucket.take(now)
                self._last_fill = now
                return pool, 0.0
            elif self._made_room(pool, load, now):
                return None, _GIVEN_UP_S  # the room is this pool's: none that comes after it gets it
        return None, soonest

    def filled(self, pool: Pool, warm: Warm) -> None:
        """It was made and started; its plugin may still be at its setup."""
        with self._lock:
            pool.making -= 1
            self._pause.succeeded()
            if pool.retired or self._closed or warm.image != pool.key.image:
                self._doom(warm)
            elif (first := self._turns.first(pool.waiting)) is not None:
                pool.waiting.remove(first)
                self._grant(pool, first, warm)
            else:
                pool.warming.append(warm)
                self._where[warm] = pool
                self._watch.add(warm)
                self._note(pool, warm)

    def unfilled(self, pool: Pool, failure: PlatformFailure) -> None:
        """It could not be made."""
        with self._lock:
            now = self._now()
            pool.making -= 1
            pool.counts.failed += 1
            if failure.reason == Reason.BUNDLE_UNAVAILABLE:
                self._blame(pool, failure.message, "it cannot be made here")
            else:
                self._pause.failed(now)
            while len(pool.waiting) > pool.making and (last := self._turns.last(pool.waiting)) is not None:
                self._refuse(pool, last, f"none could be made: {failure.message}")

    def doomed(self) -> Warm | None:
        """One that is dead and has to be destroyed, now the caller's until ``cleared``. Holds the lock already: call it with ``changed``."""
        if not self._doomed:
            return None
        self._clearing += 1
        return self._doomed.popleft()

    def cleared(self) -> None:
        """One that ``doomed`` handed out is destroyed, or cannot be: nobody counts on its place any more."""
        with self._lock:
            self._clearing -= 1
            self.changed.notify()

    def _fits(self, pool: Pool, load: Load) -> bool:
        """Whether there is room and memory for one more."""
        return self._has_disk(pool, load) and load.room > 1 and self._share.fits(self._used(), int(pool.each.value))

    def _has_disk(self, pool: Pool, load: Load) -> bool:
        limits = pool.key.template.limits
        return not out_on_disk(limits) or load.disk >= WAITING_MARGIN * limits.output

    def _used(self) -> int:
        """Bytes that all pools take."""
        return int(sum(pool.bytes() for pool in self._pools.values()))

    def _made_room(self, pool: Pool, load: Load, now: float) -> bool:
        """Whether a pool that was not asked for longer gave one up for this one, which does not fit; or what was given up already will do, once
        it is cleared away. None does in vain: only where enough can, and for one that can be made."""
        if pool.fails() or load.room < 1 or not self._has_disk(pool, load):
            return False
        # Its memory is nobody's as soon as it is given up, but its place is free only when it has died.
        coming = len(self._doomed) + self._clearing
        if load.room + coming > 1 and self._share.fits(self._used(), int(pool.each.value)):
            return True
        stale = [each for each in self._pools.values() if each.arrivals.last < pool.arrivals.last]
        spare = {each: found for each in stale if (found := self._spare(each, pool, now))}
        could = sum(warm.memory for found in spare.values() for warm in found)
        if not spare or self._used() - could + int(pool.each.value) > self._share.most():
            return False
        self._evict(min(spare, key=lambda each: each.arrivals.last))
        return True

    def _spare(self, stale: Pool, pool: Pool, now: float) -> list[Warm]:
        """What the one pool may give up for the other: what it has too many of, and what it has more of than the other. Nothing else, as it would
        be short of it then, come before the other in its turn, and take the room again."""
        more = max(stale.kept() - pool.kept(), -stale.shortage(self._bounds, now))
        count = min(more, len(stale.idle) - self._bounds.least)
        return list(stale.idle)[: max(0, count)]

    # --- what the watcher sees ---

    def noticed(self, some: Iterable[Warm]) -> None:
        """Something happened to them."""
        with self._lock:
            for warm in some:
                if (pool := self._where.get(warm)) is not None:
                    self._note(pool, warm)

    def sweep(self) -> None:
        """Find what is dead, wedged, overdue or too much; forget pools that nobody uses."""
        with self._lock:
            now = self._now()
            for warm, pool in list(self._where.items()):
                if warm in pool.warming and now - warm.started_at > SETUP_S:
                    self._lose(pool, warm, f"its setup took longer than {SETUP_S:.0f} s")
                elif warm.check() is not None or (warm.ready and not warm.idles(now)):
                    self._lose(pool, warm, warm.failure or "")
                elif warm.ready and now - warm.ready_at > self._bounds.idle_s:
                    pool.counts.expired += 1
                    self._let_go(pool, warm)
                    self._doom(warm)
            while (over := self._over_budget()) is not None:
                # It may have grown since it was ready, and so would the next one: that is made only where this much fits.
                over.each.value = max(over.each.value, float(over.idle[0].memory))
                self._evict(over)
            for pool in list(self._pools.values()):
                if not pool.kept() and not pool.waiting and now - pool.arrivals.last > 2 * self._bounds.idle_s:
                    self._pools.pop(pool.key)
            self.changed.notify_all()

    def _over_budget(self) -> Pool | None:
        """The pool that has to give one up, if any. It is the one not asked for longest, as when another needs its room: that one does not get
        it back at the cost of others. Where no single one is enough it is the pool that takes most."""
        used = self._used()
        if self._share.fits(used):
            return None
        full = [pool for pool in self._pools.values() if pool.idle]
        most = self._share.most()
        enough = [pool for pool in full if used - pool.idle[0].memory <= most]
        if enough:
            return min(enough, key=lambda pool: pool.arrivals.last)
        return max(full, key=Pool.bytes, default=None)

    def _note(self, pool: Pool, warm: Warm) -> None:
        if (why := warm.check()) is not None:
            self._lose(pool, warm, why)
        elif warm.ready and warm in pool.warming:
            pool.warming.remove(warm)
            pool.idle.append(warm)
            pool.fill_s.note(warm.ready_at - warm.began)
            pool.each.note(float(warm.memory))

    def _lose(self, pool: Pool, warm: Warm, why: str) -> None:
        """One that waited is unfit, by its own doing as far as we can tell: its pool is refilled only after a while."""
        self._let_go(pool, warm)
        if warm.ready:
            pool.counts.lost += 1
        else:
            pool.counts.failed += 1
        self._blame(pool, why, "its setup raised an error" if warm.said else why)
        log.info("warm_sandbox_lost", sandbox=warm.running.id, bundle=pool.key.template.bundle, why=pool.kind)
        self._doom(warm)

    def _blame(self, pool: Pool, why: str, kind: str) -> None:
        if (
            now := self._now()
        ) >= pool.backoff.until:  # several that end together, as with an engine's restart, are one failure
            pool.backoff.failed(now)
        pool.problem, pool.kind = why, kind

    # --- letting go ---

    def retire(self, bundle: str) -> int:
        """Give up every sandbox that waits with this bundle; how many there were. Killed when this returns."""
        with self._lock:
            found = [pool for pool in self._pools.values() if pool.key.template.bundle == bundle]
            count = sum(pool.kept() for pool in found)
            for pool in found:
                self._drop(pool)
            self.changed.notify_all()
            return count

    def give_up_one(self) -> Warm | None:
        """One that waits, so that a job has room: killed, and the caller's to destroy."""
        with self._lock:
            full = [pool for pool in self._pools.values() if pool.idle]
            if not full:
                return None
            self._evict(min(full, key=lambda pool: pool.arrivals.last))
            return self._doomed.pop()

    def close(self) -> None:
        """Give up all, and start nothing more."""
        with self._lock:
            self._closed = True
            for pool in list(self._pools.values()):
                self._drop(pool)
            self.changed.notify_all()

    def facts(self, busy: Counter[SandboxSpec]) -> list[dict[str, object]]:
        """Each pool in numbers; ``busy``: how many sandboxes of a template have jobs."""
        with self._lock:
            return [pool.facts(busy[pool.key.template]) for pool in self._pools.values()]

    def _drop(self, pool: Pool) -> None:
        self._pools.pop(pool.key, None)
        pool.retired = True
        for ticket in list(pool.waiting):
            self._refuse(pool, ticket, "its pool was given up")
        for warm in [*pool.idle, *pool.warming]:
            self._let_go(pool, warm)
            self._doom(warm)

    def _evict(self, pool: Pool) -> None:
        pool.counts.evicted += 1
        warm = pool.idle[0]
        self._let_go(pool, warm)
        self._doom(warm)

    def _let_go(self, pool: Pool, warm: Warm) -> None:
        self._watch.remove(warm)
        self._where.pop(warm, None)
        pool.settle(warm)

    def _doom(self, warm: Warm) -> None:
        warm.close()
        self._doomed.append(warm)
        self.changed.notify()
