"""The one transition table of a job.

``docs/states.md`` is generated from this module (``cloche.domain.states.mermaid``); a test fails when they differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from cloche.errors import IllegalTransition


class State(StrEnum):
    SCHEDULED = "scheduled"  # waits for a time, or for a retry's back-off
    BLOCKED = "blocked"  # waits for other jobs
    PENDING = "pending"  # in its queue
    PROCESSING = "processing"  # a worker holds its lease
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"


TERMINAL = frozenset({State.COMPLETED, State.FAILED, State.CANCELED})
WAITING = (State.SCHEDULED, State.BLOCKED, State.PENDING)  # accepted, and held by no worker
RETRIABLE = (State.FAILED, State.CANCELED)  # by hand


class Reason(StrEnum):
    """Why a job is in its state. Each value has one sentence in :data:`REASON_TEXT`."""

    SUBMITTED = "submitted"
    WAITS_FOR_TIME = "waits_for_time"
    WAITS_FOR_JOBS = "waits_for_jobs"
    DUE = "due"
    DEPENDENCIES_MET = "dependencies_met"
    RETRIED = "retried"
    CLAIMED = "claimed"
    SUCCEEDED = "succeeded"
    RETRY_BACKOFF = "retry_backoff"
    CANCELED_BY_USER = "canceled_by_user"
    UPSTREAM_FAILED = "upstream_failed"
    EXPIRED = "expired"
    # the plugin's fault
    PLUGIN_FAILED = "plugin_failed"
    PLUGIN_CRASHED = "plugin_crashed"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    TOO_MANY_PROCESSES = "too_many_processes"
    OUTPUT_TOO_LARGE = "output_too_large"
    TOO_MANY_FILES = "too_many_files"
    TOO_MANY_LOCKS = "too_many_locks"
    RESULT_TOO_LARGE = "result_too_large"
    BAD_RESULT = "bad_result"
    NO_RESULT = "no_result"
    INPUT_UNAVAILABLE = "input_unavailable"
    OUTPUT_REJECTED = "output_rejected"
    EGRESS_DENIED = "egress_denied"
    SECRET_DENIED = "secret_denied"  # noqa: S105 - the name of a reason
    STORAGE_QUOTA = "storage_quota"
    # ours
    LEASE_LAPSED = "lease_lapsed"
    WORKER_STOPPED = "worker_stopped"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    REMOTE_UNAVAILABLE = "remote_unavailable"
    STORAGE_FAILED = "storage_failed"
    PLATFORM_FAILED = "platform_failed"
    BUNDLE_UNAVAILABLE = "bundle_unavailable"
    EGRESS_UNAVAILABLE = "egress_unavailable"
    QUARANTINED = "quarantined"
    KEY_UNAVAILABLE = "key_unavailable"


REASON_TEXT: dict[Reason, str] = {
    Reason.SUBMITTED: "accepted and waiting in its queue",
    Reason.WAITS_FOR_TIME: "it was asked to start later",
    Reason.WAITS_FOR_JOBS: "jobs that it depends on have not ended yet",
    Reason.DUE: "its time has come",
    Reason.DEPENDENCIES_MET: "the jobs that it depends on have ended",
    Reason.RETRIED: "somebody retried it after its end",
    Reason.CLAIMED: "a worker has taken it",
    Reason.SUCCEEDED: "the plugin returned a result",
    Reason.RETRY_BACKOFF: "the last attempt failed; it waits before the next one",
    Reason.CANCELED_BY_USER: "somebody canceled it",
    Reason.UPSTREAM_FAILED: "a job that it depends on did not complete",
    Reason.EXPIRED: "it had not been started when it expired",
    Reason.PLUGIN_FAILED: "the plugin raised an error",
    Reason.PLUGIN_CRASHED: "the plugin's process died",
    Reason.TIMED_OUT: "the plugin ran past its time limit",
    Reason.OUT_OF_MEMORY: "the plugin used more memory than its limit",
    Reason.TOO_MANY_PROCESSES: "the plugin started more processes than its limit",
    Reason.OUTPUT_TOO_LARGE: "the plugin wrote more output than its limit",
    Reason.TOO_MANY_FILES: "the plugin wrote more files than its limit",
    Reason.TOO_MANY_LOCKS: "the plugin held more locks on files than a job may",
    Reason.RESULT_TOO_LARGE: "the plugin's result is larger than its limit",
    Reason.BAD_RESULT: "the plugin's result is not plain JSON",
    Reason.NO_RESULT: "the plugin ended without a result",
    Reason.INPUT_UNAVAILABLE: "an input could not be found or read",
    Reason.OUTPUT_REJECTED: "an output could not be stored where the job asked",
    Reason.EGRESS_DENIED: "it needs a host that the egress policy does not allow",
    Reason.SECRET_DENIED: "it needs a secret that its tenant does not have, or has not granted to its plugin",
    Reason.STORAGE_QUOTA: "its outputs do not fit into the storage quota",
    Reason.LEASE_LAPSED: "its worker stopped answering",
    Reason.WORKER_STOPPED: "its worker was stopped",
    Reason.ENGINE_UNAVAILABLE: "the container engine did not answer",
    Reason.REMOTE_UNAVAILABLE: "a remote storage did not answer",
    Reason.STORAGE_FAILED: "the platform's own storage failed",
    Reason.PLATFORM_FAILED: "the platform failed",
    Reason.BUNDLE_UNAVAILABLE: "the plugin's frozen files, or the image it brings, are not on this host",
    Reason.EGRESS_UNAVAILABLE: "the egress proxy did not answer",
    Reason.QUARANTINED: "it took several workers down with it and was set aside",
    Reason.KEY_UNAVAILABLE: "what it holds is encrypted, and its worker does not have the key",
}

PLUGIN_REASONS = frozenset(
    {
        Reason.PLUGIN_FAILED,
        Reason.PLUGIN_CRASHED,
        Reason.TIMED_OUT,
        Reason.OUT_OF_MEMORY,
        Reason.TOO_MANY_PROCESSES,
        Reason.OUTPUT_TOO_LARGE,
        Reason.TOO_MANY_FILES,
        Reason.TOO_MANY_LOCKS,
        Reason.RESULT_TOO_LARGE,
        Reason.BAD_RESULT,
        Reason.NO_RESULT,
        Reason.INPUT_UNAVAILABLE,
        Reason.OUTPUT_REJECTED,
        Reason.EGRESS_DENIED,
        Reason.SECRET_DENIED,
        Reason.STORAGE_QUOTA,
    }
)
PLATFORM_REASONS = frozenset(
    {
        Reason.LEASE_LAPSED,
        Reason.WORKER_STOPPED,
        Reason.ENGINE_UNAVAILABLE,
        Reason.REMOTE_UNAVAILABLE,
        Reason.STORAGE_FAILED,
        Reason.PLATFORM_FAILED,
        Reason.BUNDLE_UNAVAILABLE,
        Reason.EGRESS_UNAVAILABLE,
        Reason.KEY_UNAVAILABLE,
    }
)

_NOT_STARTED = frozenset({Reason.CANCELED_BY_USER, Reason.EXPIRED})  # ends of a job that nobody has begun

# (from, to) -> reasons. `None` is "does not exist yet". What has completed stays so; the other ends are left by a retry by hand alone.
EDGES: dict[tuple[State | None, State], frozenset[Reason]] = {
    (None, State.PENDING): frozenset({Reason.SUBMITTED}),
    (None, State.SCHEDULED): frozenset({Reason.WAITS_FOR_TIME}),
    (None, State.BLOCKED): frozenset({Reason.WAITS_FOR_JOBS}),
    (State.BLOCKED, State.PENDING): frozenset({Reason.DEPENDENCIES_MET}),
    (State.BLOCKED, State.SCHEDULED): frozenset({Reason.WAITS_FOR_TIME}),
    (State.BLOCKED, State.CANCELED): _NOT_STARTED | {Reason.UPSTREAM_FAILED},
    (State.PENDING, State.PROCESSING): frozenset({Reason.CLAIMED}),
    (State.PENDING, State.CANCELED): _NOT_STARTED,
    (State.SCHEDULED, State.PENDING): frozenset({Reason.DUE}),
    (State.SCHEDULED, State.CANCELED): _NOT_STARTED,
    (State.PROCESSING, State.COMPLETED): frozenset({Reason.SUCCEEDED}),
    (State.PROCESSING, State.SCHEDULED): frozenset({Reason.RETRY_BACKOFF}),
    (State.PROCESSING, State.PENDING): PLATFORM_REASONS,
    (State.PROCESSING, State.FAILED): PLUGIN_REASONS | PLATFORM_REASONS | {Reason.QUARANTINED},
    (State.PROCESSING, State.CANCELED): frozenset({Reason.CANCELED_BY_USER}),
    (State.FAILED, State.PENDING): frozenset({Reason.RETRIED}),
    (State.FAILED, State.BLOCKED): frozenset({Reason.WAITS_FOR_JOBS}),
    (State.CANCELED, State.PENDING): frozenset({Reason.RETRIED}),
    (State.CANCELED, State.BLOCKED): frozenset({Reason.WAITS_FOR_JOBS}),
}


def check(source: State | None, target: State, reason: Reason) -> None:
    """Refuse a change of state that the table does not list.

    Raises:
        IllegalTransition: no such edge, or not for this reason.
    """
    if reason not in EDGES.get((source, target), frozenset()):
        raise IllegalTransition(f"{source or 'nothing'} → {target} because {reason}")


def mermaid(edges: Iterable[tuple[tuple[State | None, State], frozenset[Reason]]] | None = None) -> str:
    """The table as a Mermaid state diagram, the same text on every call."""
    lines = ["stateDiagram-v2"]
    for (source, target), reasons in edges or EDGES.items():
        names = sorted(reasons)
        label = ", ".join(names) if len(names) <= 3 else f"{names[0]}, … ({len(names)} reasons)"
        lines.append(f"    {source or '[*]'} --> {target}: {label}")
    lines += [f"    {state} --> [*]" for state in State if state in TERMINAL]
    return "\n".join(lines) + "\n"
