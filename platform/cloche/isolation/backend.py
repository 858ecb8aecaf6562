"""The isolation protocol. Its docstring is the lifecycle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cloche.domain.egress import Endpoint
from cloche.domain.limits import Limits
from cloche.domain.runtimes import RUNC
from cloche.isolation.egress import EgressReport


@dataclass(frozen=True)
class SandboxSpec:
    """All that a caller may ask of sandboxd. No path, no engine option: only values that are validated again on its side."""

    job_id: str
    attempt: int
    bundle: str  # SHA-256 of the plugin's frozen files, 64 hex digits
    wheels: str | None  # SHA-256 of its unpacked wheels' lock, or None
    limits: Limits
    lease_until: int  # ms since the epoch, written into the label
    image: str | None = None  # config digest of the plugin's own image, with
    command: tuple[str, ...] | None = None  # what is run in it: a program's absolute path and its arguments
    warm: bool = False  # these are the plugin version's own limits: one made beforehand serves, and more may be kept
    priority: int = 5  # 0 to 9: who gets a warm one first
    egress: bool = False  # the network profile: whether `open_egress` may be asked for it
    runtime: str = RUNC  # what the plugin asks for; sandboxd's policy decides
    level: str = "container"  # or "namespace", where a tenant is needed
    tenant: str | None = None  # UUID; two tenants' jobs never share a container
    preload: tuple[
        str, ...
    ] = ()  # at level "namespace": modules of its wheels that a slot imports once for all its cells
    secrets: bool = False  # whether there is a place for secrets in it; what they are sandboxd never sees
    sensitive: bool = False  # then gVisor where it is proven, whatever the plugin asks for; never level namespace


@dataclass(frozen=True)
class CollectedFile:
    """A regular file the job left in ``out/``: relative POSIX path, bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class Remains:
    """What is left of a sandbox that is dead.

    ``usage``: ``cpu_ms``, ``memory_peak`` (bytes), ``oom_kills``, ``pids_denied`` (forks refused), ``pids_peak`` (where the kernel
    keeps it, or refused), ``output_bytes`` and
    ``output_files`` (collected), ``output_used`` (bytes) and ``output_inodes`` (what ``out/`` held), ``output_full`` and
    ``output_inodes_full`` (1: no room was left), ``output_over`` and ``output_files_over`` (1: a file was left out for that limit),
    ``locks_over`` (ended for its locks on files: how many had been counted).
    Keys that could not be read are absent.
    ``egress``: the job's connections; None where it had no egress.
    ``refused``: files not collected, each with the reason (``"not a regular file"``, …).
    """

    exit_code: int | None
    oom_killed: bool
    usage: Mapping[str, int] = field(default_factory=dict)
    files: tuple[CollectedFile, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    egress: EgressReport | None = None
    folder: Path | None = None  # where sandboxd copied the files; the worker owns it until destroy


class Channel(Protocol):
    """Frames to and from one guest. Used by one thread; ``close`` may be called from any and more than once."""

    def send(self, frame: Mapping[str, Any], keep_on: Callable[[], bool] = lambda: True) -> bool:
        """Send one frame; True when the guest's end has taken all of it.

        ``keep_on`` is asked about ten times a second while the guest does not read. Once it says no this answers False; half a frame
        may have gone out, and nothing can be sent any more.

        Raises:
            PluginFailure: the guest is gone, or has not read for too long (``plugin_crashed``).
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
    runtime: str  # what it runs on; may be stronger than what was asked
    level: str  # the one it got: "namespace" only where that was asked for and can be had
    channel: Channel
    start: str  # "warm": made before it was asked for; "cold": for this job
    why: str | None  # of a cold start: why no warm one served; of level "container" where "namespace" was asked: why
    runtime_why: str | None  # of a sensitive job: why it runs on this runtime

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

    def open_egress(self, allow: Sequence[Endpoint]) -> None:
        """Let it reach these endpoints, and nothing else, until it is killed. Once, after ``ready`` and before the job is sent.

        Raises:
            PlatformFailure: ``egress_unavailable``: the egress proxy does not answer; ``platform_failed``: it was not made for egress, has it
                already, or an endpoint is malformed.
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
    """Makes sandboxes: ``create`` → (``open_egress``) → ``channel.send(job)`` → ``channel.receive()``… → ``finish`` → ``destroy``.

    Between ``create`` and ``finish``: ``usage`` and ``resize``, at any time, from any thread.

    ``create`` returns with the container started and its guest reading; files may be put into ``in_folder`` until the job frame is sent.
    ``destroy`` belongs in a ``finally``. ``close`` kills every sandbox this caller made. All methods may be called from any thread.
    """

    def create(self, spec: SandboxSpec) -> Sandbox:
        """
        Raises:
            PlatformFailure: ``engine_unavailable`` (no engine, no image, no room) or ``bundle_unavailable`` (the plugin's files, or its own image).
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
