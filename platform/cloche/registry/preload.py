"""``[sandbox] preload``: which modules of a plugin's packages a slot of level ``namespace`` imports once for all its cells."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cloche.domain.runtimes import RUNC
from cloche.registry.lockfile import LOCK_NAME, LockedWheel
from cloche.registry.tables import ManifestError, Section
from cloche_guest import preload_names

KEY = "sandbox.preload"
_SUFFIXES = (".py", ".so")


def read(sandbox: Section, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The names; ``manifest``: what was read of the rest.

    Raises:
        ManifestError: they are no modules' names, or nothing of this manifest could import them.
    """
    names = sandbox.texts("preload")
    if not names:
        return ()
    if problem := preload_names.problem(names):
        raise ManifestError(KEY, problem)
    if manifest["isolation"] != "namespace" or manifest["runtime"] != RUNC:
        raise ManifestError(
            KEY,
            "is for isolation 'namespace' on runtime 'runc': elsewhere nothing is shared between jobs; leave it empty",
        )
    if not manifest["requires_python"]:
        raise ManifestError(KEY, "names modules of the packages in requires.python, and there are none")
    for name in names:
        if name in sys.stdlib_module_names or name == manifest["entry"]:
            what = "of the standard library" if name in sys.stdlib_module_names else "the plugin itself"
            raise ManifestError(
                KEY, f"'{name}' is {what}; only modules of the packages in requires.python can be preloaded"
            )
    return names


def check(source: Path, names: Iterable[str], locked: Iterable[LockedWheel]) -> None:
    """Refuse what the locked wheels do not provide, and what the bundle's own files would hide from a cell.

    Raises:
        ManifestError: with the name, and what could be named.
    """
    locked = list(locked)
    known = sorted({module for wheel in locked for module in wheel.modules or ()})
    for name in names:
        if any(wheel.modules is None for wheel in locked):
            raise ManifestError(
                KEY,
                f"needs a {LOCK_NAME} that says what its wheels provide: make it anew with 'python -m cloche.registry.wheels FOLDER'",
            )
        if name not in known:
            raise ManifestError(
                KEY, f"'{name}' is no module of the locked wheels; they provide {', '.join(known)[:400] or 'none'}"
            )
        if (source / name).exists() or any((source / f"{name}{suffix}").exists() for suffix in _SUFFIXES):
            raise ManifestError(KEY, f"'{name}' is in the bundle itself, and would be found before the wheel's")
