"""Output files onto this machine: whatever a job called them, they stay inside the folder that was named."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cloche.cli import output
from cloche.cli.client import Api, ApiFailure


def inside(folder: Path, name: str) -> Path:
    """The place of ``name`` (relative, POSIX) under ``folder``.

    Raises:
        ApiFailure: the name would lead out of it, or holds control characters.
    """
    path = PurePosixPath(name)
    if (
        not name
        or path.is_absolute()
        or ".." in path.parts
        or output.printable(name) != name
        or "\n" in name
        or "\t" in name
    ):
        raise ApiFailure(f"'{output.one_line(name)}' is not a safe file name; nothing was written for it")
    target = folder / path
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise ApiFailure(f"'{name}' leads out of {folder} through a link; nothing was written for it")
    return target


def fetch(api: Api, file_id: str, target: Path, sha256: str) -> None:
    """Download a stored file; it appears under its name only once it is whole and its SHA-256 fits.

    Raises:
        ApiFailure: the download failed or its content is not what was stored.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".cloche-")
    try:
        with os.fdopen(handle, "wb") as stream:
            found = api.download(file_id, stream)
        if found != sha256:
            raise ApiFailure(f"{target}: the download's SHA-256 is {found}, expected {sha256}; it was not kept")
        umask = os.umask(0o077)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def save_outputs(api: Api, items: Sequence[Mapping[str, Any]], folder: Path) -> Iterator[Path]:
    """Download every output that lies in the artifact store; yields each file once it is there."""
    for item in items:
        if not item.get("artifact_id"):
            output.note(f"{item['path']} went to {item.get('destination')}; not downloaded")
            continue
        target = inside(folder, str(item["path"]))
        fetch(api, str(item["artifact_id"]), target, str(item["sha256"]))
        yield target
