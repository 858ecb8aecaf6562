"""The broker on Redis or Valkey."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cloche.errors import SettingsError, Unavailable
from cloche.queueing import scripts
from cloche.queueing.broker import NoIndex, Ready

T = TypeVar("T")
_PUSH_BATCH = 1_000
# redis-py gives up on a blocking read after its socket time-out; blocking calls here stay well below it.
_SOCKET_TIMEOUT_S = 8.0
_BLOCK_MAX_S = 4.0


class RedisBroker:
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
        self._push = self._client.register_script(scripts.PUSH)
        self._take = self._client.register_script(scripts.TAKE)
        self._closed = threading.Event()

    def push(self, items: Iterable[Ready]) -> None:
        by_queue: dict[str, list[str | int]] = defaultdict(list)
        for item in items:
            by_queue[item.queue] += [item.score, item.job_id]
        for queue, pairs in by_queue.items():
            keys = [scripts.ready_key(queue), scripts.wake_key(queue)]
            for start in range(0, len(pairs), 2 * _PUSH_BATCH):
                chunk = pairs[start : start + 2 * _PUSH_BATCH]
                self._guarded(partial(self._push, keys=keys, args=[scripts.WAKE_MAX, *chunk]))

    def take(self, queue: str, count: int) -> Sequence[str]:
        keys = [scripts.EPOCH, scripts.ready_key(queue), scripts.wake_key(queue)]
        taken = self._guarded(lambda: self._take(keys=keys, args=[count]))
        if taken is None:
            raise NoIndex
        return list(taken)

    def wait(self, queue: str, timeout_s: float) -> bool:
        block = max(0.01, min(timeout_s, _BLOCK_MAX_S))
        return self._guarded(lambda: self._client.blpop([scripts.wake_key(queue)], timeout=block)) is not None

    def remove(self, queue: str, job_ids: Iterable[str]) -> None:
        ids = list(job_ids)
        if ids:
            self._guarded(lambda: self._client.zrem(scripts.ready_key(queue), *ids))

    def depth(self, queue: str) -> int:
        return int(self._guarded(lambda: self._client.zcard(scripts.ready_key(queue))))

    def rebuild(self, items: Iterable[Ready]) -> None:
        # Only adds, then marks the index as whole: a job pushed meanwhile by another process is kept, and one that is no longer
        # pending is refused by its claim in the database.
        self.push(items)
        self._guarded(lambda: self._client.set(scripts.EPOCH, "1"))

    def whole(self) -> bool:
        return bool(self._guarded(lambda: self._client.exists(scripts.EPOCH)))

    def publish(self, event: dict[str, Any]) -> None:
        fields = {"e": json.dumps(event, separators=(",", ":"))}
        self._guarded(lambda: self._client.xadd(scripts.EVENTS, fields, maxlen=scripts.EVENTS_MAX, approximate=True))

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
