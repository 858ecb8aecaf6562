"""The broker on Redis or Valkey."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cloche import failpoints
from cloche.errors import SettingsError, Unavailable
from cloche.failpoints import Point
from cloche.queueing import pace, scripts
from cloche.queueing.broker import HOLD_MS, NoIndex, Ready, Rules, Running, Spent, Taken
from cloche.queueing.redis_hints import PUSH_BATCH, Hints, Together, append, chunks

T = TypeVar("T")
# redis-py gives up on a blocking read after its socket time-out; blocking calls here stay well below it.
_SOCKET_TIMEOUT_S = 8.0
_BLOCK_MAX_S = 4.0


class RedisBroker(Hints):
    """See :class:`cloche.queueing.broker.Broker`. One instance a process; connects on first use and again after a loss."""

    def __init__(self, url: str) -> None:
        # Any: redis-py types every answer as a union of what all protocol versions and decoders could give.
        try:
            self._client: Any = redis.Redis.from_url(
                url,
                decode_responses=True,
                socket_timeout=_SOCKET_TIMEOUT_S,
                socket_connect_timeout=2.0,
                retry=Retry(NoBackoff(), 1),
                health_check_interval=15,
            )
        except ValueError as error:
            raise SettingsError(f"redis.url: {error}") from None
        super().__init__(self._client)
        self._take = self._client.register_script(scripts.TAKE)
        self._keep = self._client.register_script(scripts.KEEP)
        self._in_flight = self._client.register_script(scripts.IN_FLIGHT)
        self._depth = self._client.register_script(scripts.DEPTH)
        self._set_rules = self._client.register_script(scripts.SET_RULES)
        self._drop = self._client.register_script(scripts.DROP)
        self._spend = self._client.register_script(pace.SPEND)
        self._closed = threading.Event()

    def take(self, queues: Sequence[str], count: int, hold_ms: int = HOLD_MS) -> Sequence[Taken]:
        keys = [scripts.EPOCH, *(key for queue in queues for key in scripts.keys_of(queue))]
        arguments: list[str | int] = [count, hold_ms, *(scripts.ready_prefix(queue) for queue in queues)]
        found = self._guarded(lambda: self._take(keys=keys, args=arguments))
        if found is None:
            raise NoIndex
        parts = [iter(found)] * 5
        return [
            Taken(job_id, queues[int(number) - 1], tenant, int(float(score)), bool(int(fresh)))
            for number, tenant, job_id, score, fresh in zip(*parts, strict=True)
        ]

    def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        block = max(0.01, min(timeout_s, _BLOCK_MAX_S))
        keys = [scripts.wake_key(queue) for queue in queues]
        return self._guarded(lambda: self._client.blpop(keys, timeout=block)) is not None

    def keep(self, running: Iterable[Running]) -> None:
        fields: dict[str, list[str | int]] = defaultdict(list)
        for one in running:
            fields[one.queue] += [one.job_id, one.left_ms]
        for queue, values in fields.items():
            for chunk in chunks(values, 2 * PUSH_BATCH):
                self._run(self._keep, queue, chunk)

    def in_flight(self, queue: str, *, over: bool = False) -> Sequence[str]:
        return list(self._run(self._in_flight, queue, [int(over)]))

    def depth(self, queue: str) -> int:
        return int(self._run(self._depth, queue, [scripts.ready_prefix(queue)]))

    def set_rules(self, rules: Iterable[Rules]) -> None:
        for each in rules:
            name, limit = each.queue, "" if each.limit is None else each.limit
            values: list[str | int] = [name, scripts.ready_prefix(name), each.version, int(each.paused), limit]
            for tenant, share in each.shares.items():
                values += [tenant, int(share.paused), share.weight]
            self._run(self._set_rules, name, values, scripts.QUEUES)

    def queues(self) -> Sequence[str]:
        return list(self._guarded(lambda: self._client.smembers(scripts.QUEUES)))

    def drop(self, queue: str, version: int) -> None:
        self._run(self._drop, queue, [queue, scripts.ready_prefix(queue), version], scripts.QUEUES)

    def spend(self, limits: Sequence[tuple[str, int]], count: int) -> Spent | None:
        keys, numbers = [pace.pace_key(name) for name, _ in limits], [limit for _, limit in limits]
        place, used, wait_ms = self._guarded(lambda: self._spend(keys=keys, args=[count, *numbers]))
        return Spent(int(place) - 1, int(used), max(1, int(wait_ms))) if int(place) else None

    def rebuild(self, items: Iterable[Ready], rules: Iterable[Rules], running: Iterable[Running] = ()) -> None:
        # Only adds, then marks the index as whole: a job pushed meanwhile by another process is kept, and one that is no longer
        # pending is refused by its claim in the database. Rules come first: what is paused is so before anything can be taken.
        self.set_rules(rules)
        self.push(items)
        self.keep(running)
        failpoints.hit(Point.INDEX_PUSHED)
        self._guarded(lambda: self._client.set(scripts.EPOCH, "1"))

    def whole(self) -> bool:
        return bool(self._guarded(lambda: self._client.exists(scripts.EPOCH)))

    def events(self, last_id: str | None, timeout_s: float) -> Sequence[tuple[str, dict[str, Any]]]:
        block = int(1000 * max(0.01, min(timeout_s, _BLOCK_MAX_S)))
        answer = self._guarded(lambda: self._client.xread({scripts.EVENTS: last_id or "$"}, count=500, block=block))
        if not answer:
            return []
        streams = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer]
        found = []
        for entries in streams:
            flat = entries[0] if entries and isinstance(entries[0], list) else entries
            found += [(str(key), _event(fields)) for key, fields in flat]
        return found

    def last_event_id(self) -> str:
        """The id of the newest event, to read on from; ``"0-0"`` when there is none."""
        newest = self._guarded(lambda: self._client.xrevrange(scripts.EVENTS, count=1))
        return str(newest[0][0]) if newest else "0-0"

    def has_event(self, event_id: str) -> bool:
        """Whether a reader that saw ``event_id`` last has missed nothing that was trimmed away."""
        oldest = self._guarded(lambda: self._client.xrange(scripts.EVENTS, count=1))
        return bool(oldest) and _order(str(oldest[0][0])) <= _order(event_id)

    def ping(self) -> None:
        self._guarded(self._client.ping)

    def close(self) -> None:
        self._closed.set()
        self._client.close()

    @contextmanager
    def together(self) -> Iterator[Together]:
        said = Together(self._client)
        yield said
        self._guarded(said.send)

    def _run(self, script: Any, queue: str, arguments: Sequence[str | int], *more: str) -> Any:
        keys = [*scripts.keys_of(queue), *more]
        return self._guarded(lambda: script(keys=keys, args=arguments))

    def _append(self, fields: dict[str, str]) -> None:
        self._guarded(lambda: append(self._client, fields))

    def _guarded(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except redis.RedisError as error:  # away, loading, read-only, out of memory: all are waited out
            raise Unavailable(f"Redis does not answer ({error})") from error


def _event(fields: dict[str, str]) -> dict[str, Any]:
    """The event of a stream entry; one that is not ours is an event of no type."""
    try:
        event = json.loads(fields.get("e", "{}"))
    except (ValueError, AttributeError):
        return {}
    return event if isinstance(event, dict) else {}


def _order(event_id: str) -> tuple[int, int]:
    ms, _, n = event_id.partition("-")
    return (int(ms), int(n or 0)) if ms.isdigit() and (n or "0").isdigit() else (0, 0)
