"""A job's files from the worker's side: its frozen bundle, its inputs, its outputs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select

from cloche.db import tables as t
from cloche.db.engine import Database
from cloche.domain.jobs import ClaimedJob, OutputFile
from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import NotFound, PlatformFailure, PluginFailure
from cloche.isolation.backend import Remains
from cloche.registry.manifest import Manifest
from cloche.registry.store import BundleStore
from cloche.staging.accept import matches
from cloche.staging.stager import ArtifactRef, StagedFile, Stager

Stop = Callable[[], bool]


class JobFiles:
    """Shared by a worker's slots. ``close`` removes what this worker kept for itself; safe to call twice."""

    def __init__(
        self, db: Database, bundles: BundleStore, image_python: Callable[[], str], stager: Stager, work: Path
    ) -> None:
        self._db = db
        self._bundles = bundles
        self._image_python = image_python
        self._stager = stager
        self._work = work

    def bundle(self, job: ClaimedJob) -> tuple[str, str | None]:
        """Digests of the job's frozen bundle and of its unpacked wheels, both made ready on this host.

        Raises:
            PlatformFailure: ``bundle_unavailable``: this host does not have those bytes and cannot get them.
        """
        bundle = self._bundles.bundle(job.type, job.plugin_version, job.plugin_digest)
        if bundle is None:
            message = f"the files of {job.type} {job.plugin_version} ({job.plugin_digest[:12]}) are not on this host"
            raise PlatformFailure(Reason.BUNDLE_UNAVAILABLE, message)
        self._bundles.freeze(bundle)
        wheels = self._bundles.wheels(bundle, self._image_python()) if bundle.wheels else None
        return bundle.digest, wheels.name if wheels is not None else None

    def own_image(self, job: ClaimedJob) -> tuple[str, tuple[str, ...]] | None:
        """Digest of the image that the job's plugin brings, and the command to run in it; None for a Python plugin."""
        bundle = self._bundles.bundle(job.type, job.plugin_version, job.plugin_digest)
        if bundle is None or bundle.manifest.image is None or bundle.manifest.command is None:
            return None
        return bundle.manifest.image, bundle.manifest.command

    def limits(self, job: ClaimedJob) -> Limits | None:
        """The limits of the job's plugin version itself; None when its files are not on this host."""
        bundle = self._bundles.bundle(job.type, job.plugin_version, job.plugin_digest)
        return None if bundle is None else bundle.manifest.limits

    def runtime(self, job: ClaimedJob) -> str:
        """The runtime that the job's plugin asks for.

        Raises:
            PlatformFailure: ``bundle_unavailable``.
        """
        return self.manifest(job).runtime

    def isolation(self, job: ClaimedJob) -> str:
        """The level that the job's plugin asks for; sandboxd decides whether it can be had.

        Raises:
            PlatformFailure: ``bundle_unavailable``.
        """
        return self.manifest(job).isolation

    def preload(self, job: ClaimedJob) -> tuple[str, ...]:
        """Modules that the job's plugin wants imported before its cells are made.

        Raises:
            PlatformFailure: ``bundle_unavailable``.
        """
        return self.manifest(job).preload

    def manifest(self, job: ClaimedJob) -> Manifest:
        """
        Raises:
            PlatformFailure: ``bundle_unavailable``.
        """
        bundle = self._bundles.bundle(job.type, job.plugin_version, job.plugin_digest)
        if bundle is None:
            raise PlatformFailure(Reason.BUNDLE_UNAVAILABLE, f"the files of {job.type} are not on this host")
        return bundle.manifest

    def stage_in(self, job: ClaimedJob, folder: Path, stop: Stop) -> list[StagedFile]:
        """See :meth:`cloche.staging.stager.Stager.stage_in`. What a remote's pattern found is held to the plugin's manifest here."""
        staged = self._stager.stage_in(
            job, folder, resolve=lambda artifact_id: self._artifact(job, artifact_id), stop=stop
        )
        bundle = self._bundles.bundle(job.type, job.plugin_version, job.plugin_digest)
        if bundle is not None:
            check_inputs(staged, bundle.manifest)
        return staged

    def stage_out(self, job: ClaimedJob, remains: Remains, stop: Stop) -> list[OutputFile]:
        """See :meth:`cloche.staging.stager.Stager.stage_out`."""
        return self._stager.stage_out(job, remains, stop=stop)

    def close(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)

    def _artifact(self, job: ClaimedJob, artifact_id: str) -> ArtifactRef:
        file = t.artifact
        mine = (file.c.id == artifact_id) & (file.c.tenant_id == job.tenant_id)
        query = select(file.c.sha256, file.c.size, file.c.name).where(mine)
        row = self._db.read(lambda c: c.execute(query).one_or_none())
        if row is None:
            raise NotFound("the file was removed after the job was accepted")
        return ArtifactRef(row.sha256, row.size, row.name)


def check_inputs(staged: list[StagedFile], manifest: Manifest) -> None:
    """
    Raises:
        PluginFailure: ``input_unavailable``: too few or too many files, or one of a kind the plugin does not take.
    """
    most = manifest.inputs_max
    if len(staged) < manifest.inputs_min or (most is not None and len(staged) > most):
        wanted = f"{manifest.inputs_min} to {most}" if most is not None else f"at least {manifest.inputs_min}"
        raise PluginFailure(Reason.INPUT_UNAVAILABLE, f"{len(staged)} files were found; {manifest.name} takes {wanted}")
    for file in staged:
        if not matches(manifest.accept, file.path):
            accepted = ", ".join(manifest.accept)
            raise PluginFailure(
                Reason.INPUT_UNAVAILABLE, f"{file.path!a} is not what {manifest.name} accepts: {accepted}"
            )
