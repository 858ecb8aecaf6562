"""The real app on a loopback port over a real database and a real Valkey, and a hand that drives jobs as a worker would."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Flask
from sqlalchemy import update
from werkzeug.serving import WSGIRequestHandler, make_server

from cloche import config, wiring
from cloche.clock import now_ms, uuid7
from cloche.db import migrate
from cloche.db import tables as t
from cloche.db.engine import check_home
from cloche.domain.events import Trace
from cloche.domain.jobs import ClaimedJob, InputSpec, OutputFile, OutputSpec, RetryPolicy, Success
from cloche.domain.permissions import Actor
from cloche.domain.retries import PlatformBudget
from cloche.errors import JobFailure
from cloche.services import effects
from cloche.services.attempts import AttemptRecorder
from cloche.services.container import Services
from cloche.services.passwords import PasswordVault
from cloche.services.sealer import Sealer
from cloche.services.transitions import Transitions
from cloche.web.app import create_app
from tests.support import plugins, stores

PASSWORD = "a long enough password"
ECHO = """
[inputs]
accept = [".csv", ".txt", ".png"]
[params]
type = "object"
required = ["title"]
additionalProperties = false
[params.properties.title]
type = "string"
minLength = 1
[params.properties.width]
type = "integer"
minimum = 1
maximum = 4096
default = 256
description = "Longest side in pixels."
"""


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        return


@dataclass
class Site:
    """``people`` are made with :meth:`person`; each test takes a tenant of its own, so that its lists begin empty."""

    url: str
    app: Flask
    services: Services
    home: Path

    def person(self, role: str = "admin", tenant_id: str | None = None) -> Actor:
        """A user who can sign in with :data:`PASSWORD`."""
        db = self.services.db
        name = f"{role}-{uuid7()[-12:]}"
        actor = stores.add_actor(db, tenant_id or stores.add_tenant(db, f"t-{uuid7()}"), name, role)
        encoded = PasswordVault().hash(PASSWORD)
        db.write(lambda c: c.execute(update(t.user).where(t.user.c.id == actor.user_id).values(password_hash=encoded)))
        return actor

    def submit(self, actor: Actor, **body: Any) -> dict[str, Any]:
        """An accepted job of plugin ``echo``."""
        _, job = self.services.jobs.submit(actor, {"type": "echo", "payload": {"title": "x"}, **body})
        return job

    def claim(self, job_id: str) -> Hand:
        """Take the job as a worker would."""
        worker = uuid7()
        transitions = Transitions(self.services.audit_log, PlatformBudget(5, 3))
        rows, done = self.services.db.write(lambda c: transitions.claim(c, [job_id], worker, now_ms(), 600_000))
        effects.apply(self.services.broker, done)
        return Hand(self, worker, transitions, _claimed(rows[0]))

    def seal(self) -> None:
        Sealer(self.services.db, self.services.keyring, "sealer-test").run_once()


class Hand:
    """One worker holding one attempt."""

    def __init__(self, site: Site, worker: str, transitions: Transitions, job: ClaimedJob) -> None:
        self._site = site
        self._worker = worker
        self._transitions = transitions
        self.job = job
        self._seq = 0

    def traced(self, event: Trace, **details: Any) -> None:
        recorder = AttemptRecorder(self._site.services.db, self._worker)
        recorder.writing(self.job, recorder.told(self.job, [(event, details)]), "running", None).result()

    def write(self, *texts: str, stream: str = "stdout", progress: dict[str, Any] | None = None) -> None:
        """Pieces of the log, and what is told of them."""
        pieces = [
            {"seq": self._seq + n, "at": now_ms(), "stream": stream, "text": text}
            for n, text in enumerate(texts, start=1)
        ]
        self._seq += len(pieces)
        AttemptRecorder(self._site.services.db, self._worker).logged(self.job, pieces, progress)
        event = {"type": "log", "id": self.job.id, "tenant": self.job.tenant_id, "attempt": self.job.attempt}
        self._site.services.broker.publish({**event, "seq": self._seq})
        if progress:
            self._site.services.broker.publish({**event, "type": "progress"})

    def succeed(self, actor: Actor, result: Any, files: dict[str, bytes] | None = None) -> None:
        outputs = tuple(self._stored(actor, path, content) for path, content in (files or {}).items())
        outcome = Success(result, outputs, {"cpu_ms": 12, "memory_peak": 40 << 20})
        self._settle(
            lambda c: self._transitions.succeed(c, self.job.id, self.job.attempt, self._worker, outcome, now_ms())
        )

    def fail(self, failure: JobFailure) -> None:
        self._settle(
            lambda c: self._transitions.fail(c, self.job.id, self.job.attempt, self._worker, failure, now_ms())
        )

    def _settle(self, unit: Any) -> None:
        effects.apply(self._site.services.broker, self._site.services.db.write(unit))

    def _stored(self, actor: Actor, path: str, content: bytes) -> OutputFile:
        name = f"out-{hashlib.sha256(path.encode()).hexdigest()[:8]}.{path.rpartition('.')[2]}"
        file = self._site.services.files.upload(actor, name, None, io.BytesIO(content), None)
        return OutputFile(path, file["size"], file["sha256"], file["id"])


def _claimed(row: Any) -> ClaimedJob:
    return ClaimedJob(
        id=row["id"],
        tenant_id=row["tenant_id"],
        type=row["type"],
        plugin_version=row["plugin_version"],
        plugin_digest=row["plugin_digest"],
        payload=row["payload"],
        inputs=tuple(InputSpec(item["from"], item["to"]) for item in row["inputs"]),
        outputs=tuple(OutputSpec(item["match"], item.get("to")) for item in row["outputs"]),
        limits=row["limits"],
        retry=RetryPolicy(**row["retry"]),
        attempt=row["attempt"],
        lease_until=row["lease_until"],
        submitted_by=row["submitted_by"],
        name=row["name"],
    )


@contextmanager
def running_site(redis_url: str) -> Iterator[Site]:
    """The app with one plugin, ``echo`` 1.0.0, which takes a title and files of three kinds."""
    with stores.short_folder() as folder:
        plugins.write_bundle(folder / "plugins", "echo", more=ECHO)
        settings = config.load(
            home=folder / "home",
            redis={"url": redis_url},
            plugin={"path": str(folder / "plugins")},
            admin={"password": PASSWORD},
            server={"max_upload": 1 << 20},
        )
        check_home(settings.home)
        migrate.upgrade(settings.database_url)
        services = wiring.build(settings, "web")
        stopping = threading.Event()
        services.access.bootstrap()
        services.plugins.sync(services.access.default_tenant())
        app = create_app(services, stopping)
        server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Site(f"http://127.0.0.1:{server.port}", app, services, settings.home)
        finally:
            stopping.set()
            try:
                stores.until(lambda: _all_free(app, settings.server.max_waits), 30, "live streams end")
            finally:  # or the server's thread would keep the whole run from ending
                server.shutdown()
                thread.join()
                server.server_close()
                services.close()


def _all_free(app: Flask, count: int) -> bool:
    """Whether no long poll and no live stream is open."""
    held = [app.extensions["cloche_slots"].take() for _ in range(count)]
    for slot in held:
        if slot is not None:
            slot.release()
    return None not in held
