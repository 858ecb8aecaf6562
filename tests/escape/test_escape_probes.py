"""The table of hostile probes, one test each; what `cloche doctor --sandbox` runs too."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloche import config
from cloche.cli.commands import doctor
from cloche.sandboxd import image_parts
from cloche.sandboxd.probes import scenes
from cloche.sandboxd.probes.bench import Bench, open_bench
from cloche.sandboxd.probes.probe import Probe, Verdict
from cloche.sandboxd.probes.run import Runner, run_all
from cloche.sandboxd.probes.table import PROBES, differences_of_cells, for_level, markdown, markdown_of_cells

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with open_bench(config.load(home=tmp_path_factory.mktemp("home"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def runner(bench: Bench) -> Runner:
    return Runner(bench)


@pytest.mark.docker
@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.id)
def test_probe(runner: Runner, probe: Probe) -> None:
    finding = runner.judge(probe)
    assert finding.verdict is not Verdict.FAILED, f"{probe.tries}; expected: {probe.expects}; found: {finding.found}"


@pytest.mark.docker
def test_a_probe_that_does_not_hold_fails(runner: Runner, bench: Bench) -> None:
    """The verdicts are not made of yes: rows that expect the opposite, break or speak of nothing all fail."""
    rows = {
        "opposite": Probe("opposite", "self", "", "", lambda facts: facts["last"] == "error", scenes.job("tick")),
        "other facts": Probe("other", "self", "", "", lambda facts: facts["no such key"], scenes.job("tick")),
        "no such act": Probe("absent", "self", "", "", lambda facts: facts["value"] == 90, scenes.job("no_such_act")),
        "no such wall": Probe("no_such_wall", "self", "", "", lambda facts: True),
        "left behind": Probe("left", "self", "", "", lambda facts: True, _leaves),
    }
    found = {name: runner.judge(row) for name, row in rows.items()}
    assert {name for name, finding in found.items() if finding.verdict is not Verdict.FAILED} == set()
    assert all(finding.found for finding in found.values())


def _leaves(bench: Bench) -> None:
    """A process of the sandbox's user that outlives it."""
    process = None
    try:
        with bench.live("deaf") as live:
            process = subprocess.Popen(["sleep", "60"], user=live.running.uid)
    finally:
        assert process is not None
        process.kill()
        process.wait()


@pytest.mark.docker
def test_walls_are_each_tried_in_a_process_of_their_own(bench: Bench) -> None:
    found = scenes.walls(["capabilities", "not_there", "user"])(bench)
    assert found["not_there"] == {"raised": "no such probe"}
    assert found["capabilities"]["CapEff"] == "0" * 16
    assert found["user"]["uids"][0] >= 1_000


def test_the_table_is_whole() -> None:
    ids = [probe.id for probe in PROBES]
    assert len(ids) == len(set(ids)) >= 65
    assert all(probe.tries and probe.expects and probe.group for probe in PROBES)
    sources = "".join(path.read_text() for path in image_parts.probes_folder().glob("*.py"))
    groups = re.findall(r"^    \"(\w+)\": \{\"", sources, re.MULTILINE) + re.findall(r"\(\"(af_\w+)\"", sources)
    walls = set(re.findall(r"@wall\ndef (\w+)", sources)) | set(groups)
    assert walls == {probe.id for probe in for_level("namespace") if probe.observe is None}
    assert {probe.id for probe in for_level("namespace")} > set(ids)


def test_probes_only_name_addresses_that_lead_nowhere() -> None:
    sources = "".join(path.read_text() for path in image_parts.probes_folder().glob("*.py"))
    addresses = set(re.findall(r"\b\d{1,3}(?:\.\d{1,3}){3}\b", sources))
    assert addresses == {"127.0.0.1", "169.254.169.254", "192.0.2.1", "192.0.2.9", "233.252.0.1"}


def test_the_threat_model_shows_this_table() -> None:
    shown = (ROOT / "docs" / "threat-model.md").read_text()
    assert markdown() in shown
    assert differences_of_cells() in shown
    assert markdown_of_cells() in shown


_NOT_HERE = Probe(
    "not_here", "self", "a", "b", lambda facts: False, lambda bench: {"not_applicable": "no such hardware"}
)
_FALSE = Probe("false", "self", "a", "b", lambda facts: False, lambda bench: {"seen": "\x1b[2J"})


@pytest.mark.docker
@pytest.mark.parametrize(("more", "code"), [((), 0), ((_NOT_HERE,), 0), ((_NOT_HERE, _FALSE), 1)])
def test_the_doctors_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: tuple[Probe, ...], code: int
) -> None:
    rows = (*PROBES[:2], *more)
    monkeypatch.setattr(doctor, "run_all", lambda bench, _probes: run_all(bench, rows))
    for form in ("table", "json"):
        done = CliRunner().invoke(
            doctor.doctor, ["--sandbox", "--home", str(tmp_path), "-o", form], standalone_mode=False
        )
        assert done.return_value == code, done.output
        assert f"{2} held, {code} FAILED, {len(more) - code} not applicable" in done.stderr
        if form == "json":
            found = {row["id"]: (row["verdict"], row["found"]) for row in json.loads(done.stdout)["probes"]}
            assert list(found) == [probe.id for probe in rows]
            assert all(verdict == "held" or why for verdict, why in found.values())
        else:
            lines = done.stdout.splitlines()
            assert len(lines) == len(rows)
            assert lines[0].startswith("held  ")
            assert "\x1b" not in done.stdout
            assert not code or lines[-1].startswith("FAILED  ")
    assert list(tmp_path.iterdir()) == []
