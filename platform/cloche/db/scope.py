"""The tenant that a request acts in, kept under every query: a statement that could reach another tenant's rows does not run.

A request begins and ends in nobody's tenant (:func:`nobodys`), where no tenant's rows are reached at all. The web layer says in whose tenant it
acts (:func:`act_in`), once it knows who is asking. From then on every statement that the request runs has to be held within that tenant: by a
comparison of ``tenant_id`` with its id, or by the key of a row that was found by it and vouched for (:func:`vouch`). See
:mod:`cloche.db.reach` for what counts as held. What is to see more says why: :func:`across_tenants`, or the execution option
``across_tenants`` on a statement; ``tests/architecture`` has the list of all of them. Workers, the sweeper and the others who act for the
platform run without a scope, and so do the threads that a web process keeps: the same list has those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import BindParameter, Engine
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert, Update

from cloche.db.reach import TENANT, Owned, reach
from cloche.db.readable import READS
from cloche.db.store import T, Unit
from cloche.db.tables import metadata

OPTION = "across_tenants"
_KNOWN = "_cloche_reach"  # on a compiled statement, which SQLAlchemy keeps as long as it is used
_OWNED = Owned(metadata)
_ADDING: set[str] = set()  # statements of db/bulk.py
Needs = tuple[
    tuple[str, tuple[tuple[str, bool], ...]], ...
]  # table, and (name of a value, whether it is a tenant's id)


class OutOfScope(RuntimeError):
    """A statement of a request could reach rows of other tenants. A mistake in the platform; nothing was run."""


class Scope:
    """One request's tenant, and the keys of rows known to be in it."""

    __slots__ = ("tenant_id", "vouched")

    def __init__(self, tenant_id: str) -> None:
        self.tenant_id = tenant_id
        self.vouched: set[str] = set()

    def holds(self, value: Any, is_tenant: bool) -> bool:
        if isinstance(value, (list, tuple)):
            return all(self.holds(one, is_tenant) for one in value)
        return bool(value == self.tenant_id) if is_tenant else value in self.vouched


_NOBODY = "\0"  # no tenant has this id
_NOW: ContextVar[Scope | None] = ContextVar("cloche_scope", default=None)


def act_in(tenant_id: str | None) -> None:
    """What this thread does from now on, it does in that tenant; None: for the platform, which reaches every tenant's rows."""
    now = _NOW.get()
    if tenant_id is None:
        if now is not None:
            _NOW.set(None)
    elif now is None or now.tenant_id != tenant_id:
        _NOW.set(Scope(tenant_id))


def act_for_nobody() -> None:
    """What this thread does from now on reaches no tenant's rows."""
    _NOW.set(Scope(_NOBODY))


@contextmanager
def nobodys() -> Iterator[None]:
    """Let the block begin for nobody. Whoever it came to act for, afterwards the thread is what it was."""
    with _within(Scope(_NOBODY)):
        yield


def vouch(keys: Iterable[str]) -> None:
    """These are keys of rows of the request's tenant: they were found by its id, or have just been made in it."""
    now = _NOW.get()
    if now is not None:
        now.vouched.update(keys)


@contextmanager
def across_tenants(why: str) -> Iterator[None]:  # noqa: ARG001 - for the reader, and for the test that lists them
    """Statements of the block are not held within a tenant. ``why`` says what keeps them from harm."""
    with _within(None):
        yield


@contextmanager
def within(tenant_id: str, why: str) -> Iterator[None]:  # noqa: ARG001 - for the reader, and for the test that lists them
    """Statements of the block are held within that tenant, not the request's. ``why`` says who may act there. Without a scope nothing changes."""
    now = _NOW.get()
    with _within(now if now is None or now.tenant_id == tenant_id else Scope(tenant_id)):
        yield


def carried(unit: Unit[T]) -> Unit[T]:
    """The unit, to run with the scope of the caller of this: another thread may run it, or one that acts for somebody else."""
    scope = _NOW.get()

    def within(connection: Any) -> T:
        token = _NOW.set(scope)  # _within would cost a microsecond more at each
        try:
            return unit(connection)
        finally:
            _NOW.reset(token)

    return within


class Kept:
    """The parts, each made, and in the end closed, with the scope of the caller of this."""

    def __init__(self, parts: Iterable[Any]) -> None:
        self._scope = _NOW.get()
        self._parts = parts
        self._next: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with _within(self._scope):
            if self._next is None:
                self._next = iter(self._parts)
            return next(self._next)

    def close(self) -> None:
        """As WSGI asks of what an app returns. Safe to call twice where the parts' own is."""
        with _within(self._scope):
            for close in (getattr(one, "close", None) for one in (self._next, self._parts)):
                if close is not None:
                    close()


@contextmanager
def _within(scope: Scope | None) -> Iterator[None]:
    token = _NOW.set(scope)
    try:
        yield
    finally:
        _NOW.reset(token)


def guard(engine: Engine) -> None:
    """Have the engine refuse statements that are out of scope."""
    # Not by an event: an engine that anybody listens to asks for listeners at every statement, which costs more than this.
    plain = engine.dialect.execution_ctx_cls
    engine.dialect.execution_ctx_cls = type(f"Scoped{plain.__name__}", (_Guarded, plain), {})


class _Guarded:
    """Part of an execution context: looks at a statement when its values are known, before it runs."""

    def pre_exec(self) -> None:
        super().pre_exec()  # type: ignore[misc]
        scope = _NOW.get()
        if scope is not None:
            _check(self, scope)


def _check(context: Any, scope: Scope) -> None:
    compiled = context.compiled
    rows: Sequence[dict[str, Any]] = ({},)
    if compiled is None:
        needs: Needs = _of_text(context.statement)
    else:
        needs = compiled.__dict__.get(_KNOWN)
        if needs is None:
            needs = compiled.__dict__[_KNOWN] = _needs(compiled)
        rows = context.compiled_parameters
    for table, names in needs:
        if len(names) == 1 and _own(scope, names[0], rows):
            continue  # as it is most often
        if not all(_held(context, scope, names, values) for values in rows):
            if OPTION not in context.execution_options:
                _refuse(context, table)
            return


def _own(scope: Scope, named: tuple[str, bool], rows: Sequence[dict[str, Any]]) -> bool:
    """Whether it is the tenant's id in every row, to be told at a glance."""
    name, is_tenant = named
    own = scope.tenant_id
    return is_tenant and all(row.get(name) == own for row in rows)


def _refuse(context: Any, table: str) -> None:  # noqa: ARG001
    raise OutOfScope(f"a statement is not held within the request's tenant: {table}")


def _held(context: Any, scope: Scope, names: tuple[tuple[str, bool], ...], values: dict[str, Any]) -> bool:
    for name, is_tenant in names:
        # The list of an IN has been spread over names of its own.
        value = values[name] if name in values else [values[one] for one in context._expanded_parameters[name]]
        if scope.holds(value, is_tenant):
            return True
    return False


def _needs(compiled: Any) -> Needs:
    statement = compiled.statement
    if not isinstance(compiled, SQLCompiler) or statement is None:
        return (("text", ()),)
    # By key, too: a value that has no type of its own is compiled as a copy of itself.
    names = {bind.key: name for bind, name in compiled.bind_names.items()} | compiled.bind_names
    needs = [
        (need.table, tuple((name, seed.what == TENANT) for seed in need.seeds if (name := _name(names, seed.bind))))
        for need in reach(statement, _OWNED)
    ]
    # Values that are given by the names of columns when it runs.
    table = getattr(statement, "table", None)
    if isinstance(statement, (Insert, Update)) and TENANT in compiled.binds and TENANT in getattr(table, "c", ()):
        needs.append((str(getattr(table, "name", table)), ((TENANT, True),)))
    return tuple(dict.fromkeys(needs))


def _name(names: dict[Any, str], bind: BindParameter[Any]) -> str | None:
    return names.get(bind) or names.get(bind.key)


def _of_text(statement: str) -> Needs:
    """What is handed to the driver as text: rows to add, whose tenants db/bulk.py has looked at. Nothing else is read here."""
    return () if statement in _ADDING or not READS.search(statement) else (("text", ()),)


def adding(statement: str) -> str:
    """``statement``, which does nothing but insert rows that :func:`check_written` has seen."""
    _ADDING.add(statement)
    return statement


def check_written(table: str, tenants: Iterable[str]) -> None:
    """
    Raises:
        OutOfScope: a row for another tenant than the one that this thread acts in.
    """
    scope = _NOW.get()
    if scope is not None:
        own = scope.tenant_id
        for tenant in tenants:
            if tenant != own:
                raise OutOfScope(f"a row is written for another tenant than the request's: {table}")
