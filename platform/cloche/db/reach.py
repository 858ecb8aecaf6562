"""What a statement may reach: for each table of tenants' rows in it, the values that would keep it within one tenant.

A row belongs to a tenant by its own ``tenant_id``, or hangs on a job that does. A place of such a table in a statement is held when a
condition that every row has to meet compares its ``tenant_id`` or its key with a value, or with a column of another place that is held.
Whether the value is the right one is only known when the statement runs: see :mod:`cloche.db.scope`. An OR holds nothing, nor does a NOT;
the ON of an outer join holds the side that may be missing. A ``tenant_id`` that is written has to be such a value, too. What cannot be read
(text as a statement, whatever the walk has not come to) is held by nothing: see :mod:`cloche.db.readable`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import BindParameter, MetaData, Table
from sqlalchemy.sql import operators
from sqlalchemy.sql.dml import Delete, Insert, Update, UpdateBase
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList, ClauseElement, ColumnClause, Grouping
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import (
    AliasedReturnsRows,
    CompoundSelect,
    Exists,
    FromGrouping,
    Join,
    ScalarSelect,
    Select,
    SelectBase,
    SelectStatementGrouping,
    Values,
)

from cloche.db.clauses import ALONE, Around, bare, inner_select, named, other_froms, own_froms, rows_of, unwrapped
from cloche.db.readable import is_of_rows, is_plain, unread

TENANT = "tenant_id"
JOB = "job.id"
_TENANTS = "tenant"  # its rows are the tenants themselves: no need, but what equals their id is held by it
# What names a tenant's row, whichever table has it.
_LINKS = {"job_id": JOB, "upstream_id": JOB, "batch_id": "batch.id"}
_AMONG = (operators.in_op, operators.not_in_op)
_SAME = (operators.eq, *_AMONG)

Node = tuple[int, str]  # a place in the statement, and a column of it
Shown = Sequence[Node | None]  # where each of a statement's columns is from


@dataclass(frozen=True)
class Seed:
    """A value that a statement compares a column with: ``what`` is :data:`TENANT`, or whose key it is, such as ``job.id``."""

    bind: BindParameter[Any]
    what: str


@dataclass(frozen=True)
class Need:
    """One place of a tenant-owned table, or a ``tenant_id`` that is written to it, and the values each of which alone would hold it."""

    table: str
    seeds: tuple[Seed, ...]


class Owned:
    """Which tables' rows belong to tenants, and by which columns they may be held: column name -> what it is."""

    def __init__(self, metadata: MetaData) -> None:
        self.known = frozenset(metadata.tables)
        self.columns = {table.name: kinds for table in metadata.tables.values() if (kinds := dict(_kinds(table)))}


def _kinds(table: Table) -> Iterator[tuple[str, str]]:
    key = [column.name for column in table.primary_key.columns]
    if TENANT in table.c:
        yield TENANT, TENANT
        if len(key) == 1 and key[0] != TENANT:
            yield key[0], f"{table.name}.{key[0]}"
    if table.name == _TENANTS:
        yield "id", TENANT
    for name, what in _LINKS.items():
        if name in table.c:
            yield name, what


def reach(statement: ClauseElement, owned: Owned) -> tuple[Need, ...]:
    """The statement's places of tenants' tables, and what it writes as their ``tenant_id``. Nothing: it touches none.

    Values that are only given when it runs, by the names of columns, are not among it.
    """
    walk = _Walk(owned)
    walk.statement(statement, ALONE, frozenset())
    walk.opaque += unread(statement, walk.seen)
    return walk.needs()


@dataclass
class _Walk:
    owned: Owned
    tables: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)  # by place
    edges: dict[Node, set[Node]] = field(default_factory=dict)  # from what is held to what holds it
    seeds: dict[Node, list[Seed]] = field(default_factory=dict)
    written: list[tuple[str, Node | Seed | None]] = field(default_factory=list)  # to which table, and from where
    opaque: list[str] = field(default_factory=list)
    shown: dict[int, Shown] = field(default_factory=dict)  # a subquery's columns, where each is from
    sources: dict[Node, Node] = field(default_factory=dict)  # a subquery's column, and the one inside that it shows
    seen: set[int] = field(default_factory=set)  # ids of the statements that were looked at
    kept: list[Any] = field(default_factory=list)  # an id stands for its object: it has to live on

    # --- what came of it

    def needs(self) -> tuple[Need, ...]:
        places = [
            Need(name, tuple(self._holding((place, column) for column in kinds)))
            for place, (name, kinds) in enumerate(self.tables)
            if kinds and name != _TENANTS
        ]
        written = [
            Need(name, (value,) if isinstance(value, Seed) else tuple(self._holding([value] if value else [])))
            for name, value in self.written
        ]
        return (*places, *written, *(Need(name, ()) for name in self.opaque))

    def _holding(self, nodes: Iterable[Node]) -> Iterator[Seed]:
        todo = list(nodes)
        known = set(todo)
        while todo:
            node = todo.pop()
            yield from self.seeds.get(node, ())
            more = set(self.edges.get(node, ()))
            kinds = self.tables[node[0]][1]
            if node[1] in kinds:  # whatever holds one of these columns holds the row
                more |= {(node[0], name) for name in kinds}
            todo += more - known
            known |= more

    # --- statements. `holds`: places outside that a condition inside holds too, for their rows need one of the inner ones

    def statement(self, element: Any, outer: Around, holds: Set[int]) -> Shown:
        """Look at a statement; returns where each of the columns that it shows is from."""
        self.seen.add(id(element))
        for cte in getattr(element, "_independent_ctes", ()):
            self._derived(cte)
        if isinstance(element, (SelectStatementGrouping, ScalarSelect, Grouping)):
            return self.statement(element.element, outer, holds)
        if isinstance(element, Select):
            return self._select(element, outer, holds)
        if isinstance(element, CompoundSelect):
            parts = [self.statement(one, outer, frozenset()) for one in element.selects]
            self._rest(element, outer)
            return self._merged(parts)
        if isinstance(element, (Update, Delete)):
            return self._changing(element)
        if isinstance(element, Insert):
            self._insert(element)
        else:
            self.expression(element, outer)
        return ()

    def _select(self, select: Select[Any], outer: Around, holds: Set[int]) -> Shown:
        here = self._froms(own_froms(select, outer), outer)
        around = outer.with_(here)
        for condition in select._where_criteria:
            self.condition(condition, around, holds | set(here.values()))
        for one in (*select._raw_columns, *select._having_criteria, *select._distinct_on):
            self.expression(one, around)
        self._rest(select, around)
        return [_node(column, around) for column in select.selected_columns]

    def _rest(self, select: Any, around: Around) -> None:
        """What a SELECT and a union both may end with."""
        ends = (select._limit_clause, select._offset_clause, select._fetch_clause)
        for one in (*select._order_by_clauses, *select._group_by_clauses, *ends):
            self.expression(one, around)

    def _merged(self, parts: Sequence[Shown]) -> Shown:
        """A union's columns. That of one part stands for all where all are of one kind: each of them has to be held for the statement to run."""
        if len({len(part) for part in parts}) != 1:
            return ()
        return [
            nodes[0] if len(kinds := {self._kind(node) for node in nodes}) == 1 and None not in kinds else None
            for nodes in zip(*parts, strict=True)
        ]

    def _kind(self, node: Node | None) -> str | None:
        """What the column is; None when it is of no row that has to be held."""
        while node is not None and node in self.sources:
            node = self.sources[node]
        if node is None:
            return None
        name, kinds = self.tables[node[0]]
        return None if name == _TENANTS else kinds.get(node[1])

    def _changing(self, change: Update | Delete) -> Shown:
        here = self._froms([change.table], ALONE)
        here |= self._froms(other_froms(change, here), Around(here, here))
        around = Around(here, here)
        for condition in change._where_criteria:
            self.condition(condition, around, set(here.values()))
        for row in rows_of(change):
            self._values(change, row, around)
        for one in change._returning:
            self.expression(one, around)
        return [_node(column, around) for column in change.exported_columns]

    def _insert(self, change: Insert) -> None:
        if change.select is not None:
            shown = self.statement(change.select, ALONE, frozenset())
            names = list(change._select_names or ())
            if TENANT in names and self._has_tenant(change.table):
                place = names.index(TENANT)
                columns = list(getattr(change.select, "selected_columns", ()))
                given = bare(columns[place]) if isinstance(change.select, Select) and place < len(columns) else None
                node = shown[place] if place < len(shown) else None
                self._wrote(change.table.name, given if node is None else node)
        for row in rows_of(change):
            self._values(change, row, ALONE)
        for one in change._returning:
            self.expression(one, ALONE)
        clause: Any = change._post_values_clause
        if clause is not None:
            for child in clause.get_children():
                self.expression(child, ALONE)
            if getattr(clause, "update_values_to_set", None):
                self._in_the_way(change.table, clause)

    def _in_the_way(self, table: Any, clause: Any) -> None:
        """ON CONFLICT DO UPDATE: the row that is in the way may be anybody's, unless it has the same ``tenant_id`` as the new one."""
        if not self.owned.columns.get(getattr(table, "name", "")):
            return
        targets = {str(getattr(one, "name", one)) for one in clause.inferred_target_elements or ()}
        changed = clause.update_values_to_set
        sets = dict(changed.items() if isinstance(changed, Mapping) else changed)
        if TENANT not in targets or any(named(column) == TENANT for column in sets):
            self.opaque.append(table.name)

    # --- what is written

    def _has_tenant(self, table: Any) -> bool:
        return TENANT in self.owned.columns.get(getattr(table, "name", ""), {})

    def _values(self, change: Any, row: Mapping[Any, Any], around: Around) -> None:
        for column, value in row.items():
            self.expression(value, around)
            if named(column) == TENANT and self._has_tenant(change.table):
                self._wrote(change.table.name, _node(value, around) or value)

    def _wrote(self, table: str, value: Any) -> None:
        if isinstance(value, tuple):
            self.written.append((table, value if self._is_tenant(value) else None))
        else:
            self.written.append((table, Seed(value, TENANT) if isinstance(value, BindParameter) else None))

    def _is_tenant(self, node: Node) -> bool:
        while node in self.sources:
            node = self.sources[node]
        return self.tables[node[0]][1].get(node[1]) == TENANT

    # --- where rows come from

    def _froms(self, sources: Iterable[Any], outer: Around) -> dict[int, int]:
        here: dict[int, int] = {}
        for source in sources:
            here |= self._source(source, outer)
        return here

    def _source(self, source: Any, outer: Around) -> dict[int, int]:
        """The places that a FROM element makes."""
        self.kept.append(source)
        if isinstance(source, FromGrouping):
            return self._source(source.element, outer)
        if isinstance(source, Join):
            return self._join(source, outer)
        inside = unwrapped(source)
        name = inside.name if isinstance(inside, Table) else ""
        place = len(self.tables)
        self.tables.append((name, self.owned.columns.get(name, {})))
        if isinstance(inside, (SelectBase, UpdateBase)):
            self._linked(place, source)
        elif isinstance(inside, (FunctionElement, Values)):
            for child in inside.get_children():
                self.expression(child, outer)
        elif name not in self.owned.known:  # text, or a table by another way than ours
            self.opaque.append(str(getattr(inside, "name", "text")))
        return {id(source): place}

    def _linked(self, place: int, source: Any) -> None:
        columns, shown = list(source.c), self._derived(source)
        if len(columns) == len(shown):
            for column, node in zip(columns, shown, strict=True):
                if node is not None:
                    self._edge((place, column.key), node)
                    self.sources[place, column.key] = node

    def _join(self, join: Join, outer: Around) -> dict[int, int]:
        left, right = self._source(join.left, outer), self._source(join.right, outer)
        here = {**left, **right}
        if join.onclause is None:
            pass
        elif join.full:
            self.expression(join.onclause, outer.with_(here))
        else:
            both = set(right.values()) if join.isouter else set(here.values())
            self.condition(join.onclause, outer.with_(here), both)
        return here

    def _derived(self, source: Any) -> Shown:
        """Where a subquery's or CTE's columns are from."""
        while isinstance(source.element, AliasedReturnsRows):
            source = source.element
        if id(source) not in self.shown:
            self.kept.append(source)
            self.shown[id(source)] = ()  # while it is looked at: a recursive one names itself
            self.shown[id(source)] = self.statement(source.element, ALONE, frozenset())
        return self.shown[id(source)]

    # --- conditions

    def condition(self, condition: Any, around: Around, holds: Set[int]) -> None:
        """A condition that has to be true of every row; ``holds``: the places whose rows it keeps out when it is not."""
        if isinstance(condition, Grouping):
            self.condition(condition.element, around, holds)
        elif isinstance(condition, BooleanClauseList) and condition.operator is operators.and_:
            for one in condition.clauses:
                self.condition(one, around, holds)
        elif isinstance(condition, Exists):
            inner = inner_select(condition.element)
            self.statement(condition.element, around, holds if is_of_rows(inner) else frozenset())
        elif isinstance(condition, BinaryExpression) and condition.operator in _SAME:
            self._compared(condition, around, holds)
        else:
            self.expression(condition, around)

    def _compared(self, pair: BinaryExpression[Any], around: Around, holds: Set[int]) -> None:
        left, right = _node(pair.left, around), _node(pair.right, around)
        self.expression(pair.left, around)
        inner = inner_select(pair.right)
        if inner is None:
            self.expression(pair.right, around)
        else:
            shown = self.statement(inner, around, frozenset())
            right = shown[0] if len(shown) == 1 and left is not None else None
            if left is not None and right is not None and pair.operator in _AMONG and is_plain(inner):
                self._edge(right, left)  # only the row that is equal is ever seen of it
        if pair.operator is operators.not_in_op:
            return
        if left is not None and right is not None:
            for one, other in ((left, right), (right, left)):
                if one[0] in holds:
                    self._edge(one, other)
            return
        for node, against in ((left, pair.right), (right, pair.left)):
            value: Any = against.element if isinstance(against, Grouping) else against
            if node is not None and node[0] in holds and isinstance(value, BindParameter):
                self._seed(node, value)

    def _edge(self, held: Node, by: Node) -> None:
        self.edges.setdefault(held, set()).add(by)

    def _seed(self, node: Node, bind: BindParameter[Any]) -> None:
        what = self.tables[node[0]][1].get(node[1])
        if what is not None:
            self.seeds.setdefault(node, []).append(Seed(bind, what))

    def expression(self, element: Any, around: Around) -> None:
        """Anything else: statements in it are looked at, and hold nothing outside themselves."""
        if isinstance(element, (Select, CompoundSelect, ScalarSelect, SelectStatementGrouping, Exists, UpdateBase)):
            self.statement(element.element if isinstance(element, Exists) else element, around, frozenset())
        elif isinstance(element, ClauseElement) and not isinstance(
            element, (ColumnClause, Table, AliasedReturnsRows, Join, FromGrouping)
        ):  # a function is a FROM element too, with others in it
            for child in element.get_children():
                self.expression(child, around)


def _node(element: Any, around: Around) -> Node | None:
    element = bare(element)
    if isinstance(element, ColumnClause) and (place := around.every.get(id(element.table))) is not None:
        return place, str(element.key)
    return None
