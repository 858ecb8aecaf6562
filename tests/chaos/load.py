"""Jobs of mixed kinds, and a client that does not give up: it repeats a request with its Idempotency-Key until it has an answer."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
from sqlalchemy import ColumnElement, func, or_, select

from cloche.db import tables as t
from cloche.errors import Unavailable
from tests.chaos.kinds import KINDS, Asked, Inputs, make
from tests.chaos.system import System

PATIENCE_S = 240.0  # how long a client repeats a request
_PAUSE_S = 0.1
_SPACING_S = 0.04  # between two submissions
_AT_ONCE = 32  # requests that follow later: one that waits for a job to fail keeps none from being canceled
_MOST_WAITING = 8  # jobs that have not ended, where the backlog is bounded
_LIVE = ["pending", "processing", "scheduled"]
_TOGETHER = 5  # jobs of a batch
_CROWD = 520  # more than are told of an end in its own transaction


class Load:
    """``start`` once; ``join`` returns when every job was accepted and every cancel and retry answered. ``more`` adds a job from another thread."""

    def __init__(
        self,
        system: System,
        rng: random.Random,
        jobs: int,
        *,
        cancel: bool = True,
        bounded: bool = True,
        callbacks: bool = True,
    ) -> None:
        self._system = system
        self._rng = rng
        self._bounded = bounded
        self._receiver = system.receiver.url if callbacks else None
        kinds, weights = [k for k, _, _ in KINDS], [w if k != "cancel" or cancel else 0 for k, w, _ in KINDS]
        self._planned = rng.choices(kinds, weights, k=jobs)
        self._lock = threading.Lock()
        self._count = system.next_numbers()
        self._thread = threading.Thread(target=self._submit_all, name="load", daemon=True)
        self._others = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="later")
        self._pending: list[Future[None]] = []
        self._inputs = Inputs()
        self._client = client_of(system)
        self._db = system.database()
        self._failure: BaseException | None = None
        self.asked: list[Asked] = []

    def start(self) -> None:
        for number in range(2):
            answer = self._client.post("/files", params={"name": f"in-{number}.txt"}, content=f"input {number}\n" * 99)
            answer.raise_for_status()
            made = answer.json()
            self._inputs.references.append({"from": f"artifact:{made['id']}"})
            self._inputs.digests.append(made["sha256"])
        self._thread.start()

    def wait_for(self, share: float) -> None:
        """Return once that share of the planned jobs was accepted."""
        while len(self.asked) < share * len(self._planned) and self._thread.is_alive():
            time.sleep(0.01)

    @property
    def busy(self) -> bool:
        """Whether planned jobs are still being submitted."""
        return self._thread.is_alive()

    def interrupted(self) -> int:
        """How many jobs wait for another attempt."""
        return self._counted(t.job.c.state.in_(["pending", "scheduled"]), t.job.c.attempt > 0)

    def in_danger(self, besides: str = "") -> int:
        """How many jobs that have not ended, ``besides`` that one, another death would treat worse than the first: one of their worker makes
        them dead letters, one of anything else lets them wait before they are tried again. By right, but it is not they that kill.
        """
        most = self._system.settings().retry.worker_deaths - 1
        worse = or_(t.job.c.worker_deaths >= most, t.job.c.platform_failures > t.job.c.worker_deaths)
        return self._counted(t.job.c.state.in_(_LIVE), worse, t.job.c.id != besides)

    def waiting(self) -> int:
        """How many of the accepted jobs have not ended; all of them where nobody can say."""
        return self._counted(t.job.c.state.in_(_LIVE))

    def _counted(self, *which: ColumnElement[bool]) -> int:
        try:
            return int(self._db.read(lambda connection: connection.scalar(select(func.count()).where(*which))) or 0)
        except Unavailable:  # the database is what the row takes away
            return len(self._planned)

    def join(self) -> None:
        self._thread.join()
        while self._pending:
            self._pending.pop().result()
        self._others.shutdown()
        self._client.close()
        self._db.close()
        if self._failure is not None:
            raise self._failure

    def more(self, kind: str, **changes: Any) -> Asked:
        """One more job now, or what its kind consists of: returns the last of those."""
        if kind in ("batch", "called-off"):
            return self._batch(kind, [self._made(kind) for _ in range(_TOGETHER)])
        if kind == "crowd":
            upstream = self._one(self._made("called-off"))
            crowd = [self._made(kind, depends_on=[upstream.job_id]) for _ in range(_CROWD)]
            last = self._batch(kind, crowd)
            self._later(self._cancel, f"/jobs/{upstream.job_id}", 0.0)
            return last
        if kind == "after":
            first = self.more(self._rng.choice(("quick", "sleep", "fail")))
            changes |= {"depends_on": [first.job_id]}
            if first.expected != "completed":
                changes |= {"depends_on_condition": "all_resolved"}
        if kind == "orphan":
            changes |= {"depends_on": [self.more("fail").job_id]}
        asked = self._one(self._made(kind, **changes))
        if kind == "cancel":
            self._later(self._cancel, f"/jobs/{asked.job_id}", self._rng.uniform(0, 1.5))
        if kind == "again":
            self._later(self._retry, asked.job_id)
        return asked

    def _made(self, kind: str, **changes: Any) -> Asked:
        with self._lock:
            self._count += 1
            asked = make(self._count, kind, self._rng, self._inputs, self._receiver)
        asked.body |= changes
        return asked

    def _one(self, asked: Asked) -> Asked:
        asked.job_id = self._accepted("/jobs", asked.body, f"chaos-{asked.n}")["id"]
        with self._lock:
            self.asked.append(asked)
        return asked

    def _batch(self, kind: str, asked: list[Asked]) -> Asked:
        batch = self._accepted("/jobs/batch", {"jobs": [one.body for one in asked]}, f"chaos-batch-{asked[0].n}")
        path: str | None = f"/batches/{batch['id']}/jobs?limit=100"
        ids: dict[int, str] = {}
        while path is not None:
            page = persist(self._client, "GET", path).json()
            ids |= {item["payload"]["n"]: item["id"] for item in page["items"]}
            cursor = page["next_cursor"]
            path = None if cursor is None else f"/batches/{batch['id']}/jobs?limit=100&cursor={cursor}"
        for one in asked:
            one.job_id = ids[one.n]
        with self._lock:
            self.asked += asked
        if kind == "called-off":
            self._later(self._cancel, f"/batches/{batch['id']}", self._rng.uniform(0, 0.5))
        return asked[-1]

    def _accepted(self, path: str, body: dict[str, Any], key: str) -> dict[str, Any]:
        answer = persist(self._client, "POST", path, json=body, headers={"Idempotency-Key": key})
        if answer.status_code != 202:
            raise AssertionError(f"refused: {answer.status_code} {answer.text}")
        return dict(answer.json())

    def _submit_all(self) -> None:
        try:
            for kind in self._planned:
                self.more(kind)
                time.sleep(_SPACING_S)
                while self._bounded and self.waiting() > _MOST_WAITING:
                    time.sleep(_SPACING_S)
        except BaseException as error:
            self._failure = error

    def _later(self, act: Callable[..., None], *arguments: Any) -> None:
        self._pending.append(self._others.submit(act, *arguments))

    def _cancel(self, path: str, after_s: float) -> None:
        time.sleep(after_s)
        self._post(f"{path}/cancel")

    def _retry(self, job_id: str) -> None:
        """Once it has failed. Where the answer is lost it may fail a third time, which is as good."""
        deadline = time.monotonic() + PATIENCE_S
        with self._client_of_its_own() as client:
            while persist(client, "GET", f"/jobs/{job_id}").json()["status"] != "failed":
                if time.monotonic() > deadline:
                    raise AssertionError(f"job {job_id} has not failed within {PATIENCE_S:.0f} s")
                time.sleep(_PAUSE_S)
        self._post(f"/jobs/{job_id}/retry")

    def _post(self, path: str) -> None:
        with self._client_of_its_own() as client:
            answer = persist(client, "POST", path)
        if answer.status_code not in (200, 202, 409):  # 409: a repeated request whose first answer was lost
            raise AssertionError(f"{path} refused: {answer.status_code} {answer.text}")

    def _client_of_its_own(self) -> httpx.Client:
        # To the address that the load has from its start: the stack has none in the moment in which it is started again.
        return httpx.Client(base_url=self._client.base_url, headers=self._client.headers, timeout=10, trust_env=False)


def client_of(system: System) -> httpx.Client:
    """A client of its own for a thread, with the stack's token."""
    return httpx.Client(base_url=system.client.base_url, headers=system.client.headers, timeout=10, trust_env=False)


def persist(client: httpx.Client, method: str, path: str, **request: Any) -> httpx.Response:
    """Repeat until there is an answer that is not 5xx or 429."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            answer = client.request(method, path, **request)
            if answer.status_code < 500 and answer.status_code != 429:
                return answer
            said = f"{answer.status_code} {answer.text[:200]}"
        except httpx.HTTPError as error:
            said = repr(error)
        if time.monotonic() > deadline:
            raise AssertionError(f"no answer to {method} {path} within {PATIENCE_S:.0f} s: {said}")
        time.sleep(_PAUSE_S)
