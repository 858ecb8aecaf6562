"""A plugin's Python packages as hashed wheels: locked once by its author, fetched by hash, unpacked as data.

Nothing of a wheel runs on the host: pip only downloads (``--no-deps --only-binary :all: --require-hashes``), the hash is checked again
here, and the archive is unpacked by :mod:`cloche.registry.unpack`. A host that has unpacked a lock once needs no index for it again.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from cloche.errors import ClocheError
from cloche.registry import frozen
from cloche.registry.lockfile import LOCK_NAME, LockedWheel, LockError, format_lock, parse_lock
from cloche.registry.manifest import parse
from cloche.registry.unpack import UnpackError, unpack

__all__ = ["LOCK_NAME", "LockError", "WheelError", "digest_for", "fetch", "lock", "lock_digest", "select"]

PYTHONS = ("cp311", "cp312", "cp313", "cp314")
MACHINES = ("x86_64", "aarch64")
# glibc 2.28 is that of Debian 10 and Red Hat 8: every image this platform builds has a newer one.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
_PYTHON = re.compile(r"^(?:cp)?3\.?(\d{1,2})\Z")
_PIP_TIMEOUT_S = 600
_LIBRARY = re.compile(r"^[^/]+\.data/(purelib|platlib)/")  # is unpacked to the top
_HOW_TO_LOCK = "make it with 'python -m cloche.registry.wheels FOLDER'"


class WheelError(LockError):
    """Wheels cannot be fetched, verified or unpacked. Not the job's fault. ``cause_text`` holds pip's last lines."""


def python_tag(python: str) -> str:
    """``"cp311"`` of ``"3.11"`` or ``"cp311"``.

    Raises:
        WheelError: it names no CPython 3.
    """
    match = _PYTHON.match(python)
    if not match:
        raise WheelError(f"'{python[:20]}' is not a Python version such as '3.11' or 'cp311'")
    return f"cp3{int(match[1])}"


def lock_digest(bundle: Path) -> str | None:
    """SHA-256 of the bundle's ``wheels.lock``; None when it has none."""
    path = bundle / LOCK_NAME
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def digest_for(bundle: Path, python: str, machine: str | None = None) -> str:
    """Name of the folder that holds the bundle's wheels for one Python and one machine (default: this one's).

    Raises:
        WheelError: the bundle has no lock, or ``python`` names no Python.
    """
    content = lock_digest(bundle)
    if content is None:
        raise WheelError(f"{bundle} has no {LOCK_NAME}")
    text = f"cloche-wheels-v1\n{content}\n{python_tag(python)}\n{machine or platform.machine()}\n"
    return hashlib.sha256(text.encode()).hexdigest()


def read_lock(bundle: Path) -> tuple[LockedWheel, ...]:
    """
    Raises:
        LockError: it is absent or malformed.
    """
    try:
        text = (bundle / LOCK_NAME).read_text("utf-8")
    except FileNotFoundError:
        raise LockError(f"{LOCK_NAME} is missing; [requires] python needs it: {_HOW_TO_LOCK}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LockError(f"{LOCK_NAME} cannot be read: {error}") from None
    return parse_lock(text)


def check_lock(bundle: Path, pins: Iterable[str]) -> None:
    """Refuse a lock that does not hold each pinned requirement at its version.

    Raises:
        LockError: with the requirement that is missing.
    """
    held = {(canonicalize_name(item.name), item.version) for item in read_lock(bundle)}
    for pin in pins:
        requirement = Requirement(pin)
        if not any(
            name == canonicalize_name(requirement.name) and requirement.specifier.contains(version)
            for name, version in held
        ):
            raise LockError(f"{LOCK_NAME} does not hold {pin}: {_HOW_TO_LOCK}")


def select(locked: Sequence[LockedWheel], python: str, machine: str | None = None) -> list[LockedWheel]:
    """The best wheel of each locked package for one Python and machine.

    Raises:
        WheelError: a package has none that fits.
    """
    order = {tag: rank for rank, tag in enumerate(_tags(python_tag(python), machine or platform.machine()))}
    chosen: dict[str, tuple[int, LockedWheel]] = {}
    for item in locked:
        ranks = [order[tag] for tag in parse_wheel_filename(item.filename)[3] if tag in order]
        if ranks and min(ranks) < chosen.get(item.name, (len(order), item))[0]:
            chosen[item.name] = (min(ranks), item)
    for item in locked:
        if item.name not in chosen:
            raise WheelError(
                f"{LOCK_NAME} has no wheel of {item.name} for {python_tag(python)} on {machine or platform.machine()}"
            )
    return [item for _, item in chosen.values()]


def fetch(bundle: Path, python: str, home: Path, *, cache: Path | None = None) -> Path:
    """The folder ``<home>/wheels/<digest>/`` whose ``site/`` holds the bundle's packages, read-only. Made once; then no network.

    ``cache``: a folder of verified downloads named by their SHA-256 (default: ``<home>/wheels/downloads``). Safe to call from several
    processes at once: the folder appears whole or not at all.

    Raises:
        WheelError: no wheel fits, a download fails, a hash is another, or an archive is not safe to unpack.
    """
    target = home / "wheels" / digest_for(bundle, python)
    if (target / "site").is_dir():
        return target
    chosen = select(read_lock(bundle), python)
    downloads = cache or home / "wheels" / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    tag = python_tag(python)

    def fill(folder: Path) -> None:
        site = folder / "site"
        site.mkdir()
        for item in chosen:
            unpack(_downloaded(item, tag, downloads), site)

    try:
        frozen.make(target, fill)
    except UnpackError as error:
        raise WheelError(str(error)) from None
    except OSError as error:
        raise WheelError(f"wheels cannot be unpacked under {target.parent}: {error.strerror or error}") from None
    return target


def lock(pins: Sequence[str], *, pythons: Sequence[str] = PYTHONS, machines: Sequence[str] = MACHINES) -> str:
    """The text of a ``wheels.lock`` for the pinned requirements and all they need, resolved by pip from its configured index.

    pip judges environment markers by the interpreter that runs it: lock on Linux.

    Raises:
        WheelError: pip finds no wheels that fit together.
    """
    found: dict[str, LockedWheel] = {}
    for tag in pythons:
        for machine in machines:
            with tempfile.TemporaryDirectory(prefix="cloche-lock-") as folder:
                _pip(["--dest", folder, *_target(python_tag(tag), machine), *pins], Path(folder))
                for path in sorted(Path(folder).glob("*.whl")):
                    name, version, _, _ = parse_wheel_filename(path.name)
                    found[path.name] = LockedWheel(str(name), str(version), path.name, _sha256(path), modules_of(path))
    return format_lock(found.values())


def modules_of(wheel: Path) -> tuple[str, ...]:
    """Top-level modules that a wheel's file provides, sorted; read from its list of names.

    Raises:
        WheelError: it is no archive.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise WheelError(f"{wheel.name} cannot be read: {error}") from None
    found = set()
    for name in names:
        first, _, rest = _LIBRARY.sub("", name).partition("/")
        if rest == "__init__.py" or (not rest and first.endswith((".py", ".so"))):
            found.add(first.partition(".")[0])
    return tuple(sorted(name for name in found if name.isidentifier()))


def _downloaded(item: LockedWheel, tag: str, cache: Path) -> Path:
    """The wheel's file, its hash just checked."""
    kept = cache / f"{item.sha256}.whl"
    if kept.is_file() and _sha256(kept) == item.sha256:
        return kept
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as name:
        folder = Path(name)
        wanted = folder / "requirements.txt"
        wanted.write_text(f"{item.name}=={item.version} --hash=sha256:{item.sha256}\n")
        arguments = ["--dest", name, "--no-deps", "--require-hashes", "--requirement", str(wanted)]
        _pip([*arguments, *_target(tag, platform.machine())], folder)
        path = folder / item.filename
        if not path.is_file():
            raise WheelError(f"pip brought another file than {item.filename}")
        if (got := _sha256(path)) != item.sha256:
            raise WheelError(f"{item.filename} has SHA-256 {got}, and {LOCK_NAME} says {item.sha256}")
        os.replace(path, kept)
    return kept


def _target(tag: str, machine: str) -> list[str]:
    """pip's options for another interpreter than its own."""
    options = [
        "--implementation",
        "cp",
        "--python-version",
        f"3.{tag[3:]}",
        "--abi",
        tag,
        "--abi",
        "abi3",
        "--abi",
        "none",
    ]
    for name in _PLATFORMS:
        options += ["--platform", f"{name}_{machine}"]
    return options


def _pip(arguments: Sequence[str], folder: Path) -> None:
    # -I: no user site, no PYTHONPATH. pip keeps its own configuration, which names the index.
    command = [sys.executable, "-I", "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--quiet"]
    command += ["--only-binary", ":all:", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PIP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WheelError(f"pip did not finish within {_PIP_TIMEOUT_S} s") from None
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if "ERROR" in line] or [done.stderr.strip()[-300:]]
        raise WheelError("pip could not bring the wheels: " + " ".join(said)[:600])


def _tags(tag: str, machine: str) -> list[Tag]:
    version = (3, int(tag[3:]))
    platforms = [f"{name}_{machine}" for name in _PLATFORMS] + [f"linux_{machine}"]
    return [
        *cpython_tags(version, platforms=platforms),
        *compatible_tags(version, interpreter=tag, platforms=platforms),
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main(arguments: Sequence[str]) -> int:
    """``python -m cloche.registry.wheels FOLDER``: write the ``wheels.lock`` of a bundle for its ``[requires] python``."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m cloche.registry.wheels FOLDER\n")
        return 2
    folder = Path(arguments[0])
    try:
        pins = parse((folder / "plugin.toml").read_text("utf-8")).requires_python
        if not pins:
            raise LockError("its [requires] python is empty: there is nothing to lock")
        (folder / LOCK_NAME).write_text(lock(pins), "utf-8")
    except (ClocheError, OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"{folder}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
