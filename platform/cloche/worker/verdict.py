"""Why an attempt ended without a result: what the kernel counted, what the guest said, how its process went."""

from __future__ import annotations

import signal

from cloche.domain.limits import MAX_LOCKS, Limits
from cloche.domain.states import Reason
from cloche.errors import JobFailure, PluginFailure
from cloche.isolation.backend import Remains

# What the kernel counted, the name it gives a failure, the limit it means, and what was used of it.
_NAMED = (
    ("pids_denied", Reason.TOO_MANY_PROCESSES, "pids", "pids_peak", "it tried to start more processes than its"),
    ("output_inodes_full", Reason.TOO_MANY_FILES, "output_files", "output_inodes", "it wrote more files than its"),
    ("output_full", Reason.OUTPUT_TOO_LARGE, "output", "output_used", "it wrote more bytes of output than its"),
    ("output_files_over", Reason.TOO_MANY_FILES, "output_files", "output_inodes", "it wrote more files than its"),
    ("output_over", Reason.OUTPUT_TOO_LARGE, "output", "output_used", "it wrote more bytes of output than its"),
)


def verdict(error: BaseException, remains: Remains, limits: Limits) -> JobFailure:
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
