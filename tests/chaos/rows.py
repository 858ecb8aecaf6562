"""The rows of the matrix, in the order of the table."""

from __future__ import annotations

import importlib
import importlib.util

from tests.chaos import rows_processes, rows_stores
from tests.chaos.matrix import Row


def _on_postgres() -> tuple[Row, ...]:
    """Where this version of Cloche has that store."""
    if importlib.util.find_spec("tests.support.postgres") is None:
        return ()
    modules = ("tests.chaos.rows_network", "tests.chaos.rows_postgres")
    return tuple(row for name in modules for row in importlib.import_module(name).ROWS)


ROWS = (*rows_processes.ROWS, *rows_stores.ROWS, *_on_postgres())
