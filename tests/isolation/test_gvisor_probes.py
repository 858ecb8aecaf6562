"""The whole table of hostile probes under gVisor; what `cloche doctor --sandbox --runtime runsc` runs too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche import config
from cloche.domain.runtimes import RUNC, RUNSC
from cloche.errors import EnvironmentProblem
from cloche.sandboxd.probes.bench import Bench, open_bench
from cloche.sandboxd.probes.probe import Probe, Verdict
from cloche.sandboxd.probes.rows_gvisor import DIFFERENT
from cloche.sandboxd.probes.run import Runner
from cloche.sandboxd.probes.table import PROBES, differences, for_runtime
from tests.support.engine import Engine

ROOT = Path(__file__).parents[2]
ROWS = for_runtime(RUNSC)


@pytest.fixture(scope="module")
def runner(gvisor_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    home = tmp_path_factory.mktemp("home")
    with open_bench(config.load(home=home, sandbox={"docker_socket": str(gvisor_engine.socket)}), RUNSC) as bench:
        yield Runner(bench, ROWS)


@pytest.mark.docker
@pytest.mark.parametrize("probe", ROWS, ids=lambda probe: probe.id)
def test_probe(runner: Runner, probe: Probe) -> None:
    finding = runner.judge(probe)
    assert finding.verdict is not Verdict.FAILED, f"{probe.tries}; expected: {probe.expects}; found: {finding.found}"


@pytest.mark.docker
def test_probes_need_a_proof(gvisor_engine: Engine, tmp_path: Path) -> None:
    settings = config.load(home=tmp_path, sandbox={"docker_socket": str(gvisor_engine.socket), "runsc_name": "absent"})
    with pytest.raises(EnvironmentProblem, match="cannot be used on this host: the engine has no runtime absent"):
        _open(settings)


def _open(settings: config.Settings) -> Bench:
    with open_bench(settings, RUNSC) as bench:
        return bench


def test_every_difference_is_of_a_probe_that_exists_and_says_why() -> None:
    assert DIFFERENT.keys() <= {probe.id for probe in PROBES}
    assert all(row.expects and row.why for row in DIFFERENT.values())
    assert for_runtime(RUNC) == PROBES
    assert [probe.id for probe in ROWS] == [probe.id for probe in PROBES]


def test_the_threat_model_shows_the_differences() -> None:
    assert differences() in (ROOT / "docs" / "threat-model.md").read_text()
