"""What is said to Redis after a commit: each at once, or several in one trip."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import redis

from cloche.queueing import scripts
from cloche.queueing.broker import Ready, Taken

T = TypeVar("T")
PUSH_BATCH = 1_000  # ids in one call of a script
_Hint = (
    tuple[Any, list[str], Sequence[str | int]] | dict[str, str]
)  # a script with keys and arguments, or an event's fields


class Hints(ABC):
    """The part of :class:`cloche.queueing.broker.Broker` that answers nothing."""

    def __init__(self, client: Any) -> None:
        self._push = client.register_script(scripts.PUSH)
        self._free = client.register_script(scripts.FREE)
        self._remove = client.register_script(scripts.REMOVE)

    def push(self, items: Iterable[Ready]) -> None:
        fields: dict[str, list[str | int]] = defaultdict(list)
        for item in items:
            fields[item.queue] += [item.tenant, item.score, item.job_id]
        for queue, values in fields.items():
            head: list[str | int] = [scripts.WAKE_MAX, scripts.ready_prefix(queue)]
            for chunk in chunks(values, 3 * PUSH_BATCH):
                self._run(self._push, queue, [*head, *chunk])

    def give_back(self, taken: Iterable[Taken]) -> None:
        taken = list(taken)
        self.free((one.queue, one.job_id) for one in taken if one.fresh)
        self.push(taken)

    def remove(self, queue: str, tenant: str, job_ids: Iterable[str]) -> None:
        for ids in chunks(list(job_ids), PUSH_BATCH):
            self._run(self._remove, queue, [scripts.ready_prefix(queue), tenant, *ids])

    def free(self, ended: Iterable[tuple[str, str]]) -> None:
        fields: dict[str, list[str | int]] = defaultdict(list)
        for queue, job_id in ended:
            fields[queue].append(job_id)
        for queue, ids in fields.items():
            for chunk in chunks(ids, PUSH_BATCH):
                self._run(self._free, queue, chunk)

    def publish(self, event: dict[str, Any]) -> None:
        self._append({"e": json.dumps(event, separators=(",", ":"))})

    @abstractmethod
    def _run(self, script: Any, queue: str, arguments: Sequence[str | int], *more: str) -> Any: ...

    @abstractmethod
    def _append(self, fields: dict[str, str]) -> None: ...


class Together(Hints):
    """Keeps what it is told until :meth:`send`. Used by one thread."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self._client = client
        self._said: list[_Hint] = []

    def send(self) -> None:
        """All of it in the order it was said, and in one trip if there is more than one thing.

        Raises:
            RedisError: see redis-py. Some of it may have been done: each may be said again.
        """
        if len(self._said) == 1:
            self._say(self._said[0])
        if len(self._said) < 2:
            return
        pipe = self._client.pipeline(transaction=False)
        for one in self._said:
            if isinstance(one, dict):
                append(pipe, one)
            else:
                script, keys, arguments = one
                # Not by the script itself: in a pipeline that asks each time whether the server knows it.
                pipe.evalsha(script.sha, len(keys), *keys, *arguments)
        wrong = [answer for answer in pipe.execute(raise_on_error=False) if isinstance(answer, Exception)]
        for error in wrong:
            if not isinstance(error, redis.exceptions.NoScriptError):
                raise error
        if wrong:  # a new server: said once more one by one, in their order, they teach it
            for one in self._said:
                if not isinstance(one, dict):
                    self._say(one)

    def _say(self, one: _Hint) -> None:
        if isinstance(one, dict):
            append(self._client, one)
        else:
            script, keys, arguments = one
            script(keys=keys, args=arguments)

    def _run(self, script: Any, queue: str, arguments: Sequence[str | int], *more: str) -> None:
        self._said.append((script, [*scripts.keys_of(queue), *more], list(arguments)))

    def _append(self, fields: dict[str, str]) -> None:
        self._said.append(fields)


def append(client: Any, fields: dict[str, str]) -> None:
    """One entry of the event stream."""
    client.xadd(scripts.EVENTS, fields, maxlen=scripts.EVENTS_MAX, approximate=True)


def chunks(values: list[T], size: int) -> Iterable[list[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))
