"""Loads exactly one plugin version with pluggy. Runs only inside the sandbox."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pluggy

from cloche_guest import hookspecs

_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


class LoadError(Exception):
    """The bundle is no usable plugin. The message is meant for its author."""


def load(plugin: Path, wheels: Path) -> pluggy.PluginManager:
    """A manager that holds the one plugin in folder ``plugin``; its wheels' packages lie unpacked in ``wheels``.

    Raises:
        LoadError: no entry module, a misspelt hook, or not exactly one ``run``.
        Exception: whatever the plugin's own import raises.
    """
    # Behind the standard library: a bundle's json.py cannot replace the one the agent uses.
    sys.path += [str(plugin), str(wheels)]
    name = _entry(plugin)
    module = importlib.import_module(name)
    origin = getattr(module, "__file__", None)
    if origin is None or not Path(origin).is_relative_to(plugin):
        raise LoadError(f"module {name!r} was not found in the bundle (another module of that name exists)")
    manager = _made.pop() if _made else _new_manager()
    try:
        manager.register(module, name=name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise LoadError(str(error)) from None
    found = [impl for impl in manager.hook.run.get_hookimpls() if not (impl.hookwrapper or impl.wrapper)]
    if len(found) != 1:
        raise LoadError(f"module {name!r} has {len(found)} implementations of run(job); it needs exactly one @hookimpl")
    return manager


_made: list[pluggy.PluginManager] = []


def make_ready() -> None:
    """Do what every load needs and no plugin is part of: for a process that forks others, each of which loads once."""
    _made.append(_new_manager())


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def _entry(plugin: Path) -> str:
    """The entry module's name out of ``plugin.toml``; ``plugin`` when it names none."""
    manifest = plugin / "plugin.toml"
    if not manifest.exists():
        return "plugin"
    table = tomllib.loads(manifest.read_text("utf-8")).get("plugin", {})
    name = table.get("entry", "plugin") if isinstance(table, dict) else "plugin"
    if not isinstance(name, str) or not _MODULE.fullmatch(name):
        raise LoadError("plugin.entry in plugin.toml is not a module name")
    return name
