"""The tenant that a request acts in, kept under every query: a statement that could reach another tenant's rows does not run.

The web layer says in whose tenant it acts (:func:`act_in`), once it knows who is asking. From then on every statement that the request runs,
in whichever thread, has to be held within that tenant: by a comparison of ``tenant_id`` with its id, or by the key of a row that was found by
it and vouched for (:func:`vouch`). See :mod:`cloche.db.reach` for what counts as held. What is to see more says why: :func:`across_tenants`,
or the execution option ``across_tenants`` on a statement; ``tests/architecture`` has the list of all of them. Workers, the sweeper and the
others who act for the platform run without a scope.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Engine

from cloche.db.reach import READS, TENANT, Owned, reach
from cloche.db.store import T, Unit
from cloche.db.tables import metadata

OPTION = "across_tenants"
_KNOWN = "_cloche_reach"  # on a compiled statement, which SQLAlchemy keeps as long as it is used
_OWNED = Owned(metadata)
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


_NOW: ContextVar[Scope | None] = ContextVar("cloche_scope", default=None)


def act_in(tenant_id: str | None) -> None:
    """What this thread does from now on, it does in that tenant; None: for nobody, as before anybody is known."""
    now = _NOW.get()
    if tenant_id is None:
        if now is not None:
            _NOW.set(None)
    elif now is None or now.tenant_id != tenant_id:
        _NOW.set(Scope(tenant_id))


def vouch(keys: Iterable[str]) -> None:
    """These are keys of rows of the request's tenant: they were found by its id, or have just been made in it."""
    now = _NOW.get()
    if now is not None:
        now.vouched.update(keys)


@contextmanager
def across_tenants(why: str) -> Iterator[None]:  # noqa: ARG001 - for the reader, and for the test that lists them
    """Statements of the block are not held within a tenant. ``why`` says what keeps them from harm."""
    token = _NOW.set(None)
    try:
        yield
    finally:
        _NOW.reset(token)


def carried(unit: Unit[T]) -> Unit[T]:
    """The unit, to run with the scope of the caller of this: another thread may run it, or one that acts for somebody else."""
    scope = _NOW.get()

    def within(connection: Any) -> T:
        token = _NOW.set(scope)
        try:
            return unit(connection)
        finally:
            _NOW.reset(token)

    return within


def kept(parts: Generator[Any, None, None]) -> Iterator[Any]:
    """The parts, each made with the scope of the caller of this."""
    return _each(parts, _NOW.get())


def _each(parts: Generator[Any, None, None], scope: Scope | None) -> Iterator[Any]:
    with closing(parts):
        while True:
            token = _NOW.set(scope)
            try:
                part = next(parts)
            except StopIteration:
                return
            finally:
                _NOW.reset(token)
            yield part


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
        if not all(_held(context, scope, names, values) for values in rows):
            if OPTION not in context.execution_options:
                _refuse(context, table)
            return


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
    names = compiled.bind_names
    return tuple(
        (need.table, tuple((names[seed.bind], seed.what == TENANT) for seed in need.seeds if seed.bind in names))
        for need in reach(compiled.statement, _OWNED)
    )


def _of_text(statement: str) -> Needs:
    # What is handed to the driver as text are rows to add (db/bulk.py). Nothing else is read here.
    added = statement.startswith("INSERT INTO ") and " SELECT " not in statement
    return () if added or not READS.search(statement) else (("text", ()),)
