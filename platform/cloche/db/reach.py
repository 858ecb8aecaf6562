"""What a statement may reach: for each table of tenants' rows in it, the values that would keep it within one tenant.

A row belongs to a tenant by its own ``tenant_id``, or hangs on a job that does. A place of such a table in a statement is held when a
condition that every row has to meet compares its ``tenant_id`` or its key with a value, or with a column of another place that is held.
Whether the value is the right one is only known when the statement runs: see :mod:`cloche.db.scope`. An OR holds nothing, nor does a NOT;
the ON of an outer join holds the side that may be missing. What cannot be read (text as a statement) is held by nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import BindParameter, MetaData, Table, TextClause
from sqlalchemy.sql import operators
from sqlalchemy.sql.dml import Delete, Insert, Update, UpdateBase
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BooleanClauseList,
    ClauseElement,
    ColumnClause,
    Grouping,
    Label,
)
from sqlalchemy.sql.selectable import (
    Alias,
    AliasedReturnsRows,
    CompoundSelect,
    Exists,
    FromClause,
    FromGrouping,
    Join,
    ScalarSelect,
    Select,
    SelectStatementGrouping,
    TextualSelect,
)

TENANT = "tenant_id"
JOB = "job.id"
READS = re.compile(r"\b(from|join|update|into)\b", re.IGNORECASE)
_TENANTS = "tenant"  # its rows are the tenants themselves: no need, but what equals their id is held by it
# What names a tenant's row, whichever table has it.
_LINKS = {"job_id": JOB, "upstream_id": JOB, "batch_id": "batch.id"}
_HARMLESS: set[str] = set()
_SAME = (operators.eq, operators.in_op, operators.not_in_op)

Node = tuple[int, str]  # a place in the statement, and a column of it
Shown = dict[str, Node | None]  # a statement's columns, and where each is from, in order
Places = Mapping[int, int]  # what a FROM element (by its id) is here: the number of its place


@dataclass(frozen=True)
class Seed:
    """A value that a statement compares a column with: ``what`` is :data:`TENANT`, or whose key it is, such as ``job.id``."""

    bind: BindParameter[Any]
    what: str


@dataclass(frozen=True)
class Need:
    """One place of a tenant-owned table, and the values each of which alone would hold it."""

    table: str
    seeds: tuple[Seed, ...]


class Owned:
    """Which tables' rows belong to tenants, and by which columns they may be held: column name -> what it is."""

    def __init__(self, metadata: MetaData) -> None:
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


def text_across_tenants(why: str, words: str) -> str:  # noqa: ARG001 - for the reader, and for the test that lists them
    """``words``, part of a statement, which read tables and are known to do no harm: nobody can look into them."""
    _HARMLESS.add(words)
    return words


def reach(statement: ClauseElement, owned: Owned) -> tuple[Need, ...]:
    """The statement's places of tenants' tables. Nothing: it touches none."""
    walk = _Walk(owned)
    walk.statement(statement, {}, frozenset())
    return walk.needs()


@dataclass
class _Walk:
    owned: Owned
    tables: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)  # by place
    edges: dict[Node, set[Node]] = field(default_factory=dict)  # from what is held to what holds it
    seeds: dict[Node, list[Seed]] = field(default_factory=dict)
    opaque: list[str] = field(default_factory=list)
    shown: dict[int, Shown] = field(default_factory=dict)  # a subquery's columns, where each is from
    kept: list[Any] = field(default_factory=list)  # an id stands for its object: it has to live on

    # --- what came of it

    def needs(self) -> tuple[Need, ...]:
        found = [
            Need(name, tuple(self._holding(place)))
            for place, (name, kinds) in enumerate(self.tables)
            if kinds and name != _TENANTS
        ]
        return (*found, *(Need(name, ()) for name in self.opaque))

    def _holding(self, place: int) -> Iterator[Seed]:
        todo: list[Node] = [(place, name) for name in self.tables[place][1]]
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

    def statement(self, element: Any, outer: Places, holds: Set[int]) -> Shown:
        """Look at a statement; returns where each of the columns that it shows is from."""
        for cte in getattr(element, "_independent_ctes", ()):
            self._derived(cte)
        if isinstance(element, (SelectStatementGrouping, ScalarSelect, Grouping)):
            return self.statement(element.element, outer, holds)
        if isinstance(element, Select):
            return self._select(element, outer, holds)
        if isinstance(element, CompoundSelect):
            return self._merged([self.statement(one, outer, frozenset()) for one in element.selects])
        elif isinstance(element, (Update, Delete)):
            return self._changing(element)
        elif isinstance(element, Insert):
            self._insert(element)
        else:
            self.expression(element, outer)
        return {}

    def _select(self, select: Select[Any], outer: Places, holds: Set[int]) -> Shown:
        here = self._froms(_own_froms(select, outer), outer)
        scope = {**outer, **here}
        for condition in select._where_criteria:
            self.condition(condition, scope, holds | set(here.values()))
        others = (*select._order_by_clauses, *select._group_by_clauses, *select._having_criteria)
        for one in (*select._raw_columns, *others, select._limit_clause, select._offset_clause):
            self.expression(one, scope)
        return _shown(select.selected_columns.items(), scope)

    def _merged(self, parts: Sequence[Shown]) -> Shown:
        """A union's columns. That of one part stands for all: each of them has to be held for the statement to run."""
        first = {name: node for name, node in parts[0].items() if node is not None}
        others = [list(part.values()) for part in parts]
        return {
            name: first.get(name)
            if len({self._what(part[place]) for part in others if place < len(part)}) == 1
            else None
            for place, name in enumerate(parts[0])
        }

    def _what(self, node: Node | None) -> str | None:
        return None if node is None else self.tables[node[0]][1].get(node[1])

    def _changing(self, change: Update | Delete) -> Shown:
        here = self._froms([change.table], {})
        here |= self._froms(_other_froms(change, here), here)
        for condition in change._where_criteria:
            self.condition(condition, here, set(here.values()))
        for value in _values(change):
            self.expression(value, here)
        return _shown(change.exported_columns.items(), here)

    def _insert(self, change: Insert) -> None:
        if change.select is not None:
            self.statement(change.select, {}, frozenset())
        for value in _values(change):
            self.expression(value, {})
        clause: Any = change._post_values_clause
        if getattr(clause, "update_values_to_set", None):
            kinds = self.owned.columns.get(getattr(change.table, "name", ""), {})
            targets = {str(getattr(one, "name", one)) for one in clause.inferred_target_elements or ()}
            if kinds and not targets & set(kinds):  # the row that is in the way may be anybody's
                self.opaque.append(change.table.name)
            changed = clause.update_values_to_set
            for value in changed.values() if isinstance(changed, Mapping) else (value for _, value in changed):
                self.expression(value, {})

    # --- where rows come from

    def _froms(self, sources: Iterable[Any], outer: Places) -> dict[int, int]:
        here: dict[int, int] = {}
        for source in sources:
            here |= self._source(source, outer)
        return here

    def _source(self, source: Any, outer: Places) -> dict[int, int]:
        """The places that a FROM element makes."""
        self.kept.append(source)
        if isinstance(source, FromGrouping):
            return self._source(source.element, outer)
        if isinstance(source, Join):
            return self._join(source, outer)
        table = source.element if isinstance(source, Alias) else source
        name = table.name if isinstance(table, Table) else ""
        place = len(self.tables)
        self.tables.append((name, self.owned.columns.get(name, {})))
        if isinstance(table, FromClause) and isinstance(source, AliasedReturnsRows) and not name:
            for column, node in self._derived(source).items():
                if node is not None:
                    self._edge((place, column), node)
        elif not name:
            self.expression(source, outer)
        return {id(source): place}

    def _join(self, join: Join, outer: Places) -> dict[int, int]:
        left, right = self._source(join.left, outer), self._source(join.right, outer)
        scope = {**outer, **left, **right}
        if join.onclause is None:
            pass
        elif join.full:
            self.expression(join.onclause, scope)
        else:
            both = set(right.values()) if join.isouter else {*left.values(), *right.values()}
            self.condition(join.onclause, scope, both)
        return {**left, **right}

    def _derived(self, source: Any) -> Shown:
        """A subquery's or CTE's columns. A union shows rows of several: none of them is told."""
        if id(source) not in self.shown:
            self.kept.append(source)
            self.shown[id(source)] = {}  # while it is looked at: a recursive one names itself
            inner = source.element
            if isinstance(inner, AliasedReturnsRows):
                self.shown[id(source)] = self._derived(inner)
            else:
                self.shown[id(source)] = self.statement(inner, {}, frozenset())
        return self.shown[id(source)]

    # --- conditions

    def condition(self, condition: Any, scope: Places, holds: Set[int]) -> None:
        """A condition that has to be true of every row; ``holds``: the places whose rows it keeps out when it is not."""
        if isinstance(condition, Grouping):
            self.condition(condition.element, scope, holds)
        elif isinstance(condition, BooleanClauseList) and condition.operator is operators.and_:
            for one in condition.clauses:
                self.condition(one, scope, holds)
        elif isinstance(condition, Exists):
            self.statement(condition.element, scope, holds)
        elif isinstance(condition, BinaryExpression) and condition.operator in _SAME:
            self._compared(condition, scope, holds)
        else:
            self.expression(condition, scope)

    def _compared(self, pair: BinaryExpression[Any], scope: Places, holds: Set[int]) -> None:
        left, right = _node(pair.left, scope), _node(pair.right, scope)
        inner = _inner(pair.right)
        if inner is not None:
            shown = list(self.statement(inner, scope, frozenset()).values())
            right = shown[0] if len(shown) == 1 and left is not None else None
            if (
                left is not None and right is not None and _plain(inner)
            ):  # only the row that is equal is ever seen of it
                self._edge(right, left)
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
        if inner is None:
            self.expression(pair.right, scope)
        self.expression(pair.left, scope)

    def _edge(self, held: Node, by: Node) -> None:
        self.edges.setdefault(held, set()).add(by)

    def _seed(self, node: Node, bind: BindParameter[Any]) -> None:
        what = self.tables[node[0]][1].get(node[1])
        if what is not None:
            self.seeds.setdefault(node, []).append(Seed(bind, what))

    def expression(self, element: Any, scope: Places) -> None:
        """Anything else: statements in it are looked at, and hold nothing outside themselves."""
        if isinstance(element, TextualSelect):
            self.opaque.append("text")
        elif isinstance(element, TextClause) or (isinstance(element, ColumnClause) and element.is_literal):
            words = str(getattr(element, "text", element))
            if words not in _HARMLESS and READS.search(words):
                self.opaque.append("text")
        elif isinstance(element, (Select, CompoundSelect, ScalarSelect, SelectStatementGrouping, Exists, UpdateBase)):
            self.statement(element.element if isinstance(element, Exists) else element, scope, frozenset())
        elif isinstance(element, ClauseElement) and not isinstance(element, (ColumnClause, FromClause)):
            for child in element.get_children():
                self.expression(child, scope)


def _node(element: Any, scope: Places) -> Node | None:
    while isinstance(element, (Label, Grouping)):
        element = element.element
    if isinstance(element, ColumnClause) and (place := scope.get(id(element.table))) is not None:
        return place, str(element.key)
    return None


def _shown(columns: Iterable[tuple[Any, Any]], scope: Places) -> Shown:
    return {name: _node(column, scope) for name, column in columns}


def _inner(element: Any) -> Any:
    while isinstance(element, (Grouping, SelectStatementGrouping, ScalarSelect)):
        element = element.element
    return element if isinstance(element, (Select, CompoundSelect)) else None


def _plain(select: Any) -> bool:
    """Whether each of its rows speaks of one row alone, and is there for that row's sake."""
    if not isinstance(select, Select):
        return False
    counted = (*select._group_by_clauses, *select._having_criteria)
    return not counted and select._limit_clause is None and select._offset_clause is None


def _own_froms(select: Select[Any], outer: Places) -> list[Any]:
    """The select's froms but those that it shares with the statement around it, by SQLAlchemy's rules."""
    froms = list(select.get_final_froms())
    shared = {id(one) for one in froms if id(one) in outer}
    if select._correlate:
        return [one for one in froms if id(one) not in shared or one not in select._correlate]
    if select._correlate_except is not None:
        return [one for one in froms if id(one) not in shared or one in select._correlate_except]
    if select._auto_correlate and len(froms) > 1:
        return [one for one in froms if id(one) not in shared]
    return froms


def _other_froms(change: Update | Delete, here: Places) -> list[Any]:
    found = {id(one): one for condition in change._where_criteria for one in condition._from_objects}
    return [one for key, one in found.items() if key not in here]


def _values(change: Any) -> Iterator[Any]:
    rows = [change._values or {}] if hasattr(change, "_values") else []
    rows += [row for several in getattr(change, "_multi_values", ()) for row in several]
    for row in rows:
        yield from row.values() if isinstance(row, Mapping) else row
