"""The table of hostile probes at level ``namespace``; what `cloche doctor --sandbox --level namespace` runs too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloche import config
from cloche.sandboxd.probes.bench import Bench, open_bench
from cloche.sandboxd.probes.probe import Probe, Verdict
from cloche.sandboxd.probes.run import Runner
from cloche.sandboxd.probes.table import for_level

ROWS = for_level("namespace")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with open_bench(config.load(home=tmp_path_factory.mktemp("home")), level="namespace") as opened:
        yield opened


@pytest.fixture(scope="module")
def runner(bench: Bench) -> Runner:
    return Runner(bench, ROWS)


@pytest.mark.docker
@pytest.mark.timeout(900)  # one of them is a thousand jobs
@pytest.mark.parametrize("probe", ROWS, ids=lambda probe: probe.id)
def test_probe(runner: Runner, probe: Probe) -> None:
    finding = runner.judge(probe)
    assert finding.verdict is not Verdict.FAILED, f"{probe.tries}; expected: {probe.expects}; found: {finding.found}"
