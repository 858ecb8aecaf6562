"""Bundles and wheels made for a test."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from cloche.registry.lockfile import LockedWheel, format_lock
from cloche.registry.wheels import modules_of

RUN = """
from cloche_guest import Job, hookimpl


@hookimpl
def run(job: Job) -> dict:
    return {"inputs": len(job.inputs)}
"""


def manifest_text(name: str = "sample", version: str = "1.0.0", more: str = "") -> str:
    """A small valid ``plugin.toml``; ``more`` is appended."""
    return f'[plugin]\nname = "{name}"\nversion = "{version}"\napi = 1\nsummary = "A sample."\n{more}'


def write_bundle(
    folder: Path,
    name: str = "sample",
    version: str = "1.0.0",
    *,
    code: str = RUN,
    more: str = "",
    files: Mapping[str, str] | None = None,
) -> Path:
    """``folder/<name>/<version>/`` with manifest, ``plugin.py`` and further files; returns it."""
    source = folder / name / version
    source.mkdir(parents=True)
    (source / "plugin.toml").write_text(manifest_text(name, version, more), "utf-8")
    (source / "plugin.py").write_text(code, "utf-8")
    for path, content in (files or {}).items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(content, "utf-8")
    return source


def make_wheel(
    folder: Path, name: str = "sampled", version: str = "1.0", files: Mapping[str, str] | None = None
) -> Path:
    """A pure Python wheel with the given files, as pip accepts it."""
    info = f"{name}-{version}.dist-info"
    content = {
        **(files or {f"{name}.py": "VALUE = 1\n"}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*content, f"{info}/RECORD"))
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for entry, text in content.items():
            archive.writestr(entry, text)
    return path


def locked(wheel: Path, sha256: str | None = None) -> LockedWheel:
    """The lock's entry for a wheel file; ``sha256`` to lie about it."""
    name, version = wheel.name.split("-")[:2]
    digest = sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest()
    return LockedWheel(name, version, wheel.name, digest, modules_of(wheel))


def lock_for(*wheels: Path) -> str:
    """The text of a ``wheels.lock`` that names these files."""
    return format_lock(locked(wheel) for wheel in wheels)
