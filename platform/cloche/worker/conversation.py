"""Talking to a guest: from its ``ready`` to its verdict, within the deadline."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

from cloche.domain.egress import Endpoint
from cloche.domain.jobs import ClaimedJob
from cloche.domain.masks import Masks
from cloche.domain.states import Reason
from cloche.errors import PluginFailure
from cloche.isolation.backend import Channel
from cloche.worker.holds import Hold
from cloche.worker.journal import Journal
from cloche_guest.protocol import MAX_TRACEBACK

SETUP_S = 30.0  # a plugin's import and setup() may take this long before the job is handed over
GRACE_S = 0.5  # between the soft signal and SIGKILL, at the deadline and on cancel
_SLICE_S = 0.1
_TRACEBACK = 8_192
_MESSAGE = 2_000
# What a guest may say of itself; anything else in its error frame is the plugin's failure in general.
_GUEST_REASONS = {Reason.PLUGIN_FAILED, Reason.BAD_RESULT, Reason.NO_RESULT, Reason.RESULT_TOO_LARGE}


class Interrupted(Exception):
    """Cancel was asked for, or the attempt was lost."""


class Conversation:
    """One attempt's exchange of frames, by one thread."""

    def __init__(
        self,
        channel: Channel,
        hold: Hold,
        journal: Journal,
        job: ClaimedJob | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        """``job``: the hold's, with its payload in clear, where that was sealed. ``tick`` is called now and then while the guest is quiet."""
        self._channel = channel
        self._hold = hold
        self._journal = journal
        self._job: ClaimedJob = job or hold.job
        self._tick = tick

    def await_ready(self) -> Mapping[str, Any]:
        """Wait until the plugin is imported and set up.

        Raises:
            PluginFailure: it failed to, or took too long.
            EOFError: the guest died.
        """
        began = time.monotonic()
        deadline = began + SETUP_S
        while True:
            frame = self._next(deadline)
            if frame is None:
                used = round((time.monotonic() - began) * 1000)
                numbers: dict[str, object] = {"limit": round(SETUP_S * 1000), "used": used}
                raise PluginFailure(Reason.TIMED_OUT, f"the plugin's setup took longer than {SETUP_S:.0f} s", numbers)
            if frame.get("type") == "ready":
                return frame
            if frame.get("type") == "error":
                raise _failure(frame)

    def run(self, inputs: list[str], allow: Sequence[Endpoint] = (), secrets: Mapping[str, str] | None = None) -> Any:
        """Hand the job over and return the plugin's result. ``allow``: what its egress, which is open by now, leads to. ``secrets``: its own.

        Raises:
            PluginFailure: the plugin's error, a broken protocol, or ``timed_out``.
            EOFError: the guest died without a verdict.
            Interrupted: cancel or loss of the lease.
        """
        limits = self._job.limits
        began = time.monotonic()
        deadline = began + limits["time_ms"] / 1000
        self._hand_over(inputs, allow, secrets or {}, deadline)
        while True:
            frame = self._next(deadline)
            if frame is None:
                numbers = {"limit": limits["time_ms"], "used": round((time.monotonic() - began) * 1000)}
                self._soften()
                raise PluginFailure(Reason.TIMED_OUT, f"it ran longer than its {limits['time_ms'] / 1000:g} s", numbers)
            kind = frame.get("type")
            if kind == "result":
                return frame.get("value")
            if kind == "error":
                # Before anything is cut: half of a secret would not be found any more.
                failure = _failure(_masked(self._journal.masks, frame))
                if failure.reason == Reason.RESULT_TOO_LARGE:
                    failure.details |= {"limit": limits["result"], **_used(frame)}
                raise failure

    def _hand_over(
        self, inputs: list[str], allow: Sequence[Endpoint], secrets: Mapping[str, str], deadline: float
    ) -> None:
        """Send the job. A guest that does not read it holds up neither a cancel nor its own deadline, which :meth:`_next` then sees."""
        job = self._job
        frame: dict[str, Any] = {
            "type": "job",
            "id": job.id,
            "attempt": job.attempt,
            "payload": job.payload,
            "inputs": inputs,
            "limits": job.limits,
        }
        if allow:
            frame["egress"] = [str(endpoint) for endpoint in allow]
        # One frame each: together they may be larger than a frame.
        before = [{"type": "secret", "name": name, "value": value} for name, value in secrets.items()]
        for each in (*before, frame):
            if not self._channel.send(each, lambda: self._keep_on(deadline)):
                return

    def _keep_on(self, deadline: float) -> bool:
        self._tick()
        return not self._interrupted() and time.monotonic() < deadline

    def _interrupted(self) -> bool:
        hold = self._hold
        return hold.lost.is_set() or hold.handed_back.is_set() or hold.cancel.is_set()

    def _next(self, deadline: float) -> Mapping[str, Any] | None:
        """The next frame that is not a log or a progress; None at the deadline."""
        while True:
            if self._hold.lost.is_set() or self._hold.handed_back.is_set():
                raise Interrupted
            if self._hold.cancel.is_set():
                self._soften()
                raise Interrupted
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            frame = self._channel.receive(min(left, _SLICE_S))
            if frame is not None and not self._noted(frame):
                return frame
            self._journal.tick()
            self._tick()

    def _noted(self, frame: Mapping[str, Any]) -> bool:
        kind = frame.get("type")
        if kind == "log":
            text = frame.get("text")
            if isinstance(text, str):
                self._journal.log("stderr" if frame.get("stream") == "stderr" else "stdout", text)
        elif kind == "progress":
            current, total, message = frame.get("current"), frame.get("total"), frame.get("message")
            if _number(current):
                words = message[:200] if isinstance(message, str) else None
                self._journal.progress(current, total if _number(total) else None, words)
        else:
            return False
        return True

    def _soften(self) -> None:
        """Tell the guest to stop and give it a moment to say its last words; SIGKILL follows in any case."""
        try:
            end = time.monotonic() + GRACE_S
            if not self._channel.send({"type": "cancel"}, lambda: time.monotonic() < end):
                return  # it reads nothing, and so will not hear
            while (left := end - time.monotonic()) > 0 and not self._hold.lost.is_set():
                frame = self._channel.receive(min(left, _SLICE_S))
                if frame is not None and not self._noted(frame):
                    return  # a verdict after the deadline is no verdict, but nothing more will come
        except (PluginFailure, EOFError):
            return


def _number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _used(frame: Mapping[str, Any]) -> dict[str, object]:
    used = frame.get("used")
    return {"used": used} if isinstance(used, int) else {}


def _masked(masks: Masks, frame: Mapping[str, Any]) -> Mapping[str, Any]:
    """An error's frame; of a traceback that the guest cut the beginning may be the end of a secret."""
    shown, traceback = masks.value(frame), frame.get("traceback")
    if isinstance(traceback, str) and len(traceback.encode("utf-8", "replace")) > MAX_TRACEBACK - 4:
        shown = {**shown, "traceback": masks.cut(traceback)}
    return shown


def _failure(frame: Mapping[str, Any]) -> PluginFailure:
    reason = frame.get("reason")
    message, traceback = frame.get("message"), frame.get("traceback")
    known = reason if reason in _GUEST_REASONS else Reason.PLUGIN_FAILED
    details: dict[str, object] = {}
    if isinstance(traceback, str) and traceback:
        details["traceback"] = traceback[-_TRACEBACK:]
    return PluginFailure(str(known), (message if isinstance(message, str) else "it gave no reason")[:_MESSAGE], details)
