"""Many rows of one table at once. They are spelled for the driver before the transaction that writes them, so that on SQLite, where one
transaction writes at a time, the others wait for the writing alone."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import JSON, Connection, Table, insert

from cloche.db import scope
from cloche.db.reach import TENANT

Spelled = Sequence[tuple[Any, ...]]
_encode = json.JSONEncoder().encode  # as the columns' own type does it


class BulkInsert:
    """An INSERT of ``columns`` into ``table``. Shared by threads.

    Values are what the driver takes as they are: text, numbers, booleans, None; in a JSON column any JSON, and None for NULL.
    """

    def __init__(self, table: Table, columns: Collection[str]) -> None:
        self._columns = tuple(column.name for column in table.columns if column.name in columns)
        self._json = tuple(n for n, name in enumerate(self._columns) if isinstance(table.c[name].type, JSON))
        self._table = table.name
        self._tenant = itemgetter(self._columns.index(TENANT)) if TENANT in self._columns else None
        self._pick = itemgetter(*self._columns)
        self._statement = insert(table)
        self._known: dict[str, tuple[bool, str]] = {}  # by dialect

    def spell(self, rows: Sequence[Mapping[str, Any]]) -> Spelled:
        """The rows for :meth:`execute`. An object that several of them share in a JSON column is encoded once."""
        if not self._json:
            return [self._pick(row) for row in rows]
        known: dict[int, str | None] = {id(None): None}  # ids stand for their objects: the rows keep those alive
        spelled = []
        for row in rows:
            values = list(self._pick(row))
            for place in self._json:
                value = values[place]
                text = known.get(id(value), "")
                if text == "":  # no JSON is empty
                    text = known[id(value)] = _encode(value)
                values[place] = text
            spelled.append(tuple(values))
        return spelled

    def execute(self, connection: Connection, rows: Spelled) -> None:
        if not rows:
            return
        if self._tenant is not None:
            scope.check_written(self._table, map(self._tenant, rows))
        positional, sql = self._compiled(connection)
        # A driver takes values by place, in the statement's own order of columns, or by name.
        values: list[Any] = list(rows) if positional else [dict(zip(self._columns, row, strict=True)) for row in rows]
        connection.exec_driver_sql(sql, values[0] if len(values) == 1 else values)

    def _compiled(self, connection: Connection) -> tuple[bool, str]:
        """Whether values go by place, and the statement as the connection's driver takes it."""
        name = connection.dialect.name
        found = self._known.get(name)
        if found is None:
            compiled = self._statement.compile(dialect=connection.dialect, column_keys=list(self._columns))
            found = self._known[name] = (bool(compiled.positional), scope.adding(str(compiled)))
        return found
