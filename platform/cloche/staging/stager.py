"""Files into and out of one attempt of a job.

In: artifacts are linked, files of remotes fetched by rclone into a folder that only we write, verified, and moved
to where the sandbox reads them. Out: regular files that sandboxd collected from a dead sandbox go to the artifact
store or to a remote, under a temporary name until they are whole.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cloche.domain.jobs import ClaimedJob, OutputFile
from cloche.staging.artifacts import ArtifactStore
from cloche.staging.inputs import ArtifactRef, Caps, Inputs, Resolve, StagedFile
from cloche.staging.outputs import Leavings, Outputs
from cloche.staging.rclone import RcloneDaemon
from cloche.staging.transfer import Lookup, RemoteFiles, never

__all__ = ["ArtifactRef", "Caps", "StagedFile", "Stager"]


class Stager:
    """Stages files for a worker's jobs; may be used by all its threads at once.

    ``lookup(tenant_id, name)`` gives a remote's decrypted configuration, or raises :class:`cloche.errors.NotFound`.
    ``work`` is a folder of the worker's own; on the file system of the sandboxes' folders, files are moved instead
    of copied.
    """

    def __init__(
        self, store: ArtifactStore, rclone: RcloneDaemon, lookup: Lookup, *, work: Path, caps: Caps | None = None
    ) -> None:
        self._store = store
        self._rclone = rclone
        self._lookup = lookup
        self._work = work
        self._caps = caps or Caps()
        work.mkdir(mode=0o700, parents=True, exist_ok=True)

    def stage_in(
        self, job: ClaimedJob, folder: Path, *, resolve: Resolve, stop: Callable[[], bool] = never
    ) -> list[StagedFile]:
        """Put the job's inputs into ``folder`` (the host's side of ``/job/in``), each a read-only file, in the
        order they were asked for.

        Nothing is put there unless every input exists and all of them fit the caps. ``resolve`` finds an artifact
        of the job's tenant by id.

        Raises:
            PluginFailure: an input is missing, refused by its remote, too large, or damaged on the way
            (``input_unavailable``). PlatformFailure: a remote (``remote_unavailable``) or our own disk
            (``storage_failed``) failed. Stopped: ``stop`` said yes.
        """
        if not job.inputs:
            return []
        with self._scratch(job) as scratch:
            files = RemoteFiles(self._rclone, self._lookup, job.tenant_id, stop)
            return Inputs(self._store.tenant(job.tenant_id), files, self._caps, resolve).stage(job, folder, scratch)

    def stage_out(self, job: ClaimedJob, remains: Leavings, *, stop: Callable[[], bool] = never) -> list[OutputFile]:
        """Store what the job wrote. A file that matches an ``outputs`` rule with ``to`` goes there alone, every
        other one to the artifact store.

        The files are taken from ``remains.folder``. Each returned file with an ``artifact_id`` still needs its row.

        Raises:
            PluginFailure: a remote refused a file, or its name cannot be stored there (``output_rejected``).
            PlatformFailure: a remote (``remote_unavailable``) or our own disk (``storage_failed``) failed.
            Stopped: ``stop`` said yes.
        """
        if remains.folder is None or not remains.files:
            return []
        with self._scratch(job) as scratch:
            files = RemoteFiles(self._rclone, self._lookup, job.tenant_id, stop)
            return Outputs(self._store.tenant(job.tenant_id), files).stage(job, remains.folder, remains.files, scratch)

    def clean(self, alive: Sequence[str] = ()) -> int:
        """Remove what attempts of other jobs than ``alive`` (ids) left in ``work``. Call it before the first job.
        Returns how many went."""
        gone = 0
        for path in self._work.iterdir():
            if path.name.startswith("job-") and not any(path.name.startswith(f"job-{job_id}-") for job_id in alive):
                shutil.rmtree(path)
                gone += 1
        return gone

    @contextlib.contextmanager
    def _scratch(self, job: ClaimedJob) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix=f"job-{job.id}-{job.attempt}-", dir=self._work))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
