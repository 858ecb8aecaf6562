"""What goes into a sandbox image: our guest, and (without a registry) the host's own interpreter with the libraries it needs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import cloche
from cloche.errors import EnvironmentProblem
from cloche.sandboxd.tree import Node, Tree

GUEST_HOME = "opt/cloche"
MOUNT_POINTS = tuple(
    "job/in job/out job/secrets run/cloche cloche/plugin cloche/wheels cloche/slots cloche/slot".split()
)
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

_LEFT_OUT = frozenset(
    "test tests idlelib tkinter turtledemo ensurepip lib2to3 pydoc_data venv site-packages dist-packages __pycache__ lib-dynload "
    "turtle.py sitecustomize.py usercustomize.py antigravity.py".split()
)
_LIBRARY_MODULES_LEFT_OUT = re.compile(r"^(_test|_tkinter|xxlimited|_xx|_ctypes_test)")
# What binary wheels may expect of any Linux (PEP 600), beyond what the interpreter names itself.
_WHEEL_LIBRARIES = (
    "libgcc_s.so.1 libstdc++.so.6 libdl.so.2 libpthread.so.0 librt.so.1 libutil.so.1 libresolv.so.2 libnss_files.so.2 libz.so.1"
).split()
_LDD_LINE = re.compile(r"^\s*(?:(\S+) => )?(/\S+) \(0x[0-9a-f]+\)$")

_COMPILE = """
import py_compile, sys
for line in sys.stdin:
    source, target, name = line.rstrip("\\n").split("\\0")
    try:
        py_compile.compile(source, target, name, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    except (py_compile.PyCompileError, ValueError):
        continue
"""


def image_folder() -> Path:
    """The folder with Dockerfile, seccomp profile and the container's entry: of the checkout, or inside an installed package."""
    package = Path(cloche.__file__).resolve().parent
    for folder in (package / "_image", package.parents[1] / "sandbox" / "image"):
        if (folder / "seccomp.json").is_file():
            return folder
    raise EnvironmentProblem("the sandbox's files (Dockerfile, seccomp.json) are missing from this installation")


def probes_folder() -> Path:
    """The folder with the hostile plugin that ``cloche doctor --sandbox`` runs."""
    package = Path(cloche.__file__).resolve().parent
    for folder in (package / "_probes", package.parents[1] / "sandbox" / "probes"):
        if (folder / "plugin.py").is_file():
            return folder
    raise EnvironmentProblem("the sandbox probes are missing from this installation")


def guest_tree() -> Tree:
    """Our guest and pluggy under ``/opt/cloche``, and the mount points."""
    tree = Tree()
    for name in ("cloche_guest", "pluggy"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise EnvironmentProblem(f"the Python package {name} is not installed")
        for path in sorted(Path(spec.origin).parent.glob("*.py")):
            tree.copy(f"{GUEST_HOME}/{name}/{path.name}", path)
    tree.copy(f"{GUEST_HOME}/__main__.py", image_folder() / "__main__.py")
    for point in MOUNT_POINTS:
        tree.folder(point)
    return tree


def host_tree() -> Tree:
    """A root file system around this process's interpreter, laid out as ``/usr/local/bin/python3``.

    Raises:
        EnvironmentProblem: the interpreter's files or libraries cannot be found.
    """
    tree = guest_tree()
    interpreter, library = _interpreter(), Path(sysconfig.get_path("stdlib"))
    home = f"usr/local/{sys.platlibdir}/python{PYTHON}"
    for path in _library_files(library):
        tree.copy(f"{home}/{path.relative_to(library)}", path)
    modules = [p for p in sorted((library / "lib-dynload").glob("*.so")) if not _LIBRARY_MODULES_LEFT_OUT.match(p.name)]
    needed, broken = _libraries([interpreter, Path("/bin/sh").resolve(), *modules])
    for path in modules:
        if path not in broken:
            tree.copy(f"{home}/lib-dynload/{path.name}", path, 0o755)
    if interpreter in broken:
        raise EnvironmentProblem(f"ldd does not find all libraries of {interpreter}")
    _place_libraries(tree, needed)
    tree.folder(f"{home}/lib-dynload")
    tree.copy(f"usr/local/bin/python{PYTHON}", interpreter, 0o755)
    tree.link("usr/local/bin/python3", f"python{PYTHON}")
    tree.link("usr/local/bin/python", f"python{PYTHON}")
    tree.copy("bin/sh", Path("/bin/sh").resolve(), 0o755)
    _base_files(tree)
    return tree


def compiled(tree: Tree) -> Tree:
    """The tree with byte code beside every Python file, as a read-only root needs it. The same bytes on every run."""
    sources = {path: node for path, node in tree.nodes.items() if path.endswith(".py") and node.source is not None}
    result = Tree(dict(tree.nodes))
    with tempfile.TemporaryDirectory(prefix="cloche-image-") as folder:
        names = {path: Path(folder, f"{number}.pyc") for number, path in enumerate(sorted(sources))}
        lines = "".join(f"{sources[path].source}\0{target}\0/{path}\n" for path, target in names.items())
        # A process of its own with a fixed hash seed: the order of a frozen set's constants depends on it.
        subprocess.run(
            [str(_interpreter()), "-s", "-S", "-B", "-c", _COMPILE],
            input=lines.encode(),
            env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
            check=True,
            capture_output=True,
        )
        for path, target in names.items():
            if target.exists():
                head, _, tail = path.rpartition("/")
                cache = f"{head}/__pycache__/{tail[:-3]}.{sys.implementation.cache_tag}.pyc"
                result.nodes[cache] = Node(mode=0o644, data=target.read_bytes())
    return result


def _interpreter() -> Path:
    for path in (Path(sys.base_prefix, "bin", f"python{PYTHON}"), Path(sys.executable)):
        if path.exists():
            return path.resolve()
    raise EnvironmentProblem("cannot find this process's own Python interpreter")


def _library_files(library: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(library):
        names[:] = sorted(name for name in names if name not in _LEFT_OUT and not name.startswith("config-"))
        for name in sorted(files):
            path = Path(folder, name)
            if name not in _LEFT_OUT and not name.endswith((".pyc", ".a", ".o", ".exe", ".so")) and path.exists():
                yield path


def _libraries(objects: Iterable[Path]) -> tuple[dict[str, Path], set[Path]]:
    """What ``ldd`` names for the objects: name → file; and the objects for which it misses something."""
    needed: dict[str, Path] = {}
    broken: set[Path] = set()
    paths = list(objects)
    answer = subprocess.run(["ldd", *map(str, paths)], capture_output=True, text=True, check=False, env={"LC_ALL": "C"})
    current = paths[0]
    for line in answer.stdout.splitlines():
        if line.endswith(":") and not line.startswith(("\t", " ")):
            current = Path(line[:-1])
        elif line.strip().endswith("not found"):
            broken.add(current)
        elif match := _LDD_LINE.match(line):
            needed.setdefault(match[1] or match[2], Path(match[2]))
    if not needed:
        raise EnvironmentProblem("ldd names no libraries; it is needed to build the sandbox image without a registry")
    return needed, broken


def _place_libraries(tree: Tree, needed: dict[str, Path]) -> None:
    """All in the folder where the C library lies: every dynamic loader looks there without configuration."""
    libc = next((path for name, path in needed.items() if name.startswith(("libc.so", "libc.musl"))), None)
    if libc is None:
        raise EnvironmentProblem("ldd does not name the C library")
    folder = libc.parent
    for name in _WHEEL_LIBRARIES:
        for place in (folder, Path("/usr") / folder.relative_to("/")):
            if (place / name).exists():
                needed.setdefault(name, place / name)
    for name, path in needed.items():
        target = name if name.startswith("/") else f"{folder}/{name}"
        tree.copy(target, path.resolve(), 0o755)


def _base_files(tree: Tree) -> None:
    tree.file("etc/passwd", b"root:x:0:0:root:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    tree.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    tree.file("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files\n")
    for folder in ("dev", "proc", "sys", "root", "usr/bin", "etc"):
        tree.folder(folder)
    tree.folder("tmp", 0o1777)
