"""Whatever reaches beyond the tenant of a request is in a table, with its reason, and whatever vouches for a key is too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLATFORM = ROOT / "platform" / "cloche"
TABLE = Path(__file__).with_name("across_tenants.txt")
OPTION = "across_tenants"
_WAYS = frozenset({OPTION, "text_across_tenants"})
_ACTS = {
    "vouch": "vouches",
    "act_in": "acts in a tenant",
    "act_for_nobody": "acts for nobody",
    "nobodys": "acts for nobody",
}
# Of these the code does not say why: the table does, behind a dash.
_THREAD = "has a thread, which no request's tenant holds"
_THREADS = frozenset({"Thread", "Timer", "ThreadPoolExecutor", "ProcessPoolExecutor"})
_DIRECT = "goes to the database by itself"
_CONNECTS = frozenset({"sqlite3", "psycopg", "BoundedConnection"})


def _reason(node: ast.expr, within: ast.AST, module: ast.Module) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    for place in (within, module):
        for one in ast.walk(place):
            if isinstance(one, ast.Assign) and isinstance(node, ast.Name):
                named = any(isinstance(target, ast.Name) and target.id == node.id for target in one.targets)
                if named and isinstance(one.value, ast.Constant):
                    return str(one.value.value)
    raise AssertionError(f"line {node.lineno}: the reason has to be written out")


def _imported(module: ast.Module) -> dict[str, str]:
    """What a name of the module is called where it comes from."""
    froms = (one for one in ast.walk(module) if isinstance(one, (ast.ImportFrom, ast.Import)))
    return {alias.asname or alias.name: alias.name.rpartition(".")[2] for one in froms for alias in one.names}


def _found(node: ast.AST, names: dict[str, str], within: ast.AST, module: ast.Module, shown: str) -> Iterator[str]:
    if (isinstance(node, ast.Attribute) and node.attr == "OPTION") or (
        isinstance(node, ast.Name) and names.get(node.id) == "OPTION"
    ):
        yield "takes the option by its name"
    if not isinstance(node, ast.Call):
        return
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    called = names.get(called, called)
    owner = getattr(node.func, "value", None)
    of = getattr(owner, "attr", getattr(owner, "id", ""))
    if called in _WAYS:
        yield _reason(node.args[0], within, module)
    elif called == "within" and names.get(of, of) == "scope":
        yield f"acts there: {_reason(node.args[1], within, module)}"
    elif called in _ACTS:
        yield _ACTS[called]
    elif called in _THREADS and shown.startswith(("web/", "services/")):
        yield _THREAD
    elif (
        called == "create_engine"
        or (called == "connect" and names.get(of, of) in _CONNECTS)
        or (called == "number" and of.strip("_") in ("db", "store"))
    ):
        yield _DIRECT
    for keyword in node.keywords:
        if keyword.arg == OPTION:
            yield _reason(keyword.value, within, module)


def _uses(module: ast.Module, shown: str) -> list[str]:
    names, found = _imported(module), []

    def visit(node: ast.AST, name: str, within: ast.AST) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name, within = (f"{name}.{node.name}" if name else node.name), node
        found.extend(f"{shown} {name or '-'}: {what}" for what in _found(node, names, within, module, shown))
        for child in ast.iter_child_nodes(node):
            visit(child, name, within)

    visit(module, "", module)
    return found


def _round(module: ast.Module) -> list[int]:
    """Lines that go round the marker: the option by its text, or what of the scope is its own."""
    names = _imported(module)
    lines = []
    for node in ast.walk(module):
        own = isinstance(node, ast.Attribute) and node.attr.startswith("_") and isinstance(node.value, ast.Name)
        taken = isinstance(node, ast.ImportFrom) and (node.module or "").endswith("db.scope")
        text = isinstance(node, ast.Constant) and node.value == OPTION
        if (
            text
            or (own and names.get(node.value.id) == "scope")
            or (taken and any(alias.name.startswith("_") or alias.name == "*" for alias in node.names))
        ):
            lines.append(node.lineno)
    return lines


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PLATFORM.rglob("*.py")):
        yield path.relative_to(PLATFORM).as_posix(), ast.parse(path.read_text())


def test_every_way_across_tenants_is_in_the_table():
    used = sorted(use for shown, module in _modules() if shown != "db/scope.py" for use in _uses(module, shown))
    listed = [line for line in TABLE.read_text().splitlines() if line and not line.startswith("#")]
    bare = []
    for line in listed:
        use, dash, why = line.partition(" — ")
        bare.append(use)
        assert bool(dash and why) == use.endswith((_THREAD, _DIRECT)), (
            f"{line}: say why here, and only where the code does not"
        )
    assert used == sorted(bare), f"{TABLE.name} has to list exactly what reaches beyond a request's tenant"


def test_nobody_goes_round_the_marker():
    """The option by its text, or the scope itself, would be in no table."""
    assert [
        (shown, lines) for shown, module in _modules() if shown != "db/scope.py" and (lines := _round(module))
    ] == []


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("from cloche.db.scope import vouch as sure\nsure(['x'])", "vouches"),
        ("from cloche.db import scope as s\ns.act_in(other)", "acts in a tenant"),
        ("from cloche.db import scope as s\ns.within(other, 'why')", "acts there: why"),
        ("from cloche.db.scope import act_in\nact_in(None)", "acts in a tenant"),
        ("q.execution_options(**{scope.OPTION: 'x'})", "takes the option by its name"),
        ("from cloche.db.scope import OPTION as O\nq.execution_options(**{O: 'x'})", "takes the option by its name"),
        ("from threading import Thread as T\nT(target=f).start()", _THREAD),
        ("import sqlite3\nsqlite3.connect(path)", _DIRECT),
        ("self._db.number(query)", _DIRECT),
        ("@scope.across_tenants('why')\nasync def f(): ...", "why"),
    ],
)
def test_the_table_misses_none_of_these(code, what):
    assert [use.partition(": ")[2] for use in _uses(ast.parse(code), "web/x.py")] == [what]


@pytest.mark.parametrize(
    "code",
    [
        "q.execution_options(**{'across_tenants': 'x'})",
        "q.execution_options(**dict([('across_tenants', 'x')]))",
        "from cloche.db import scope as s\ns._NOW.set(None)",
        "from cloche.db.scope import _NOW\n_NOW.set(None)",
        "from cloche.db.scope import *",
    ],
)
def test_these_go_round_the_marker(code):
    assert _round(ast.parse(code))
