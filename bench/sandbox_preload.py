"""Level ``namespace`` with numpy: imported once for each slot, or by each cell. Both in one sandboxd, one after the other.

numpy comes from the index that pip is configured with, by the hashes in ``plugins/numeric/1.0.0/wheels.lock``, into the bench's own home.
`python -m bench.sandbox_preload [--jobs N]` prints its rows as JSON; :func:`rows` is for `./run bench sandbox`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from bench.sandbox_cells import Load, Row, plain, running, timed
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.client import SandboxdBackend
from cloche.registry import catalog, wheels

_SOURCE = Path(__file__).parent / "plugins" / "numeric" / "1.0.0"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"  # the sandbox image is made from this one's


def rows(jobs: int = 200, clients: int = 4) -> list[Row]:
    """Figures in milliseconds and jobs a second, and the ratios."""
    bundle = catalog.load(_SOURCE)
    made: list[str] = []

    def prepare(home: Path) -> None:
        shutil.copytree(_SOURCE, home / "bundles" / bundle.digest)
        made.append(wheels.fetch(_SOURCE, _PYTHON, home).name)

    with running(prepare=prepare) as (backend, _):
        spec = replace(plain(), bundle=bundle.digest, wheels=made[0], limits=bundle.manifest.limits)
        beforehand = _measured(backend, replace(spec, preload=bundle.manifest.preload), jobs, clients, "preloaded")
        # Its files are not compiled beforehand, so that each import takes a second or more of CPU: a tenth of the jobs is enough.
        without = _measured(backend, spec, max(clients, jobs // 10), clients, "imported by each cell")
    ratios = {
        "a whole job": without[0]["median_ms"] / beforehand[0]["median_ms"],
        "jobs a second": beforehand[1]["jobs_per_s"] / without[1]["jobs_per_s"],
    }
    return [
        *beforehand,
        *without,
        *({"what": f"ratio numpy preloaded / not, {what}", "ratio": round(ratio, 1)} for what, ratio in ratios.items()),
    ]


def _measured(backend: SandboxdBackend, spec: SandboxSpec, jobs: int, clients: int, how: str) -> list[Row]:
    """One after the other without a pause, then several at once."""
    Load(backend, spec).many(clients, clients)
    alone, together = Load(backend, spec), Load(backend, spec)
    for _ in range(max(5, jobs // 4)):
        alone.one()
    seconds = together.many(jobs, clients)
    return [
        timed(f"numpy {how}: a whole job, one after the other", alone.phases["all"]),
        {"what": f"numpy {how}: {clients} clients, {jobs} jobs", "jobs_per_s": round(jobs / seconds, 2)},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    given = parser.parse_args()
    for row in rows(given.jobs):
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
