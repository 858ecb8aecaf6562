"""What ``inputs[].from`` and ``outputs[].to`` may say, parsed in one place.

``artifact:<id>`` is a stored file; ``<remote>:path`` lies on a remote. What looks like one of rclone's own
connection strings (``:local:/etc``, ``name,option=value:x``) has no name that passes, and is refused here: rclone
never sees a string to interpret.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloche.clock import is_uuid7
from cloche.staging.paths import check_remote_name, check_remote_path, has_glob, refused

_ARTIFACT = "artifact"
_MAX_TEXT = 1_100  # a remote's name, ':' and the longest path


@dataclass(frozen=True)
class ArtifactSource:
    """A file in the artifact store."""

    artifact_id: str


@dataclass(frozen=True)
class RemoteSource:
    """A path on a remote. Only an output's may be empty: it is then the remote's root."""

    remote: str
    path: str

    @property
    def folder(self) -> str:
        """The path without its last component; empty at the root."""
        return self.path.rpartition("/")[0]

    @property
    def basename(self) -> str:
        """The path's last component."""
        return self.path.rpartition("/")[2]

    @property
    def is_glob(self) -> bool:
        """Whether the last component is a pattern rather than a name."""
        return has_glob(self.basename)

    def __str__(self) -> str:
        return f"{self.remote}:{self.path}"


def parse_source(text: str, *, pointer: str = "") -> ArtifactSource | RemoteSource:
    """Where an input comes from.

    Raises:
        Invalid: it is neither ``artifact:<id>`` nor ``<remote>:path``.
    """
    name, path = _split(text, pointer)
    if name == _ARTIFACT:
        if not is_uuid7(path):
            raise refused(pointer, "'artifact:' is followed by the id of a stored file")
        return ArtifactSource(path)
    check_remote_name(name, pointer=pointer)
    return RemoteSource(name, check_remote_path(path, pointer=pointer, glob=True))


def parse_destination(text: str, *, pointer: str = "") -> RemoteSource:
    """Where outputs go: ``<remote>:folder``, or ``<remote>:`` for the remote's root.

    Raises:
        Invalid: it is no such thing.
    """
    name, path = _split(text, pointer)
    check_remote_name(name, pointer=pointer)
    path = path.removesuffix("/")
    return RemoteSource(name, check_remote_path(path, pointer=pointer) if path else "")


def _split(text: str, pointer: str) -> tuple[str, str]:
    name, colon, path = text.partition(":")
    if not colon or len(text) > _MAX_TEXT:
        raise refused(pointer, "write 'artifact:<id>' or '<remote>:path'")
    return name, path
