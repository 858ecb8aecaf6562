"""Parts of SQLAlchemy's statements, as the walk over them (:mod:`cloche.db.reach`) asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BindParameter
from sqlalchemy.sql.elements import ClauseElement, Grouping, Label
from sqlalchemy.sql.selectable import (
    AliasedReturnsRows,
    CompoundSelect,
    ScalarSelect,
    Select,
    SelectStatementGrouping,
)

Places = Mapping[int, int]  # what a FROM element (by its id) is in a statement: the number of its place


@dataclass(frozen=True)
class Around:
    """The places that a part of a statement may speak of: of all SELECTs around it, and of the nearest."""

    every: Places
    near: Places

    def with_(self, here: Places) -> Around:
        return Around({**self.every, **here}, here)


ALONE = Around({}, {})


def bare(element: Any) -> Any:
    while isinstance(element, (Label, Grouping)):
        element = element.element
    return element


def inner_select(element: Any) -> Any:
    while isinstance(element, (Grouping, SelectStatementGrouping, ScalarSelect)):
        element = element.element
    return element if isinstance(element, (Select, CompoundSelect)) else None


def unwrapped(source: Any) -> Any:
    while isinstance(source, AliasedReturnsRows):
        source = source.element
    return source


def own_froms(select: Select[Any], outer: Around) -> list[Any]:
    """The select's froms but those that it shares with the statements around it, by SQLAlchemy's rules: with any of them where it says so,
    and else with the nearest alone."""
    froms = list(select.get_final_froms())
    if select._correlate:
        froms = [one for one in froms if id(one) not in outer.every or one not in select._correlate]
    if select._correlate_except is not None:
        froms = [one for one in froms if id(one) not in outer.every or one in select._correlate_except]
    if select._auto_correlate and len(froms) > 1:
        froms = [one for one in froms if id(one) not in outer.near]
    return froms


def other_froms(change: Any, here: Places) -> list[Any]:
    """What an UPDATE or DELETE reads beside its own table."""
    sources: list[Any] = list(getattr(change, "_extra_froms", ()))
    for one in (*change._where_criteria, *(value for row in rows_of(change) for value in row.values())):
        sources += getattr(one, "_from_objects", ())
    return [one for key, one in {id(one): one for one in sources}.items() if key not in here]


def named(column: Any) -> str:
    return str(getattr(column, "key", column))


def rows_of(change: Any) -> Iterator[Mapping[Any, Any]]:
    """What is written, by column. Of several rows at once the values are bare: they go by the names that SQLAlchemy gives them."""
    yield dict(getattr(change, "_values", None) or {})
    several = (row for rows in getattr(change, "_multi_values", ()) for row in rows)
    for number, row in enumerate(several):
        by_column = row if isinstance(row, Mapping) else dict(zip(change.table.c, row, strict=False))
        yield {
            column: value
            if isinstance(value, ClauseElement)
            else BindParameter(f"{named(column)}_m{number}", value, unique=False)
            for column, value in by_column.items()
        }
