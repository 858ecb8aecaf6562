"""A plugin in shell alone, in an image without Python, through the real stack: REST, worker, sandboxd, engine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.stack import Stack, stack
from cloche.config import Settings
from cloche.registry.catalog import load
from cloche.sandboxd.engine import Engine
from tests.support import images
from tests.support.stores import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
WEATHER = ROOT / "examples" / "data" / "seattle-weather.csv"
ABSENT = "sha256:" + "2" * 64

UGLY = """
IFS= read -r job < /job/job.json
kind=${job#*'"kind":"'} kind=${kind%%'"'*}
echo "kind: $kind"
case $kind in
code) exit 7 ;;
signal) kill -ABRT $$ ;;
nothing) exit 0 ;;
nan) echo '{"a": NaN}' > /job/result.json ;;
memory) x=0123456789; while :; do x=$x$x; done ;;
spin) trap '' TERM; while :; do :; done ;;
esac
"""
MANIFEST = """
[plugin]
name = "{name}"
version = "1.0.0"
api = 1
summary = "Misbehaves in shell."
[image]
id = "{image}"
command = ["/bin/sh", "/cloche/plugin/run.sh"]
[params]
type = "object"
properties = {{ kind = {{ type = "string", pattern = "^[a-z]+$" }} }}
[limits]
memory = "48MB"
[retry]
max_retries = 0
"""


def write(folder: Path, name: str, image: str) -> None:
    version = folder / name / "1.0.0"
    version.mkdir(parents=True)
    (version / "plugin.toml").write_text(MANIFEST.format(name=name, image=image))
    (version / "run.sh").write_text(UGLY)


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    with images.loaded() as made:
        yield made


@pytest.fixture(scope="module")
def running(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("plugins")
    images.build.write_plugin(folder, image)
    write(folder, "ugly_shell", image)
    write(folder, "absent_image", ABSENT)
    with stack(plugin_path=str(folder), worker_slots="2", retry_platform_budget="2") as made:
        yield made


def test_it_picks_lines(running: Stack, image: str) -> None:
    uploaded = running.client.post("/files", files={"file": (WEATHER.name, WEATHER.read_bytes())})
    assert uploaded.status_code == 201, uploaded.text
    inputs = [{"from": f"artifact:{uploaded.json()['id']}"}]
    body = {"type": "shell_grep", "payload": {"word": "fog"}, "inputs": inputs}
    job = running.submit(body)
    done = running.finished(job["id"])
    assert (done["status"], done["reason"]) == ("completed", "succeeded"), done
    wanted = [line for line in WEATHER.read_text().splitlines() if "fog" in line]
    assert done["result"] == {"files": 1, "lines": len(WEATHER.read_text().splitlines()), "found": len(wanted)}
    assert done["plugin"]["image"] == image
    assert done["usage"]["memory_peak"] > 0
    output = running.client.get(f"/jobs/{job['id']}/outputs").json()["items"]
    assert [item["path"] for item in output] == [WEATHER.name]
    content = running.client.get(f"/jobs/{job['id']}/outputs/{WEATHER.name}")
    assert content.text.splitlines() == wanted
    assert f"{WEATHER.name}: {len(wanted)}" in running.client.get(f"/jobs/{job['id']}/logs").text


@pytest.mark.parametrize(
    ("kind", "reason", "says", "body"),
    [
        ("code", "plugin_failed", "exit code 7", {}),
        ("signal", "plugin_crashed", "SIGABRT", {}),
        ("nothing", "no_result", "no /job/result.json", {}),
        ("nan", "bad_result", "NaN", {}),
        ("memory", "out_of_memory", "48 MB", {}),
        ("spin", "timed_out", "1 s", {"timeout": "1s"}),
    ],
)
def test_its_failures_by_name(running: Stack, kind: str, reason: str, says: str, body: dict[str, Any]) -> None:
    job = running.submit({"type": "ugly_shell", "payload": {"kind": kind}, **body})
    done = running.finished(job["id"])
    assert (done["status"], done["reason"]) == ("failed", reason), done
    assert says in done["error"]["message"]


def test_cancel(running: Stack) -> None:
    job = running.submit({"type": "ugly_shell", "payload": {"kind": "spin"}})

    until(lambda: "kind: spin" in running.client.get(f"/jobs/{job['id']}/logs").text, 30, "the command runs")
    assert running.client.post(f"/jobs/{job['id']}/cancel").status_code in (200, 202)
    assert running.finished(job["id"])["status"] == "canceled"


def test_an_image_that_is_not_on_the_host(running: Stack) -> None:
    """The platform's failure, tried a bounded number of times, and it says which image and what to do."""
    done = running.finished(running.submit({"type": "absent_image"})["id"])
    assert (done["status"], done["reason"]) == ("failed", "bundle_unavailable"), done
    assert ABSENT in done["error"]["message"]
    assert "docker load" in done["error"]["message"]


def test_the_plugin_says_which_image_it_brings(running: Stack, image: str) -> None:
    shown = running.client.get("/plugins/shell_grep").json()
    assert shown["configuration"]["image"] == image
    assert shown["configuration"]["command"] == ["/bin/sh", "/cloche/plugin/run.sh"]


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cloche", "image", "check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_line_says_which_rule_fails(image: str) -> None:
    good = check(image)
    assert good.returncode == 0, good.stderr
    assert "✗" not in good.stdout
    absent = check(ABSENT)
    assert absent.returncode == 1
    assert "docker load" in absent.stdout
    with images.loaded(None, Labels={}) as unlabelled:
        found = check(unlabelled, "-o", "json")
        assert found.returncode == 1
        assert '"usable": false' in found.stdout
        assert "org.cloche.plugin-image=1" in found.stdout


def test_the_example_is_made_by_one_command(tmp_path: Path) -> None:
    engine = Engine(Settings().sandbox.docker_socket)
    was_there = engine.image(images.build.TAG) is not None
    try:
        command = [sys.executable, str(images.EXAMPLE / "build.py"), str(tmp_path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        bundle = load(tmp_path / "shell_grep" / "1.0.0")
        assert bundle.manifest.image is not None
        assert bundle.manifest.image in said
        assert check(bundle.manifest.image).returncode == 0
    finally:
        if not was_there:
            engine.remove_image(images.build.TAG)
        engine.close()
