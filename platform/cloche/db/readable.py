"""What the walk over a statement (:mod:`cloche.db.reach`) cannot look into, and what it has to know of a SELECT before it believes it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from typing import Any

from sqlalchemy import TextClause
from sqlalchemy.sql import visitors
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import ClauseElement, ColumnClause
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.operators import custom_op
from sqlalchemy.sql.selectable import CompoundSelect, Select, TextualSelect

READS = re.compile(r"\b(from|join|update|into|table|truncate|copy)\b", re.IGNORECASE)
# What may end a condition that stands before it: nothing of an expression of ours needs it.
_ENDS = re.compile(r"\bor\b|;|--|/\*", re.IGNORECASE)
_COUNTS_NOTHING = re.compile(r"\*|\d+\Z")
_HARMLESS: set[str] = set()


def text_across_tenants(why: str, words: str) -> str:  # noqa: ARG001 - for the reader, and for the test that lists them
    """``words``, part of a statement, which read tables and are known to do no harm: nobody can look into them."""
    _HARMLESS.add(words)
    return words


def unread(statement: ClauseElement, seen: Set[int]) -> Iterator[str]:
    """What of the statement nobody has looked into, one name for each. ``seen``: ids of the statements in it that somebody has."""
    for node in visitors.iterate(statement):
        if isinstance(node, (Select, CompoundSelect, UpdateBase)) and id(node) not in seen:
            yield "a statement"
        elif isinstance(node, TextualSelect) or any(not _is_tame(words) for words in _words(node)):
            yield "text"
        elif any(getattr(node, name, None) for name in ("_prefixes", "_suffixes", "_hints", "_statement_hints")):
            yield "text"  # a prefix such as OR REPLACE changes what the whole statement does


def _words(node: Any) -> Iterator[str]:
    if isinstance(node, TextClause):
        yield node.text
    elif isinstance(node, ColumnClause) and node.is_literal:
        yield str(node.name)
    for one in ("operator", "modifier"):
        operator = getattr(node, one, None)
        if isinstance(operator, custom_op):
            yield operator.opstring


def _is_tame(words: str) -> bool:
    return words in _HARMLESS or not (READS.search(words) or _ENDS.search(words))


def is_of_rows(select: Any) -> bool:
    """Whether there is a row of the SELECT only for rows that meet its conditions. A sum is there without any."""
    if not isinstance(select, Select) or select._having_criteria or select._group_by_clauses:
        return False
    shown = (*select._raw_columns, *select._order_by_clauses, *_extensions(select))
    return not any(_may_count(node) for one in shown for node in visitors.iterate(one))


def _may_count(node: Any) -> bool:
    if isinstance(node, (TextClause, ColumnClause)):
        literal = isinstance(node, TextClause) or node.is_literal
        return literal and not _COUNTS_NOTHING.match(str(getattr(node, "text", node)))
    return isinstance(node, FunctionElement)


def is_plain(select: Any) -> bool:
    """Whether each of the SELECT's rows speaks of one row alone, is there for that row's sake, and pushes no other out."""
    if not is_of_rows(select) or select._distinct_on or any(True for _ in _extensions(select)):
        return False
    return all(
        one is None for one in (select._limit_clause, select._offset_clause, getattr(select, "_fetch_clause", None))
    )


def _extensions(select: Select[Any]) -> Iterator[ClauseElement]:
    """Clauses of a dialect's own, such as DISTINCT ON."""
    for name in select._position_map.values():
        clause = getattr(select, name, None)
        if clause is not None:
            yield clause
