"""The isolation protocol. Its docstring is the lifecycle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cloche.domain.limits import Limits


@dataclass(frozen=True)
class SandboxSpec:
    """All that a caller may ask of sandboxd. No path, no engine option: only values that are validated again on its side."""

    job_id: str
    attempt: int
    bundle: str  # SHA-256 of the plugin's frozen files, 64 hex digits
    wheels: str | None  # SHA-256 of its unpacked wheels' lock, or None
    limits: Limits
    lease_until: int  # ms since the epoch, written into the label
    level: str = "container"  # or "namespace", where a tenant is needed
    tenant: str | None = None  # UUID; two tenants' jobs never share a container


@dataclass(frozen=True)
class CollectedFile:
    """A regular file the job left in ``out/``: relative POSIX path, bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class Remains:
    """What is left of a sandbox that is dead.

    ``usage``: ``cpu_ms``, ``memory_peak`` (bytes), ``oom_kills``, ``pids_denied`` (forks refused), ``output_bytes`` and
    ``output_files`` (collected), ``output_used`` (bytes) and ``output_inodes`` (what ``out/`` held), ``output_full`` and
    ``output_inodes_full`` (1: no room was left), ``output_over`` and ``output_files_over`` (1: a file was left out for that limit).
    Keys that could not be read are absent.
    ``refused``: files not collected, each with the reason (``"not a regular file"``, …).
    """

    exit_code: int | None
    oom_killed: bool
    usage: Mapping[str, int] = field(default_factory=dict)
    files: tuple[CollectedFile, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    folder: Path | None = None  # where sandboxd copied the files; the worker owns it until destroy


class Channel(Protocol):
    """Frames to and from one guest. Used by one thread; ``close`` may be called from any and more than once."""

    def send(self, frame: Mapping[str, Any]) -> None:
        """Send one frame.

        Raises:
            PluginFailure: the guest is gone (``plugin_crashed``).
        """
        ...

    def receive(self, timeout_s: float) -> Mapping[str, Any] | None:
        """The next frame; None after ``timeout_s`` seconds without a whole one.

        Raises:
            EOFError: the guest closed its side or died.
            PluginFailure: the guest broke the protocol (``bad_result``).
        """
        ...

    def close(self) -> None: ...


class Sandbox(Protocol):
    """One sandbox of one attempt. ``in_folder`` is the host's side of ``/job/in``, writable by the worker."""

    id: str
    in_folder: Path
    image: str  # config digest of the image it runs
    level: str  # the one it got: "namespace" only where that was asked for and can be had
    channel: Channel

    def kill(self) -> None:
        """SIGKILL everything in it. Returns once sent; safe from any thread, at any time, more than once."""
        ...

    def usage(self) -> Mapping[str, int]:
        """What it used so far, as :class:`Remains` names it; empty once it is dead.

        Raises:
            PlatformFailure: there is no such sandbox any more, or nobody answers.
        """
        ...

    def resize(self, memory: int, output: int) -> None:
        """Other limits for a running sandbox, both in bytes: its memory (without its tmpfs), and ``out/`` (at most what it was made with).

        Either both hold afterwards or the former ones still do.

        Raises:
            PlatformFailure: ``platform_failed`` for values that are not allowed, or less than is in use; ``engine_unavailable``.
        """
        ...

    def finish(self) -> Remains:
        """Read usage, kill, wait until dead, collect ``out/``. Once.

        Raises:
            PlatformFailure: the engine did not answer (``engine_unavailable``).
        """
        ...

    def destroy(self) -> None:
        """Remove container, mounts and folders. Idempotent, bounded in time, never raises for what is already gone."""
        ...


class Backend(Protocol):
    """Makes sandboxes: ``create`` → ``channel.send(job)`` → ``channel.receive()``… → ``finish`` → ``destroy``.

    Between ``create`` and ``finish``: ``usage`` and ``resize``, at any time, from any thread.

    ``create`` returns with the container started and its guest reading; files may be put into ``in_folder`` until the job frame is sent.
    ``destroy`` belongs in a ``finally``. ``close`` kills every sandbox this caller made. All methods may be called from any thread.
    """

    def create(self, spec: SandboxSpec) -> Sandbox:
        """
        Raises:
            PlatformFailure: ``engine_unavailable`` (no engine, no image, no room) or ``bundle_unavailable``.
        """
        ...

    def image_python(self) -> str:
        """The ``X.Y`` of the sandbox image's Python: wheels are unpacked for it.

        Raises:
            PlatformFailure: ``engine_unavailable``: there is no image.
        """
        ...

    def health(self) -> str | None:
        """None when jobs can be run, else one sentence that says why not."""
        ...

    def close(self) -> None: ...
