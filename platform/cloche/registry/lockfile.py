"""``wheels.lock``: which wheel files, by SHA-256, a bundle's packages are. TOML, committed with the bundle."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from cloche.errors import ClocheError

LOCK_NAME = "wheels.lock"
_FORMAT = 1
_MAX_BYTES = 1 << 20
_SHA256 = re.compile(r"^[0-9a-f]{64}\Z")
_FIELDS = frozenset({"name", "version", "filename", "sha256"})
_MODULE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,99}\Z")
_MAX_MODULES = 1_000  # of one wheel


class LockError(ClocheError):
    """A ``wheels.lock`` is absent, malformed or does not hold what the manifest asks for."""


@dataclass(frozen=True)
class LockedWheel:
    """One wheel file. ``name`` is the canonical name of its project; ``modules`` the top-level ones it provides, None in locks of before."""

    name: str
    version: str
    filename: str
    sha256: str
    modules: tuple[str, ...] | None = None


def parse_lock(text: str) -> tuple[LockedWheel, ...]:
    """
    Raises:
        LockError: malformed, an unknown key, a file name that disagrees with name and version, or two versions of one package.
    """
    if len(text) > _MAX_BYTES:
        raise LockError(f"{LOCK_NAME} is larger than {_MAX_BYTES} bytes")
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise LockError(f"{LOCK_NAME} is not well-formed TOML: {error}") from None
    if (
        data.get("format") != _FORMAT
        or data.keys() - {"format", "wheel"}
        or not isinstance(data.get("wheel", []), list)
    ):
        raise LockError(f"{LOCK_NAME} must hold format = {_FORMAT} and [[wheel]] tables, nothing else")
    wheels = tuple(_wheel(entry, position) for position, entry in enumerate(data.get("wheel", [])))
    versions: dict[str, str] = {}
    for wheel in wheels:
        if versions.setdefault(wheel.name, wheel.version) != wheel.version:
            raise LockError(f"{LOCK_NAME} holds {wheel.name} in two versions")
    return wheels


def format_lock(wheels: Iterable[LockedWheel]) -> str:
    """The lock's text, sorted, the same for the same wheels."""
    lines = [
        "# Made by `python -m cloche.registry.wheels FOLDER`: exact files, by hash. Part of the frozen bundle.",
        f"format = {_FORMAT}",
    ]
    for wheel in sorted(wheels, key=lambda item: (item.name, item.filename)):
        lines += ["", "[[wheel]]"]
        lines += [f'{key} = "{getattr(wheel, key)}"' for key in ("name", "version", "filename", "sha256")]
        if wheel.modules is not None:
            lines.append(f"modules = {json.dumps(list(wheel.modules))}")
    return "\n".join(lines) + "\n"


def _modules(names: object, where: str) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or len(names) > _MAX_MODULES:
        raise LockError(f"{where}.modules must be a list of at most {_MAX_MODULES} names")
    if not all(isinstance(name, str) and _MODULE.match(name) for name in names):
        raise LockError(f"{where}.modules must name top-level modules, such as 'numpy'")
    return tuple(names)


def _wheel(entry: object, position: int) -> LockedWheel:
    where = f"{LOCK_NAME}: wheel[{position}]"
    found = entry if isinstance(entry, dict) else {}
    texts = {key: value for key, value in found.items() if key != "modules"}
    if texts.keys() != _FIELDS or not all(isinstance(value, str) for value in texts.values()):
        raise LockError(f"{where} must hold {', '.join(sorted(_FIELDS))} as text, and modules as a list, nothing else")
    wheel = LockedWheel(**texts, modules=_modules(found.get("modules"), where))
    if not _SHA256.match(wheel.sha256):
        raise LockError(f"{where}.sha256 must be 64 hex digits")
    try:
        name, version, _, _ = parse_wheel_filename(wheel.filename)
    except InvalidWheelFilename as error:
        raise LockError(f"{where}.filename: {error}") from None
    if (
        "/" in wheel.filename
        or name != canonicalize_name(wheel.name)
        or str(version) != wheel.version
        or name != wheel.name
    ):
        raise LockError(f"{where}: filename says {name} {version}, the entry {wheel.name} {wheel.version}")
    return wheel
