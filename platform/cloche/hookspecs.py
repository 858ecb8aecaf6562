"""Where packages that the operator has installed may join in: hooks of the platform itself, not of the plugins that jobs run.

A package names its module or object under the entry-point group ``cloche.extensions``, and the operator names it in
``CLOCHE_EXTENSION_ENABLED``; none runs otherwise. It is trusted as the platform is. Its functions are marked with :data:`hookimpl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pluggy

PROJECT = "cloche"
GROUP = "cloche.extensions"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """Every hook there is. See docs/quotas.md."""

    @hookspec
    def usage_recorded(self, records: Sequence[dict[str, Any]]) -> None:
        """Attempts have ended, and this is what they used, for billing. Called in the scheduler, in order, at least once for each record.

        ``records``: each with ``id`` (grows; the same record may come again, with the same id), ``tenant_id``, ``user_id``, ``job_id``,
        ``attempt``, ``ended_at`` (RFC 3339), and as in ``GET /usage`` ``cpu_seconds``, ``memory_gb_seconds``, ``bytes_in``, ``bytes_out``,
        ``bytes_stored``, ``wall_seconds``. Where it raises, the same records come again later.
        """
