"""How a worker's process says why it ended."""

from __future__ import annotations

STOPPED = 0  # SIGTERM or SIGINT
DRAINED = 90  # an operator asked it to drain: whoever keeps workers running leaves its place empty
