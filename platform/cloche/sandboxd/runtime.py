"""The runtime that carries our guest into a plugin's own image: the host's interpreter with its libraries and its dynamic loader.

Written once, to a folder that only root can reach, under the digest of its contents; a sandbox gets it read-only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath

from cloche.errors import EnvironmentProblem
from cloche.isolation.plugin_image import ENVIRONMENT, LIBRARIES, LOADER, interpreter
from cloche.sandboxd import image_parts
from cloche.sandboxd.tree import Tree

_UNFINISHED = ".new-"
_PROVE_SECONDS = 60
_EMPTY_ZIP = b"PK\5\6" + bytes(18)
# Loads every extension module there is, then shows what of any file is in memory.
_PROVE = """
import importlib, os, sysconfig, sys
importlib.import_module("cloche_guest.command")
for name in sorted(os.listdir(os.path.join(os.path.dirname(os.__file__), "lib-dynload"))):
    try:
        importlib.import_module(name.split(".")[0])
    except ImportError:
        pass
for line in open("/proc/self/maps"):
    parts = line.rstrip("\\n").split(None, 5)
    if len(parts) == 6 and parts[5].startswith("/"):
        print(parts[5])
print(*filter(None, sys.path), sys.prefix, sep="\\n")
"""


def ensure_runtime(folder: Path) -> Path:
    """The runtime's folder below ``folder``, written first when it is not there. One process at a time; others' leftovers are removed.

    Raises:
        EnvironmentProblem: this host's interpreter cannot be carried into another image.
        OSError: no room, or the folder cannot be written.
    """
    tree = runtime_tree()
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != 0:
        raise EnvironmentProblem(f"{folder} does not belong to root; remove it and start again")
    target = folder / tree.digest()
    for name in os.listdir(folder):
        if name != target.name:
            shutil.rmtree(folder / name)
    if not target.exists():
        _write(image_parts.compiled(tree), target)
    return target


def runtime_tree() -> Tree:
    """The host's root file system around its interpreter, with loader and libraries under names that are the same on every host.

    Raises:
        EnvironmentProblem: there is no dynamic loader or no C library in it.
    """
    tree = image_parts.host_tree()
    loader = _first(tree, ("ld-linux", "ld64.so", "ld-musl"))
    tree.nodes[LOADER] = tree.nodes[loader]
    # The interpreter looks for its library as an archive first, in every folder upwards from its own: found here, it never looks in the image's.
    tree.file(f"usr/local/{sys.platlibdir}/python{image_parts.PYTHON.replace('.', '')}.zip", _EMPTY_ZIP)
    tree.link(LIBRARIES, str(PurePosixPath(_first(tree, ("libc.so", "libc.musl"))).parent))
    return tree


def _first(tree: Tree, beginnings: tuple[str, ...]) -> str:
    for path in sorted(tree.nodes):
        if PurePosixPath(path).name.startswith(beginnings):
            return path
    raise EnvironmentProblem(f"the host's interpreter brings no {beginnings[0]}; plugins' own images cannot be run")


def _write(tree: Tree, target: Path) -> None:
    """All of it or nothing: what a crash leaves has another name."""
    new = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=target.parent))
    try:
        _fill(tree, new)
        os.chmod(new, 0o755)  # noqa: S103 - the jobs' users read it; the folder above is closed to all but root # nosec B103
        _prove(new)
        _flush(new)
        os.rename(new, target)
        _flush(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(new)
        raise


def _fill(tree: Tree, root: Path) -> None:
    for path, node in sorted(tree.with_parents().items()):
        place = root / path
        if node.target is not None:
            place.symlink_to(node.target)
        elif node.is_file:
            place.write_bytes(node.read())
            os.chmod(place, node.mode)
        else:
            place.mkdir(exist_ok=True)
            os.chmod(place, node.mode & 0o755)


def _prove(root: Path) -> None:
    """Run it here once: whatever it maps or looks for must lie within itself, or an image could put its own in that place.

    Raises:
        EnvironmentProblem: it does not run, or takes something from elsewhere.
    """
    code = f"import sys; sys.path.insert(0, {str(root / image_parts.GUEST_HOME)!r})\n{_PROVE}"
    try:
        done = subprocess.run(
            [*interpreter(str(root)), "-c", code],
            env=ENVIRONMENT,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=_PROVE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentProblem(f"the runtime for plugins' own images does not run on this host: {error}") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentProblem(f"the runtime for plugins' own images does not run on this host: {last}")
    foreign = {line for line in done.stdout.splitlines() if not line.startswith(f"{root}/")}
    if foreign:
        raise EnvironmentProblem(f"the host's interpreter takes {sorted(foreign)[0]} from outside the runtime")


def _flush(folder: Path) -> None:
    """Everything of the folder's file system to the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(fd)
