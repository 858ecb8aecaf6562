"""Loads the operator's extensions: installed packages that are named in the settings, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

import pluggy

from cloche.errors import SettingsError
from cloche.hookspecs import GROUP, PROJECT, Hooks


def load(names: Sequence[str], installed: Sequence[EntryPoint] | None = None) -> pluggy.PluginManager:
    """The hooks of these extensions; ``installed``: the entry points there are, by default those of this environment.

    Raises:
        SettingsError: one of them is not installed, cannot be imported, or implements no hook that there is.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    found = {point.name: point for point in (entry_points(group=GROUP) if installed is None else installed)}
    for name in dict.fromkeys(names):
        if name not in found:
            known = ", ".join(sorted(found)) or "none"
            raise SettingsError(f"extension.enabled: no extension '{name[:64]}' is installed; there are: {known}")
        try:
            manager.register(found[name].load(), name=name)
        except Exception as error:
            raise SettingsError(
                f"extension.enabled: '{name}' cannot be loaded ({type(error).__name__}: {error})"
            ) from error
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise SettingsError(f"extension.enabled: {error}") from None
    return manager
