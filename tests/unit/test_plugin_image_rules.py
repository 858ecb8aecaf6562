"""Which images plugins may bring: each rule, with its advice. The engine here is told what to say; real ones are in tests/integration."""

from __future__ import annotations

import platform
import stat
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.sandboxd.engine import Found
from cloche.sandboxd.own_image import OwnImages, findings

ID = "sha256:" + "e" * 64
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


class Shelf:
    """An engine with one image, ``None`` for none; ``modes`` of its paths, with a line of ``longest`` bytes each."""

    def __init__(self, image: dict[str, Any] | None, modes: Mapping[str, int] | None = None, longest: int = 40) -> None:
        self.shown = image
        self.modes = modes or {}
        self.longest = longest
        self.looks = 0

    def image(self, reference: str) -> dict[str, Any] | None:
        return self.shown if reference == ID else None

    def look(
        self, image: str, paths: Sequence[str], labels: Mapping[str, str], lines: Sequence[str] = ()
    ) -> dict[str, Found | None]:
        self.looks += 1
        there = [path for path in paths if path in self.modes]
        found = {path: Found(self.modes[path], self.longest if path in lines else 0) for path in there}
        return {path: found.get(path) for path in paths}


def image(**change: Any) -> dict[str, Any]:
    config = {"Labels": {"org.cloche.plugin-image": "1"}, **change.pop("Config", {})}
    return {"Id": ID, "Os": "linux", "Architecture": ARCHITECTURE, "Config": config, **change}


def broken(shelf: Any, image_id: str = ID) -> dict[str, str]:
    found = [finding for finding in findings(shelf, image_id, {}) if not finding.kept]
    assert all(finding.advice for finding in found)
    return {finding.rule: finding.found for finding in found}


def test_a_good_one() -> None:
    directories = dict.fromkeys(("/job", "/cloche", "/cloche/runtime", "/etc", "/tmp"), stat.S_IFDIR | 0o755)
    shelf = Shelf(
        image(Config={"Env": ["A=b=c", "A=d", "EMPTY="]}), {**directories, "/etc/passwd": stat.S_IFREG | 0o644}
    )
    assert broken(shelf) == {}
    assert OwnImages(shelf, {}).get(ID).environment == {"A": "d", "EMPTY": ""}


@pytest.mark.parametrize("name", ["busybox", "busybox:1", "e" * 64, ID.upper(), ID + "\n", "", "-h", "busybox@" + ID])
def test_only_config_digests(name: str) -> None:
    assert broken(Shelf(image()), name).keys() == {"identity"}


def test_what_is_not_there() -> None:
    assert broken(Shelf(None)).keys() == {"presence"}


def test_a_digest_that_is_not_the_config() -> None:
    """An engine may find an image by the digest of its manifest too."""
    assert broken(Shelf(image(Id="sha256:" + "f" * 64))).keys() == {"presence"}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"Config": {"Labels": None}}, "label"),
        ({"Config": {"Labels": {"org.cloche.plugin-image": "yes"}}}, "label"),
        ({"Config": {"Labels": {"org.cloche.python": "3.11"}}}, "label"),
        ({"Architecture": "s390x"}, "platform"),
        ({"Architecture": None}, "platform"),
        ({"Os": "windows"}, "platform"),
        ({"Config": {"Volumes": {"/data": {}}}}, "instructions"),
        ({"Config": {"Healthcheck": {"Test": ["CMD", "true"]}}}, "instructions"),
        ({"Config": {"OnBuild": ["RUN true"]}}, "instructions"),
        ({"Config": {"Env": ["A"]}}, "environment"),
        ({"Config": {"Env": ["=b"]}}, "environment"),
        ({"Config": {"Env": ["A B=c"]}}, "environment"),
        ({"Config": {"Env": ["A\n=c"]}}, "environment"),
        ({"Config": {"Env": ["A=\0"]}}, "environment"),
        ({"Config": {"Env": [f"A{number}=" for number in range(65)]}}, "environment"),
        ({"Config": {"Env": ["A=" + "x" * (16 << 10)]}}, "environment"),
    ],
)
def test_each_rule(change: dict[str, Any], rule: str) -> None:
    shelf = Shelf(image(**change))
    assert broken(shelf).keys() == {rule}
    assert shelf.looks == 0, "nothing is made of an image that breaks a rule"
    with pytest.raises(PlatformFailure, match=ID) as caught:
        OwnImages(shelf, {}).get(ID)
    assert caught.value.reason == Reason.BUNDLE_UNAVAILABLE


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/cloche", stat.S_IFLNK),
        ("/cloche/runtime", stat.S_IFLNK),
        ("/cloche/runtime", stat.S_IFREG),
        ("/job", stat.S_IFLNK),
        ("/tmp", stat.S_IFLNK),
        ("/etc", stat.S_IFLNK),
        ("/dev", stat.S_IFLNK),
        ("/etc/passwd", stat.S_IFIFO),
        ("/etc/group", stat.S_IFLNK),
        ("/etc/passwd", stat.S_IFDIR),
        ("/etc/ld.so.preload", stat.S_IFREG),
        ("/etc/ld.so.preload", stat.S_IFLNK),
    ],
)
def test_each_path(path: str, kind: int) -> None:
    found = broken(Shelf(image(), {path: kind | 0o755}))
    assert found.keys() == {"paths"}
    assert path in found["paths"]


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/group"])
def test_no_line_is_longer_than_the_engine_reads(path: str) -> None:
    """It starts no container of an image where one has 64 KiB."""
    modes = {path: stat.S_IFREG | 0o644, "/etc": stat.S_IFDIR | 0o755}
    assert broken(Shelf(image(), modes, longest=(64 << 10) - 1)) == {}
    found = broken(Shelf(image(), modes, longest=64 << 10))
    assert f"{path} has a line of 65536 bytes" in found["paths"]


def test_an_image_is_looked_into_once() -> None:
    shelf = Shelf(image())
    images = OwnImages(shelf, {})
    assert images.get(ID) == images.get(ID)
    assert shelf.looks == 1
    shelf.shown = None
    with pytest.raises(PlatformFailure, match="not on this host"):
        images.get(ID)
