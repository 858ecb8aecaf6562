"""One attempt, from its claim to its settled end.

create sandbox → stage in → guest ready → run → sandbox dead → stage out → settle. The sandbox is destroyed whatever happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from cloche import failpoints, logs
from cloche.db.engine import now_ms
from cloche.domain.egress import Endpoint
from cloche.domain.events import Trace
from cloche.domain.jobs import ClaimedJob, Success
from cloche.domain.limits import Limits, watched_apart
from cloche.domain.masks import Masks
from cloche.domain.states import Reason
from cloche.errors import (
    ClocheError,
    JobFailure,
    OutcomeUnknown,
    PlatformFailure,
    PluginFailure,
    StaleAttempt,
    Unavailable,
)
from cloche.failpoints import Point
from cloche.isolation.backend import Remains, Sandbox, SandboxSpec
from cloche.isolation.egress import EgressReport
from cloche.isolation.spec import CONTAINER
from cloche.services import effects
from cloche.services.masking import sealed_failure, sealed_result
from cloche.services.outputs import record_outputs
from cloche.services.sealing import JobSeal
from cloche.staging.rclone import Stopped
from cloche.worker.conversation import Conversation, Interrupted
from cloche.worker.holds import Hold
from cloche.worker.journal import Journal
from cloche.worker.secrets import masked_report
from cloche.worker.sensitive import note_unexpected, opened
from cloche.worker.tools import Tools as Tools
from cloche.worker.tracing import AttemptTrace
from cloche.worker.verdict import verdict

_log = logs.get(__name__)
_SETTLE_RETRY_S = 0.5

# A job that ran into its other limits and still succeeded has succeeded; with these, something it made would be lost.
_NEVER_FINE = {"output_files_over", "output_over"}
_SHOWN_LIMITS = ("memory", "pids", "time_ms", "output", "output_files", "log", "result")


class Execution:
    """Runs one attempt in the calling thread; ``run`` never raises."""

    def __init__(self, tools: Tools, hold: Hold) -> None:
        self._tools = tools
        self._hold = hold
        self._job: ClaimedJob = hold.job  # once opened, its payload is in clear here and nowhere else
        self._seal: JobSeal | None = None
        self._limits = Limits(**self._job.limits)
        self._journal = Journal(tools.recorder, tools.broker, self._job, self._limits.log)
        self._trace = AttemptTrace(tools.recorder, self._job)
        self._usage: dict[str, Any] = {}
        self._began = time.monotonic()
        self._bytes_in = 0
        self._buried = False
        self._why_cold: str | None = None
        self._allow: tuple[Endpoint, ...] = ()
        self._masks = Masks()

    def run(self) -> None:
        try:
            self._attempt()
        except StaleAttempt:
            self._note_stale()
        except JobFailure as failure:  # its result could not be accepted
            self._settle_failure(failure)
        except Exception:  # noqa: BLE001 - the last line of defence: the lease will lapse, and another attempt follows
            note_unexpected(self._job)
            self._trace.drop()
            self._settle_failure(PlatformFailure(Reason.PLATFORM_FAILED, "an unexpected error; see the worker's log"))

    def _attempt(self) -> None:
        sandbox: Sandbox | None = None
        try:
            self._job, self._seal = opened(self._job, self._tools.vault)
            self._journal.seal = self._seal
            began = time.monotonic()
            sandbox = self._tools.backend.create(self._spec())
            self._received(sandbox, _ms(began))
            outcome = self._inside(sandbox)
        except (Interrupted, Stopped):
            self._end_interrupted(sandbox)
        except JobFailure as failure:
            self._settle_failure(failure)
        except StaleAttempt:
            raise
        except ClocheError as error:
            self._settle_failure(PlatformFailure(Reason.PLATFORM_FAILED, str(error)))
        else:
            self._settle_success(outcome)
        finally:
            if sandbox is not None:
                self._hold.on_interrupt = None
                sandbox.destroy()

    def _end_interrupted(self, sandbox: Sandbox | None) -> None:
        try:
            if sandbox is not None and not self._buried:
                self._bury(sandbox)
        except (
            PlatformFailure
        ) as failure:  # the engine or sandboxd went as well; a cancel that was asked for still ends the job
            self._settle_failure(failure)
        else:
            self._settle_interrupted()

    def _spec(self) -> SandboxSpec:
        job = self._job
        bundle, wheels = self._tools.files.bundle(job)
        image, command = self._tools.files.own_image(job) or (None, None)
        self._allow = self._tools.outbound(job)
        self._why_cold = self._must_be_cold(bundle)
        return SandboxSpec(
            job_id=job.id,
            attempt=job.attempt,
            bundle=bundle,
            wheels=wheels,
            limits=self._limits,
            lease_until=job.lease_until,
            image=image,
            command=command,
            warm=self._why_cold is None,
            priority=job.priority,
            egress=bool(self._allow),
            runtime=self._tools.files.runtime(job),
            # A sensitive job shares its container with nothing, whatever its plugin asks for.
            level=CONTAINER if job.sensitive else self._tools.files.isolation(job),
            tenant=job.tenant_id,
            preload=() if job.sensitive else self._tools.files.preload(job),
            secrets=self._tools.secrets is not None and self._tools.secrets.named(job),
            sensitive=job.sensitive,
        )

    def _must_be_cold(self, bundle: str) -> str | None:
        """Why no sandbox made beforehand can serve this job, or None."""
        own = self._tools.files.limits(self._job)
        if own is None or watched_apart(self._limits) != watched_apart(own):
            return "its limits are not the plugin's own"
        return "its version takes no new jobs" if self._tools.retired(bundle) else None

    def _received(self, sandbox: Sandbox, duration_ms: int) -> None:
        self._hold.on_interrupt = sandbox.kill
        if self._not_ours():
            raise Interrupted
        details = {
            "duration_ms": duration_ms,
            "sandbox": sandbox.id,
            "runtime": sandbox.runtime,
            "level": sandbox.level,
            "start": sandbox.start,
        }
        if self._job.sensitive:
            details["runtime_why"] = sandbox.runtime_why or "no reason was given"
        if sandbox.start == "cold":
            details["why"] = self._why_cold or sandbox.why or "no reason was given"
        elif sandbox.why:
            details["why"] = sandbox.why
        self._trace.add("starting", (Trace.SANDBOX_STARTED, details), image=sandbox.image)

    def _inside(self, sandbox: Sandbox) -> Success:
        talk = Conversation(sandbox.channel, self._hold, self._journal, self._job, self._trace.tick)
        failpoints.hit(Point.WORKER_SANDBOXED)
        began = time.monotonic()
        if self._job.inputs:
            self._trace.send()  # they may take a while
        staged = self._tools.files.stage_in(self._job, sandbox.in_folder, self._stopped)
        self._bytes_in = sum(file.size for file in staged)
        shown = [
            {"path": file.path, "size": file.size, "sha256": file.sha256, "source": file.source} for file in staged
        ]
        staged_event = (Trace.STAGED_IN, {"duration_ms": _ms(began), "files": shown[:50], "count": len(shown)})
        try:
            failpoints.hit(Point.WORKER_STAGED)
            talk.await_ready()
            if self._allow:
                sandbox.open_egress(self._allow)
            secrets = {} if self._tools.secrets is None else self._tools.secrets.deliver(self._job)
            failpoints.hit(Point.WORKER_DELIVERED)
            self._masks = self._journal.masks = Masks(secrets.values())
            self._trace.add("running", staged_event, (Trace.STARTED, {"secrets": sorted(secrets)} if secrets else {}))
            began = time.monotonic()
            result = self._masks.value(talk.run([file.path for file in staged], self._allow, secrets))
        except (PluginFailure, EOFError) as error:
            if self._not_ours():
                raise Interrupted from None  # we killed it ourselves; that is nobody's failure
            raise self._named(sandbox, _ms(began), error) from None
        failpoints.hit(Point.WORKER_RESULT)
        ran_ms = _ms(began)
        remains = self._bury(sandbox, ran_ms)
        if remains.oom_killed or any(remains.usage.get(name) for name in _NEVER_FINE):
            failure = verdict(EOFError(), remains, self._limits)
            self._trace_failure(failure, ran_ms)
            raise failure
        self._trace.add("staging_out", (Trace.FINISHED, {"duration_ms": ran_ms, **self._usage}))
        if remains.files:
            self._trace.send(wait=True)  # nothing of an attempt that was taken away may go out
        return self._stage_out(remains, result)

    def _named(self, sandbox: Sandbox, ran_ms: int, error: BaseException) -> JobFailure:
        """Bury the sandbox of an attempt that failed, and find out why it did."""
        failure = verdict(error, self._bury(sandbox, ran_ms), self._limits)
        self._trace_failure(failure, ran_ms)
        return failure

    def _trace_failure(self, failure: JobFailure, ran_ms: int) -> None:
        numbers: dict[str, Any] = {name: failure.details[name] for name in ("limit", "used") if name in failure.details}
        self._trace.add(
            None, (Trace.FINISHED, {"duration_ms": ran_ms, "reason": failure.reason, **numbers, **self._usage})
        )

    def _stage_out(self, remains: Remains, result: Any) -> Success:
        began = time.monotonic()
        for path, why in remains.refused:
            self._journal.log("platform", f"[not collected: {path!a}: {why}]\n")
        outputs = self._tools.files.stage_out(self._job, remains, self._stopped)
        shown = [
            {"path": self._masks.text(out.path), "size": out.size, "sha256": out.sha256, "to": out.destination}
            for out in outputs
        ]
        details: dict[str, Any] = {"duration_ms": _ms(began), "files": shown[:50], "count": len(shown)}
        if remains.refused:
            details["refused"] = len(remains.refused)
        self._trace.add(None, (Trace.STAGED_OUT, details))
        self._usage["bytes_out"] = sum(out.size for out in outputs)
        self._usage["bytes_stored"] = sum(out.size for out in outputs if out.artifact_id is not None)
        kept = result if self._seal is None else sealed_result(self._seal, result)
        return Success(result=kept, outputs=tuple(outputs), usage=self._used())

    def _bury(self, sandbox: Sandbox, ran_ms: int | None = None) -> Remains:
        """Make sure that it is dead; note what it used, beside what it might have used."""
        self._buried = True
        remains = sandbox.finish()
        limits = self._limits.to_dict()
        self._usage = {**remains.usage, "log_bytes": self._journal.kept, "bytes_in": self._bytes_in}
        self._usage |= {f"{name}_limit": limits[name] for name in _SHOWN_LIMITS}
        if ran_ms is not None:
            self._usage["ran_ms"] = ran_ms
        self._journal.flush()
        if remains.egress is not None:
            self._note_egress(masked_report(self._masks, remains.egress))
        if self._journal.truncated:
            self._trace.add(None, (Trace.LOG_TRUNCATED, {"limit": self._limits.log, "used": self._journal.kept}))
        return remains

    def _note_egress(self, report: EgressReport) -> None:
        self._usage |= {
            "egress_connections": report.total,
            "egress_up": report.bytes_up,
            "egress_down": report.bytes_down,
        }
        try:
            self._tools.recorder.connected(self._job, report)
        except Unavailable as error:
            _log.warning("connections not written", job_id=self._job.id, error=str(error))

    def _used(self) -> dict[str, Any]:
        """What the attempt has used so far."""
        return {"bytes_in": self._bytes_in, **self._usage, "wall_ms": _ms(self._began)}

    def _stopped(self) -> bool:
        """Whether staging should end: nobody wants this attempt's outcome any more."""
        return self._hold.cancel.is_set() or self._not_ours()

    def _not_ours(self) -> bool:
        """Whether the lease was lost, or the worker's stop gives the attempt back: nothing may be settled then."""
        return self._hold.lost.is_set() or self._hold.handed_back.is_set()

    # --- settling -----------------------------------------------------------------------------------------------------------

    def _settle_success(self, outcome: Success) -> None:
        job, tools = self._job, self._tools

        def unit(connection: Connection) -> effects.Effects:
            now = now_ms(connection)
            # First: it finds out whether the attempt is still ours, or this very end is stored already.
            done = tools.transitions.succeed(connection, job.id, job.attempt, tools.worker_id, outcome, now)
            record_outputs(connection, job, outcome.outputs, now, tools.quotas)
            return done

        failpoints.hit(Point.WORKER_STORED)
        self._settle(unit)

    def _settle_failure(self, failure: JobFailure) -> None:
        job, tools = self._job, self._tools
        self._hold.engine_failed = failure.reason == Reason.ENGINE_UNAVAILABLE
        if self._not_ours():
            return
        failure = self._masks.failure(failure)
        if job.sensitive:
            failure = sealed_failure(self._seal, job.attempt, failure)
        level = _log.info if isinstance(failure, PluginFailure) else _log.warning
        level("attempt failed", job_id=job.id, attempt=job.attempt, reason=failure.reason, message=failure.message)
        used = self._used()
        self._settle(
            lambda c: tools.transitions.fail(c, job.id, job.attempt, tools.worker_id, failure, now_ms(c), used)
        )

    def _settle_interrupted(self) -> None:
        job, tools = self._job, self._tools
        if self._not_ours():
            return
        used = self._used()
        self._settle(lambda c: tools.transitions.canceled(c, job.id, job.attempt, tools.worker_id, now_ms(c), used))

    def _settle(self, unit: Callable[[Connection], effects.Effects]) -> None:
        """Write the end; a database that is away is waited for as long as the attempt is ours."""
        self._flush_quietly()
        unsure = False  # whether an earlier try may have written it
        while True:
            try:
                done = self._write_end(unit, unsure)
                self._hold.settled.set()
                failpoints.hit(Point.WORKER_SETTLED)
                effects.apply(self._tools.broker, done)
                return
            except StaleAttempt:
                self._note_stale()
                return
            except Unavailable as error:
                unsure = unsure or isinstance(error, OutcomeUnknown)
                _log.warning("the outcome cannot be written yet", job_id=self._job.id, error=str(error))
                if self._hold.lost.wait(_SETTLE_RETRY_S) or self._hold.handed_back.is_set():
                    return

    def _write_end(self, unit: Callable[[Connection], effects.Effects], unsure: bool) -> effects.Effects:
        """What is to follow the end; nothing when an earlier try turns out to have written it, for the relay follows up what that began.

        Raises:
            StaleAttempt: the attempt is no longer ours, and its end is not what we wrote.
            Unavailable: see :meth:`Database.write`.
        """
        try:
            self._trace.check()
            return self._tools.db.write(lambda connection: self._with_trace(connection, unit))
        except StaleAttempt:
            if unsure and self._tools.recorder.ended(self._job):
                _log.info("the outcome had been written", job_id=self._job.id, attempt=self._job.attempt)
                return effects.Effects()
            raise

    def _with_trace(self, connection: Connection, unit: Callable[[Connection], effects.Effects]) -> effects.Effects:
        self._trace.write(connection)
        return unit(connection)

    def _flush_quietly(self) -> None:
        try:
            self._journal.flush()
        except StaleAttempt:
            _log.info("log of a lost attempt dropped", job_id=self._job.id, attempt=self._job.attempt)

    def _note_stale(self) -> None:
        job, tools = self._job, self._tools
        _log.warning("stale write refused", job_id=job.id, attempt=job.attempt)
        try:
            tools.db.write(
                lambda c: tools.transitions.stale_write(c, job.tenant_id, job.id, job.attempt, tools.worker_id)
            )
        except Unavailable as error:
            _log.warning("stale write not audited", job_id=job.id, error=str(error))


def _ms(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
