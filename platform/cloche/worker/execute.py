"""One attempt, from its claim to its settled end.

create sandbox → stage in → guest ready → run → sandbox dead → stage out → settle. The sandbox is destroyed whatever happens.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from cloche import logs
from cloche.clock import now_ms
from cloche.db.engine import Database
from cloche.domain.egress import Endpoint
from cloche.domain.events import Trace
from cloche.domain.jobs import ClaimedJob, Success
from cloche.domain.limits import MAX_LOCKS, Limits, watched_apart
from cloche.domain.states import Reason
from cloche.errors import ClocheError, JobFailure, PlatformFailure, PluginFailure, StaleAttempt, Unavailable
from cloche.isolation.backend import Backend, Remains, Sandbox, SandboxSpec
from cloche.isolation.egress import EgressReport
from cloche.queueing.broker import Broker
from cloche.services import effects
from cloche.services.attempts import AttemptRecorder
from cloche.services.outputs import record_outputs
from cloche.services.transitions import Transitions
from cloche.staging.rclone import Stopped
from cloche.worker.conversation import Conversation, Interrupted
from cloche.worker.files import JobFiles
from cloche.worker.holds import Hold
from cloche.worker.journal import Journal
from cloche.worker.tracing import AttemptTrace

_log = logs.get(__name__)
_SETTLE_RETRY_S = 0.5


# What the kernel counted, the name it gives a failure, the limit it means, and what was used of it.
_NAMED = (
    ("pids_denied", Reason.TOO_MANY_PROCESSES, "pids", "pids_peak", "it tried to start more processes than its"),
    ("output_inodes_full", Reason.TOO_MANY_FILES, "output_files", "output_inodes", "it wrote more files than its"),
    ("output_full", Reason.OUTPUT_TOO_LARGE, "output", "output_used", "it wrote more bytes of output than its"),
    ("output_files_over", Reason.TOO_MANY_FILES, "output_files", "output_inodes", "it wrote more files than its"),
    ("output_over", Reason.OUTPUT_TOO_LARGE, "output", "output_used", "it wrote more bytes of output than its"),
)
# A job that ran into the others and still succeeded has succeeded; with these, something it made would be lost.
_NEVER_FINE = {"output_files_over", "output_over"}
_SHOWN_LIMITS = ("memory", "pids", "time_ms", "output", "output_files", "log", "result")


# What an attempt may reach. Raises PluginFailure (``egress_denied``) or PlatformFailure (``bundle_unavailable``).
Outbound = Callable[[ClaimedJob], tuple[Endpoint, ...]]


@dataclass(frozen=True)
class Tools:
    """What every attempt of a worker uses."""

    db: Database
    broker: Broker
    backend: Backend
    transitions: Transitions
    recorder: AttemptRecorder
    files: JobFiles
    worker_id: str
    outbound: Outbound
    retired: Callable[[str], bool] = lambda _bundle: False  # whether its version takes no new jobs


class Execution:
    """Runs one attempt in the calling thread; ``run`` never raises."""

    def __init__(self, tools: Tools, hold: Hold) -> None:
        self._tools = tools
        self._hold = hold
        self._job: ClaimedJob = hold.job
        self._limits = Limits(**self._job.limits)
        self._journal = Journal(tools.recorder, tools.broker, self._job, self._limits.log)
        self._trace = AttemptTrace(tools.recorder, self._job)
        self._usage: dict[str, Any] = {}
        self._buried = False
        self._why_cold: str | None = None
        self._allow: tuple[Endpoint, ...] = ()

    def run(self) -> None:
        try:
            self._attempt()
        except StaleAttempt:
            self._note_stale()
        except Exception:  # noqa: BLE001 - the last line of defence: the lease will lapse, and another attempt follows
            _log.exception("the attempt ended in an unexpected way", job_id=self._job.id, attempt=self._job.attempt)
            self._settle_failure(PlatformFailure(Reason.PLATFORM_FAILED, "an unexpected error; see the worker's log"))

    def _attempt(self) -> None:
        sandbox: Sandbox | None = None
        try:
            began = time.monotonic()
            sandbox = self._tools.backend.create(self._spec())
            self._received(sandbox, _ms(began))
            outcome = self._inside(sandbox)
        except (Interrupted, Stopped):
            if sandbox is not None and not self._buried:
                self._bury(sandbox)
            self._settle_interrupted()
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
            level=self._tools.files.isolation(job),
            tenant=job.tenant_id,
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
        if sandbox.start == "cold":
            details["why"] = self._why_cold or sandbox.why or "no reason was given"
        self._trace.add("starting", (Trace.SANDBOX_STARTED, details), image=sandbox.image)

    def _inside(self, sandbox: Sandbox) -> Success:
        talk = Conversation(sandbox.channel, self._hold, self._journal)
        began = time.monotonic()
        staged = self._tools.files.stage_in(self._job, sandbox.in_folder, self._stopped)
        shown = [
            {"path": file.path, "size": file.size, "sha256": file.sha256, "source": file.source} for file in staged
        ]
        staged_event = (Trace.STAGED_IN, {"duration_ms": _ms(began), "files": shown[:50], "count": len(shown)})
        try:
            talk.await_ready()
            if self._allow:
                sandbox.open_egress(self._allow)
            self._trace.add("running", staged_event, (Trace.STARTED, {}))
            began = time.monotonic()
            result = talk.run([file.path for file in staged], self._allow)
        except (PluginFailure, EOFError) as error:
            if self._not_ours():
                raise Interrupted from None  # we killed it ourselves; that is nobody's failure
            raise self._named(sandbox, _ms(began), error) from None
        ran_ms = _ms(began)
        remains = self._bury(sandbox, ran_ms)
        if remains.oom_killed or any(remains.usage.get(name) for name in _NEVER_FINE):
            failure = _verdict(EOFError(), remains, self._limits)
            self._trace_failure(failure, ran_ms)
            raise failure
        self._trace.check(wait=True)  # nothing of an attempt that was taken away may go out
        self._trace.add("staging_out", (Trace.FINISHED, {"duration_ms": ran_ms, **self._usage}))
        return self._stage_out(remains, result)

    def _named(self, sandbox: Sandbox, ran_ms: int, error: BaseException) -> JobFailure:
        """Bury the sandbox of an attempt that failed, and find out why it did."""
        failure = _verdict(error, self._bury(sandbox, ran_ms), self._limits)
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
        shown = [{"path": out.path, "size": out.size, "sha256": out.sha256, "to": out.destination} for out in outputs]
        details: dict[str, Any] = {"duration_ms": _ms(began), "files": shown[:50], "count": len(shown)}
        if remains.refused:
            details["refused"] = len(remains.refused)
        self._trace.add(None, (Trace.STAGED_OUT, details))
        return Success(result=result, outputs=tuple(outputs), usage=self._usage)

    def _bury(self, sandbox: Sandbox, ran_ms: int | None = None) -> Remains:
        """Make sure that it is dead; note what it used, beside what it might have used."""
        self._buried = True
        remains = sandbox.finish()
        limits = self._limits.to_dict()
        self._usage = {**remains.usage, "log_bytes": self._journal.kept}
        self._usage |= {f"{name}_limit": limits[name] for name in _SHOWN_LIMITS}
        if ran_ms is not None:
            self._usage["ran_ms"] = ran_ms
        self._journal.flush()
        if remains.egress is not None:
            self._note_egress(remains.egress)
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
            now = now_ms()
            record_outputs(connection, job, outcome.outputs, now)
            return tools.transitions.succeed(connection, job.id, job.attempt, tools.worker_id, outcome, now)

        self._settle(unit)

    def _settle_failure(self, failure: JobFailure) -> None:
        job, tools = self._job, self._tools
        if self._not_ours():
            return
        level = _log.info if isinstance(failure, PluginFailure) else _log.warning
        level("attempt failed", job_id=job.id, attempt=job.attempt, reason=failure.reason, message=failure.message)
        self._settle(
            lambda c: tools.transitions.fail(
                c, job.id, job.attempt, tools.worker_id, failure, now_ms(), self._usage or None
            )
        )

    def _settle_interrupted(self) -> None:
        job, tools = self._job, self._tools
        if self._not_ours():
            return
        self._settle(
            lambda c: tools.transitions.canceled(c, job.id, job.attempt, tools.worker_id, now_ms(), self._usage or None)
        )

    def _settle(self, unit: Callable[[Connection], effects.Effects]) -> None:
        """Write the end; a database that is away is waited for as long as the attempt is ours."""
        self._flush_quietly()
        while True:
            try:
                self._trace.check()
                done = self._tools.db.write(unit)
                self._hold.settled.set()
                effects.apply(self._tools.broker, done)
                return
            except StaleAttempt:
                self._note_stale()
                return
            except Unavailable as error:
                _log.warning("the outcome cannot be written yet", job_id=self._job.id, error=str(error))
                if self._hold.lost.wait(_SETTLE_RETRY_S) or self._hold.handed_back.is_set():
                    return

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


def _verdict(error: BaseException, remains: Remains, limits: Limits) -> JobFailure:
    """Whose fault the end was, and its name: what the kernel saw outweighs what the guest said."""
    if remains.oom_killed:
        numbers = _numbers(limits.memory, remains.usage.get("memory_peak"))
        return PluginFailure(Reason.OUT_OF_MEMORY, f"it needed more than its {limits.memory >> 20} MB", numbers)
    if held := remains.usage.get("locks_over"):
        message = f"it held more locks on files than the {MAX_LOCKS} that a job may"
        return PluginFailure(Reason.TOO_MANY_LOCKS, message, _numbers(MAX_LOCKS, held))
    for counter, reason, limit, used, words in _NAMED:
        if remains.usage.get(counter, 0) > 0:
            allowed = getattr(limits, limit)
            numbers = _numbers(allowed, remains.usage.get(used))
            if isinstance(error, JobFailure):
                numbers["said"] = error.message
            return PluginFailure(reason, f"{words} {allowed}", numbers)
    if isinstance(error, JobFailure):
        return error
    return _crash(remains.exit_code)


def _numbers(limit: int, used: int | None) -> dict[str, object]:
    return {"limit": limit} if used is None else {"limit": limit, "used": used}


def _crash(code: int | None) -> PluginFailure:
    """A process that ended without a verdict. ``code``: its exit code, or minus the number of the signal that killed it."""
    if code == 0:
        return PluginFailure(Reason.NO_RESULT, "its process ended without a result", {"exit_code": 0})
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return PluginFailure(Reason.PLUGIN_CRASHED, f"its process was killed by {name}", {"signal": name})
    return PluginFailure(Reason.PLUGIN_CRASHED, f"its process ended with exit code {code}", {"exit_code": code})


def _ms(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
