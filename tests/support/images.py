"""Images for plugins' own: the example's shell, with whatever a test puts beside it. Loaded for a test, removed afterwards."""

from __future__ import annotations

import importlib.util
import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloche.config import Settings
from cloche.sandboxd.engine import Engine

EXAMPLE = Path(__file__).parents[2] / "examples" / "shell"
_spec = importlib.util.spec_from_file_location("shell_example", EXAMPLE / "build.py")
assert _spec is not None and _spec.loader is not None
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)


def layer_of(more: Mapping[str, bytes | str | None] | None = None, fifos: tuple[str, ...] = ()) -> bytes:
    """The shell's files and ``more``: bytes make a file, text a symbolic link, None a folder."""
    out = io.BytesIO()
    contents: dict[str, bytes | str | None] = {**build.shell_files(), **(more or {})}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, what in sorted(contents.items()):
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.mode, entry.mtime = 0o755, build.DATE
            if isinstance(what, bytes):
                entry.size = len(what)
            elif what is None:
                entry.type = tarfile.DIRTYPE
            else:
                entry.type, entry.linkname = tarfile.SYMTYPE, what
            tar.addfile(entry, io.BytesIO(what) if isinstance(what, bytes) else None)
        for path in fifos:
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.type, entry.mode, entry.mtime = tarfile.FIFOTYPE, 0o644, build.DATE
            tar.addfile(entry)
    return out.getvalue()


@contextmanager
def loaded(layer: bytes | None = None, **config: Any) -> Iterator[str]:
    """An image on the engine, by its id; ``config``: its configuration beyond the label, or another ``Labels``."""
    # An id of this process's own: neither the example's image nor that of tests beside these is removed.
    config.setdefault("Labels", {**build.LABELS, "org.cloche.test": str(os.getpid())})
    engine = Engine(Settings().sandbox.docker_socket)
    image, tar = build.image_of(layer_of() if layer is None else layer, config, tag=False)
    try:
        engine.load(io.BytesIO(tar))
        yield image
    finally:
        engine.remove_image(image)
        engine.close()
