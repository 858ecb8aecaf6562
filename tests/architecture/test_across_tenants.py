"""Whatever reaches beyond the tenant of a request is in a table, with its reason, and whatever vouches for a key is too."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("across_tenants.txt")
_WAYS = frozenset({"across_tenants", "text_across_tenants"})


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


def _uses(path: Path) -> list[str]:
    module = ast.parse(path.read_text())
    shown = path.relative_to(ROOT / "platform" / "cloche").as_posix()
    found = []

    def visit(node: ast.AST, name: str, within: ast.AST) -> None:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            name, within = (f"{name}.{node.name}" if name else node.name), node
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in _WAYS:
                found.append(f"{shown} {name or '-'}: {_reason(node.args[0], within, module)}")
            elif called == "vouch":
                found.append(f"{shown} {name}: vouches")
            reasons = [keyword.value for keyword in node.keywords if keyword.arg == "across_tenants"]
            found.extend(f"{shown} {name or '-'}: {_reason(one, within, module)}" for one in reasons)
        for child in ast.iter_child_nodes(node):
            visit(child, name, within)

    visit(module, "", module)
    return found


def test_every_way_across_tenants_is_in_the_table():
    used = sorted(use for path in (ROOT / "platform" / "cloche").rglob("*.py") for use in _uses(path))
    listed = [line for line in TABLE.read_text().splitlines() if line and not line.startswith("#")]
    assert used == sorted(listed), f"{TABLE.name} has to list exactly what reaches beyond a request's tenant"


def test_nobody_goes_round_the_marker():
    """The option by its text, or the scope itself, would be in no table."""
    for path in (ROOT / "platform" / "cloche").rglob("*.py"):
        words = path.read_text()
        if path.name != "scope.py":
            assert '"across_tenants"' not in words, path
            assert "scope._" not in words, path
