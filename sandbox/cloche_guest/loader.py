"""Loads exactly one plugin version with pluggy. Runs only inside the sandbox."""

from __future__ import annotations

import importlib
import importlib.util
import marshal
import pkgutil
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pluggy

from cloche_guest import hookspecs

_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


class LoadError(Exception):
    """The bundle is no usable plugin. The message is meant for its author."""


@dataclass
class Prepared:
    """What loading needs and no plugin's code is part of, made once in a process that forks others, each of which loads once.

    ``source``: the entry module's file, and ``module`` the empty module for it, when no other module could be meant by its name. ``code``:
    what the file compiles to, marshalled, once a process without rights has said so.
    """

    name: str
    manager: pluggy.PluginManager
    source: Path | None = None
    module: ModuleType | None = None
    code: bytes | None = None


def prepare(plugin: Path, wheels: Path) -> Prepared | None:
    """Without running anything of the plugin's. None: its folder is not as it should be, which loading will explain."""
    try:
        name = _entry(plugin)
    except (LoadError, OSError, ValueError, RecursionError):
        return None
    found = Prepared(name, _new_manager())
    source = plugin / f"{name}.py"
    # Looking the name up has the finders of every folder read it, which each load would do again.
    if "." not in name and importlib.util.find_spec(name) is None and source.is_file():
        for folder in (plugin, wheels):
            if (finder := pkgutil.get_importer(str(folder))) is not None:
                finder.find_spec(name)
        spec = importlib.util.spec_from_file_location(name, source)
        if spec is not None and not (plugin / name).is_dir():
            found.source, found.module = source, importlib.util.module_from_spec(spec)
    return found


def load(plugin: Path, wheels: Path, prepared: Prepared | None = None) -> pluggy.PluginManager:
    """A manager that holds the one plugin in folder ``plugin``; its wheels' packages lie unpacked in ``wheels``.

    Raises:
        LoadError: no entry module, a misspelt hook, or not exactly one ``run``.
        Exception: whatever the plugin's own import raises.
    """
    # Behind the standard library: a bundle's json.py cannot replace the one the agent uses.
    sys.path += [str(plugin), str(wheels)]
    if prepared is None:
        prepared = Prepared(_entry(plugin), _new_manager())
    name, manager = prepared.name, prepared.manager
    module = _run_module(prepared) if prepared.module is not None else importlib.import_module(name)
    origin = getattr(module, "__file__", None)
    if origin is None or not Path(origin).is_relative_to(plugin):
        raise LoadError(f"module {name!r} was not found in the bundle (another module of that name exists)")
    try:
        manager.register(module, name=name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise LoadError(str(error)) from None
    found = [impl for impl in manager.hook.run.get_hookimpls() if not (impl.hookwrapper or impl.wrapper)]
    if len(found) != 1:
        raise LoadError(f"module {name!r} has {len(found)} implementations of run(job); it needs exactly one @hookimpl")
    return manager


def _run_module(prepared: Prepared) -> ModuleType:
    """What importing it does, without looking for it."""
    module = prepared.module
    if module is None or module.__spec__ is None or module.__spec__.loader is None:
        raise LoadError(f"module {prepared.name!r} cannot be loaded")
    sys.modules[prepared.name] = module
    try:
        if prepared.code is not None:
            exec(marshal.loads(prepared.code), module.__dict__)  # noqa: S102, S302 - the plugin itself, where it is to run # nosec B102, B302
        else:
            module.__spec__.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(prepared.name, None)
        raise
    return sys.modules.get(prepared.name, module)


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
