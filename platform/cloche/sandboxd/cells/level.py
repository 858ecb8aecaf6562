"""Level ``namespace`` as the host sees it: which jobs get a cell, and what becomes of one."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from cloche import logs
from cloche.domain.runtimes import RUNC
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.spec import NAMESPACE
from cloche.sandboxd import cgroups
from cloche.sandboxd.cells.cell import RunningCell
from cloche.sandboxd.cells.container import Facts
from cloche.sandboxd.cells.home import NoCells
from cloche.sandboxd.cells.pool import Cells
from cloche.sandboxd.cells.slot import Waiting
from cloche.sandboxd.making import Ready

log = logs.get(__name__)


def may_have_cell(spec: SandboxSpec) -> bool:
    """Whether a job that was resolved to its runtime may run in a cell.

    A cell is of our own image, on the host's kernel, without a way out. Its limits are those of the plugin's version: a container of cells
    is made for one set of them, and one for each job's own would be slower than what it replaces.
    """
    plain = spec.runtime == RUNC and spec.image is None and not spec.egress
    return spec.level == NAMESPACE and plain and spec.warm


class CellLevel:
    """Thread-safe. ``start`` once, ``close`` last, when no cell has a job any more."""

    def __init__(self, cells: Cells, facts: Callable[[Ready], Facts]) -> None:
        self._cells = cells
        self._facts = facts

    def start(self) -> None:
        self._cells.start()

    def close(self) -> None:
        self._cells.close()

    def health(self) -> dict[str, Any]:
        """``problem``: why a container could not be made a moment ago, or None; ``containers``, and slots by state."""
        return {"problem": self._cells.problem(), **self._cells.counts()}

    def create(self, spec: SandboxSpec, owner: str, ready: Ready) -> tuple[RunningCell, socket.socket]:
        """A cell and the connection to its guest, the caller's to close.

        Raises:
            NoCells: level ``container``, which gives up nothing but speed; says why.
            PlatformFailure: ``bundle_unavailable``.
        """
        try:
            if problem := cgroups.uncounted_swap(ready.engine):
                raise NoCells(problem)
            return self._cells.create(self._facts(ready), spec, owner)
        except NoCells as error:
            log.info("cell_refused", job=spec.job_id, reason=str(error))
            raise

    def release(self, running: RunningCell) -> None:
        """See :meth:`Cells.release`."""
        self._cells.release(running)

    def condemn(self, running: RunningCell) -> None:
        """See :meth:`Cells.condemn`."""
        self._cells.condemn(running)

    def retire(self, bundle: str) -> int:
        """See :meth:`Cells.retire`."""
        return self._cells.retire(bundle)

    def facts(self) -> list[dict[str, object]]:
        """See :meth:`Cells.facts`."""
        return self._cells.facts()

    def waiting(self) -> list[Waiting]:
        """See :meth:`Cells.waiting`."""
        return self._cells.waiting()
