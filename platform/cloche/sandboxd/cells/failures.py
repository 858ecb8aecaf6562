"""What a failure of the pool's means."""

from __future__ import annotations

from typing import TypeGuard

from cloche.domain.states import Reason
from cloche.errors import ClocheError, PlatformFailure
from cloche.sandboxd.cells.slot import Anomaly
from cloche.sandboxd.cells.slot_cgroup import CgroupProblem
from cloche.sandboxd.uids import NoUidLeft


def is_lack(error: BaseException) -> TypeGuard[Exception]:
    """Whether it is why a container cannot be had here, and not that what the job needs is gone, or that this process ends."""
    missing = isinstance(error, PlatformFailure) and error.reason == Reason.BUNDLE_UNAVAILABLE
    return isinstance(error, Exception) and not missing


def is_expected(error: Exception) -> bool:
    """Whether it says by itself what happened: anything else is a mistake of ours, and the log tells where."""
    return isinstance(error, (Anomaly, CgroupProblem, ClocheError, NoUidLeft, OSError))


def said(error: Exception) -> str:
    """What it says, or what it is."""
    return str(error) or type(error).__name__
