"""Images that plugins bring: which rules one has to keep before anything of it is started, and what its container needs to know of it.

An image is data that somebody else made. It is known by its config digest, so what was found out about one holds for good.
"""

from __future__ import annotations

import platform
import re
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.plugin_image import IMAGE_ID
from cloche.sandboxd.engine import Engine, Found

LABEL = "org.cloche.plugin-image"
LABEL_VALUE = "1"
MAX_VARIABLES = 64
MAX_ENVIRONMENT = 16 << 10  # bytes of all names and values
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# Where the engine and we mount, and the folders above: a link there would lead a mount elsewhere. What lies in /job, /dev, /proc and /sys
# is covered before anything is mounted below.
_FOLDERS = "/cloche /cloche/plugin /cloche/runtime /job /run /run/cloche /tmp /dev /proc /sys /etc".split()
_FILES = ("/etc/passwd", "/etc/group")  # the engine reads them, and would wait for ever at a FIFO
MAX_LINE = 64 << 10  # bytes: with a longer line in one of those the engine starts nothing (Go's bufio.MaxScanTokenSize)
_ABSENT = ("/etc/ld.so.preload",)  # every dynamic loader obeys it, ours too


@dataclass(frozen=True)
class Finding:
    """One rule: whether the image keeps it, what was found, and what to do where it does not."""

    rule: str
    kept: bool
    found: str
    advice: str = ""


@dataclass(frozen=True)
class OwnImage:
    """An image that keeps every rule. ``environment``: its ENV."""

    id: str
    environment: Mapping[str, str]


class OwnImages:
    """What is known of plugins' images on one engine. Any thread may call."""

    def __init__(self, engine: Engine, labels: Mapping[str, str]) -> None:
        self._engine = engine
        self._labels = labels
        self._lock = threading.Lock()
        self._known: dict[str, OwnImage] = {}

    def get(self, image_id: str) -> OwnImage:
        """
        Raises:
            PlatformFailure: ``bundle_unavailable``: it is not on this engine, or breaks a rule; ``engine_unavailable``.
            EngineRefused: the engine would not let us look into it.
        """
        with self._lock:
            known = self._known.get(image_id)
        if known is not None and self._engine.image(image_id) is not None:
            return known
        broken = [finding for finding in findings(self._engine, image_id, self._labels) if not finding.kept]
        if broken:
            first = broken[0]
            message = f"the plugin's image {image_id} cannot be used: {first.found}. {first.advice}"
            raise PlatformFailure(Reason.BUNDLE_UNAVAILABLE, message)
        found = OwnImage(image_id, environment(self._engine.image(image_id) or {}))
        with self._lock:
            self._known[image_id] = found
        return found


def findings(engine: Engine, image_id: str, labels: Mapping[str, str]) -> list[Finding]:
    """Every rule in turn; the first ones only when the image is not there. Nothing of the image is started.

    ``labels``: of the container that is made to look into the image, never started, and removed.

    Raises:
        PlatformFailure, EngineRefused: the engine does not answer, or refuses.
    """
    if not IMAGE_ID.fullmatch(image_id):
        advice = "Name it by its config digest: `docker image inspect --format '{{.Id}}' NAME`."
        return [Finding("identity", False, f"{image_id[:80]!r} is not sha256: and 64 hex digits", advice)]
    image = engine.image(image_id)
    if image is None or image.get("Id") != image_id:
        advice = "Load it on this host (`docker load -i IMAGE.tar`); Cloche never pulls a plugin's image."
        return [Finding("presence", False, "it is not on this host's engine", advice)]
    found = [Finding("presence", True, "it is on this host's engine"), *(rule(image) for rule in _RULES)]
    if all(finding.kept for finding in found):
        found.append(_paths(engine, image_id, labels))
    return found


def environment(image: Mapping[str, Any]) -> dict[str, str]:
    """The image's ENV; a variable named twice has its last value."""
    pairs = [entry.partition("=") for entry in _config(image).get("Env") or []]
    return {name: value for name, _, value in pairs}


def _config(image: Mapping[str, Any]) -> Mapping[str, Any]:
    return image.get("Config") or {}


def _label(image: Mapping[str, Any]) -> Finding:
    kept = (_config(image).get("Labels") or {}).get(LABEL) == LABEL_VALUE
    found = "is there" if kept else "is missing"
    advice = f"Build it with LABEL {LABEL}={LABEL_VALUE}, which says that plugins may start it."
    return Finding("label", kept, f"the label {LABEL}={LABEL_VALUE} {found}", "" if kept else advice)


def _platform(image: Mapping[str, Any]) -> Finding:
    machine = platform.machine()
    wanted = ("linux", _ARCHITECTURES.get(machine, machine))
    has = (str(image.get("Os")), str(image.get("Architecture")))
    advice = "" if has == wanted else f"Build it for {'/'.join(wanted)}."
    return Finding("platform", has == wanted, f"it is for {'/'.join(has)[:60]}", advice)


def _instructions(image: Mapping[str, Any]) -> Finding:
    config = _config(image)
    words = [
        w
        for key, w in (("Volumes", "VOLUME"), ("Healthcheck", "HEALTHCHECK"), ("OnBuild", "ONBUILD"))
        if config.get(key)
    ]
    if words:
        return Finding("instructions", False, f"it declares {', '.join(words)}", "Build it without.")
    return Finding("instructions", True, "no VOLUME, HEALTHCHECK or ONBUILD")


def _environment(image: Mapping[str, Any]) -> Finding:
    entries = _config(image).get("Env") or []
    advice = f"At most {MAX_VARIABLES} variables of {MAX_ENVIRONMENT} bytes in all, named by letters, digits and _."
    if (
        len(entries) > MAX_VARIABLES
        or sum(len(entry.encode("utf-8", "replace")) for entry in entries) > MAX_ENVIRONMENT
    ):
        return Finding("environment", False, "its ENV is too large", advice)
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals or not _VARIABLE.match(name) or "\0" in value:
            return Finding("environment", False, f"its ENV has the malformed entry {entry[:60]!a}", advice)
    return Finding("environment", True, f"{len(entries)} variables in ENV")


_RULES: tuple[Callable[[Mapping[str, Any]], Finding], ...] = (_label, _platform, _instructions, _environment)


def _paths(engine: Engine, image_id: str, labels: Mapping[str, str]) -> Finding:
    """Looked up in a container that is never started: what the engine itself adds is in it."""
    broken = list(_broken_paths(engine.look(image_id, [*_FOLDERS, *_FILES, *_ABSENT], labels, _FILES)))
    advice = "Build it without: Cloche makes and mounts what it needs there." if broken else ""
    found = "; ".join(broken) if broken else "no link or file is where something is mounted"
    return Finding("paths", not broken, found, advice)


def _broken_paths(looked: Mapping[str, Found | None]) -> Iterator[str]:
    for path, found in looked.items():
        if found is None:
            continue
        mode = found.mode
        if mode == 0:
            yield f"{path} is a link, or below one, that the engine cannot follow"
        elif path in _FOLDERS and not stat.S_ISDIR(mode):
            yield f"{path} is not a folder"
        elif path in _FILES and not stat.S_ISREG(mode):
            yield f"{path} is not a regular file"
        elif path in _FILES and found.longest >= MAX_LINE:
            yield f"{path} has a line of {found.longest} bytes, with which the engine starts nothing"
        elif path in _ABSENT:
            yield f"{path} is there"
