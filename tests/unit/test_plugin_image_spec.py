"""A plugin's own image in the manifest, on the wire and in the container's configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloche.domain.limits import CEILINGS, FLOORS, Limits
from cloche.isolation import plugin_image
from cloche.isolation.spec import BadSpec, container_config, memory_limit
from cloche.isolation.spec_json import parse_spec, spec_to_json
from cloche.registry.catalog import load
from cloche.registry.manifest import ManifestError, parse
from tests.support.plugins import manifest_text
from tests.unit.test_isolation_spec import FOLDERS, PLACE, SPEC

ID = "sha256:" + "d" * 64
COMMAND = ("/bin/sh", "/cloche/plugin/run.sh")
OWN = replace(SPEC, wheels=None, image=ID, command=COMMAND)
OWN_PLACE = replace(PLACE, image=ID, folders=replace(FOLDERS, wheels=None, runtime=Path("/s/runtime")))
IMAGE = f'[image]\nid = "{ID}"\ncommand = ["/bin/sh", "/cloche/plugin/run.sh"]\n'

BAD_COMMANDS: list[Any] = [
    [],
    "/bin/sh -c true",
    ["sh"],
    ["bin/sh"],
    ["/"],
    ["/bin/../sh"],
    ["//bin/sh"],
    ["/bin/./sh"],
    ["/bin/sh/"],
    ["/bin/sh", 1],
    ["/bin/sh", None],
    ["/bin/sh", ["-c"]],
    ["/bin/sh", "a\0b"],
    ["/bin/sh", "a\nb"],
    ["/bin/sh", "\x1b[2J"],
    ["/bin/sh", "\x85"],
    ["/bin/sh", "\ud800"],
    ["/bin/sh", "x" * 1025],
    ["/bin/sh", "é" * 513],
    ["/bin/sh"] * 33,
]


def test_a_manifest_with_an_image() -> None:
    manifest = parse(manifest_text(more=IMAGE))
    assert (manifest.image, manifest.command) == (ID, COMMAND)


def test_a_manifest_without() -> None:
    manifest = parse(manifest_text())
    assert (manifest.image, manifest.command) == (None, None)


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (f'[image]\nid = "{ID}"\n', "image.command"),
        ('[image]\ncommand = ["/bin/sh"]\n', "image.id"),
        ('[image]\nid = "busybox:1"\ncommand = ["/bin/sh"]\n', "image.id"),
        (f'[image]\nid = "{ID.upper()}"\ncommand = ["/bin/sh"]\n', "image.id"),
        (f'[image]\nid = "{ID}a"\ncommand = ["/bin/sh"]\n', "image.id"),
        (f'[image]\nid = "{ID}\\n"\ncommand = ["/bin/sh"]\n', "image.id"),
        (f'[image]\nid = "{ID}"\ncommand = "/bin/sh"\n', "image.command"),
        (f'[image]\nid = "{ID}"\ncommand = ["/bin/sh", 1]\n', "image.command"),
        (f'[image]\nid = "{ID}"\ncommand = ["sh"]\n', "image.command"),
        (f"{IMAGE}pull = true\n", "image.pull"),
        (f'entry = "plugin"\n{IMAGE}', "plugin.entry"),
        (f'{IMAGE}[requires]\npython = ["pillow==13.0.0"]\n', "requires.python"),
        (f"{IMAGE}[requires]\npython = []\n", "requires.python"),
        (f'{IMAGE}[sandbox]\nruntime = "runsc"\n', "sandbox.runtime"),
        ("image = 1\n", "image"),
    ],
)
def test_a_manifest_that_is_refused(more: str, key: str) -> None:
    text = f"{more}{manifest_text()}" if key == "image" else manifest_text(more=more)
    with pytest.raises(ManifestError) as caught:
        parse(text)
    assert caught.value.key == key


def test_a_bundle_needs_no_python(tmp_path: Path) -> None:
    folder = tmp_path / "sample" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "plugin.toml").write_text(manifest_text(more=IMAGE))
    assert load(folder).manifest.image == ID
    (folder / "plugin.toml").write_text(manifest_text())
    with pytest.raises(ManifestError, match=r"no plugin\.py"):
        load(folder)


@pytest.mark.parametrize("command", BAD_COMMANDS)
def test_bad_commands(command: Any) -> None:
    assert plugin_image.command_problem(command)
    with pytest.raises(BadSpec, match="command"):
        parse_spec({**spec_to_json(OWN), "command": command})


@pytest.mark.parametrize(
    "command", [["/a"], ["/bin/sh", ""], ["/bin/sh", "-c", "echo $(id) é"], ["/x"] + ["y" * 1024] * 31]
)
def test_good_commands(command: list[str]) -> None:
    assert plugin_image.command_problem(command) is None


def test_over_the_wire_and_back() -> None:
    assert parse_spec(json.loads(json.dumps(spec_to_json(OWN)))) == OWN


@pytest.mark.parametrize(
    "change",
    [
        {"runtime": "runsc"},
        {"image": None},
        {"command": None},
        {"image": "busybox:1"},
        {"image": ID + "\n"},
        {"image": 7},
        {"wheels": "b" * 64},
    ],
)
def test_a_spec_that_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadSpec):
        parse_spec({**spec_to_json(OWN), **change})


@pytest.mark.parametrize(
    "place",
    [
        replace(OWN_PLACE, image="sha256:" + "c" * 64),
        replace(OWN_PLACE, folders=replace(OWN_PLACE.folders, runtime=None)),
    ],
)
def test_a_placement_that_does_not_belong_to_it(place: Any) -> None:
    with pytest.raises(BadSpec):
        container_config(OWN, place)


def test_the_container_differs_from_an_ordinary_one_only_where_it_must() -> None:
    ordinary = container_config(replace(SPEC, wheels=None), replace(PLACE, folders=replace(FOLDERS, wheels=None)))
    own = container_config(OWN, OWN_PLACE)
    added = {key: own.pop(key) for key in ("Entrypoint", "Cmd", "Env", "WorkingDir")}
    assert own.pop("Image") == ID
    assert ordinary.pop("Image") != ID
    job = plugin_image.job_files(Limits())
    changed = own["HostConfig"]
    assert changed["Tmpfs"].pop("/job") == (
        f"rw,noexec,nosuid,nodev,size={job},nr_inodes=96,uid=210007,gid=210007,mode=0700"
    )
    assert changed["Mounts"].pop()["Target"] == "/cloche/runtime"
    for key in ("Memory", "MemorySwap"):
        assert changed.pop(key) == ordinary["HostConfig"].pop(key) + job
    assert own == ordinary

    assert added["Cmd"] == []
    assert added["WorkingDir"] == "/"
    *start, order = added["Entrypoint"]
    assert start == [
        "/cloche/runtime/ld.so",
        *("--inhibit-cache", "--library-path", "/cloche/runtime/libs"),
        *("/cloche/runtime/usr/local/bin/python3", "-I", "-S", "-B", "-X", "utf8", "/cloche/runtime/opt/cloche"),
    ]
    assert json.loads(order)["command"] == list(COMMAND)
    assert json.loads(order)["environment"]["HOME"] == "/tmp"


def test_nothing_of_the_images_environment_reaches_process_1() -> None:
    theirs = {"LD_PRELOAD": "/evil.so", "PYTHONPATH": "/evil", "GLIBC_TUNABLES": "x", "PATH": "/evil", "LC_ALL": "evil"}
    config = container_config(OWN, replace(OWN_PLACE, image_environment=theirs))
    given = [entry for entry in config["Env"] if "=" in entry]
    assert given == [f"{name}={value}" for name, value in plugin_image.ENVIRONMENT.items()]
    # A name without a value takes the image's variable away; a name that is given already replaces it.
    assert {entry for entry in config["Env"] if "=" not in entry} == {"LD_PRELOAD", "PYTHONPATH", "GLIBC_TUNABLES"}
    assert theirs.items() <= json.loads(config["Entrypoint"][-1])["environment"].items()


@pytest.mark.parametrize("limits", [CEILINGS, FLOORS])
def test_a_job_and_a_result_always_have_room(limits: Limits) -> None:
    config = container_config(replace(OWN, limits=limits), OWN_PLACE)["HostConfig"]
    sizes = {item["Name"]: item["Hard"] for item in config["Ulimits"]}
    assert plugin_image.job_files(limits) >= (8 << 20) + limits.result
    assert sizes["fsize"] >= plugin_image.job_files(limits)
    assert (
        config["Memory"]
        == memory_limit(limits, own_image=True)
        == memory_limit(limits) + plugin_image.job_files(limits)
    )
