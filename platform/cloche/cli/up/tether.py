"""A child process that does not outlive its parent, on Linux."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
# Looked up when this module is loaded, not between fork and exec, where only async-signal-safe work is welcome. PyDLL keeps the
# interpreter's lock: there is one thread in the child, and nobody to hand it to.
_prctl = ctypes.PyDLL(None).prctl


def tether(number: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """A ``preexec_fn``: the kernel sends ``number`` to the child when the thread that starts it ends.

    Start children from the main thread only: the kernel watches the thread, not the process.
    """
    parent = os.getpid()

    def apply() -> None:
        _prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # the parent died before the call above
            os._exit(1)

    return apply
