"""Strings that reached a shell, a file or another server through rclone, each refused before rclone sees it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.clock import uuid7
from cloche.errors import Invalid
from cloche.staging import paths
from cloche.staging.sources import ArtifactSource, RemoteSource, parse_destination, parse_source

# Every row of the table of what rclone does with a string it is given.
HOSTILE = [
    ":local:/etc/hostname",
    "/etc/hostname",
    ':webdav,url="http://x",vendor=other,bearer_token_command="touch /tmp/X":',
    'name,bearer_token_command="touch /tmp/X":x',
    "RCLONE_CONFIG_NAME_TYPE=local",
    "--config=evil",
    "--password-command=touch /tmp/X",
    "--log-file=/tmp/X",
    'alias,remote="/etc":hostname',
    ':alias,remote="/etc":hostname',
    ':http,url="http://127.0.0.1:80":',
    "dav:../other-tenant",
    "dav:base/../../other-tenant/x",
    "dav:/etc/hostname",
    "dav:-rf",
    "dav:a//b",
    "dav:a/./b",
    "dav:a/",
    "dav:",
    "dav:a\\..\\b",
    "dav:a\0b",
    "dav:a\nb",
    "dav:a\u2028b",
    "dav:a\ud800",
    "dav:a\u0308",  # not composed
    "dav:*/x.csv",
    "dav:" + "a" * 1_025,
    "dav:" + "a" * 256,
    "dav:" + "/".join("a" * 33),
    "DAV:x",
    "my remote:x",
    "a" * 33 + ":x",
    "{name}:x",
    '{"type":"local"}:x',
    "artifact:" + "0" * 36,
    "artifact:../x",
    "job:x",
    "",
    ":",
    "::",
    "--",
    "dav",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_source_that_rclone_would_interpret_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as refusal:
        parse_source(text, pointer="/inputs/0/from")
    assert [problem.pointer for problem in refusal.value.problems] == ["/inputs/0/from"]


@pytest.mark.parametrize(
    "text", [t for t in HOSTILE if t not in {"dav:", "dav:a/"}] + ["dav:a/*.png", "dav:a/..", "dav://"]
)
def test_a_destination_that_rclone_would_interpret_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_destination(text, pointer="/outputs/0/to")


def test_sources() -> None:
    artifact = uuid7()
    assert parse_source(f"artifact:{artifact}") == ArtifactSource(artifact)
    plain = parse_source("my-dav_2:fotos/Übersicht 1.png")
    assert plain == RemoteSource("my-dav_2", "fotos/Übersicht 1.png")
    assert not plain.is_glob
    assert (plain.folder, plain.basename) == ("fotos", "Übersicht 1.png")
    glob = parse_source("dav:a/b:c/*.[pj]?g")
    assert isinstance(glob, RemoteSource)
    assert glob.is_glob
    assert parse_destination("dav:") == RemoteSource("dav", "")
    assert parse_destination("dav:out/") == parse_destination("dav:out") == RemoteSource("dav", "out")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../b", "", ".", "a//b", "x\0", "-x", "a\\b", "\x7f"])
def test_an_input_name_that_leaves_its_folder_is_refused(name: str) -> None:
    with pytest.raises(Invalid):
        paths.check_relative(name, pointer="/inputs/0/to")


@given(st.text(max_size=60))
def test_what_passes_stays_below_its_root(text: str) -> None:
    try:
        path = paths.check_remote_path(text, glob=True)
    except Invalid:
        return
    parts = path.split("/")
    assert ".." not in parts
    assert "" not in parts
    assert not path.startswith(("/", "-"))
    assert "\0" not in path
