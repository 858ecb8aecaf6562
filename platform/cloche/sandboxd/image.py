"""The sandbox image: made when it is missing or out of date, known by its config digest."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cloche.errors import EnvironmentProblem
from cloche.sandboxd import image_parts
from cloche.sandboxd.engine import Engine, EngineRefused
from cloche.sandboxd.tree import Node, Tree, add
from cloche_guest.protocol import PROTOCOL

HOST = "host"
DEFAULT_BASE = "python:3.12-slim"
PULL_SECONDS = 60
_FORMAT = "1"  # change it when the way images are put together changes
_ENTRYPOINT = ["/usr/local/bin/python3", "-I", "-B", "-X", "utf8", f"/{image_parts.GUEST_HOME}"]
_ENVIRONMENT = [
    "PATH=/usr/local/bin:/usr/bin:/bin",
    "HOME=/tmp",
    "USER=job",
    "LOGNAME=job",
    "LANG=C.UTF-8",
    "PYTHONDONTWRITEBYTECODE=1",
    "PYTHONUNBUFFERED=1",
]
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class ImageInfo:
    """``id``: config digest (``sha256:…``); ``python``: such as ``3.11``; ``source``: ``host`` or the base's reference."""

    id: str
    python: str
    source: str


def ensure_image(client: Engine, tag: str, base: str = "auto", emit: Callable[[str], None] = print) -> ImageInfo:
    """The image behind ``tag``, built first if it is missing or was made from other contents.

    ``base``: ``host`` (this host's interpreter), a reference to build on, or ``auto``: the kind that the tag has already; with no image
    yet, the default base if it can be pulled within a minute, else the host's interpreter.

    Raises:
        EnvironmentProblem: it cannot be built, or breaks a rule (VOLUME, HEALTHCHECK, ONBUILD).
        EngineRefused: the base can be had from nowhere.
        PlatformFailure: the engine does not answer.
    """
    present = client.image(tag)
    if base == "auto":
        base = _label(present or {}, "source") or (DEFAULT_BASE if _can_pull(client, emit) else HOST)
    tree = image_parts.host_tree() if base == HOST else image_parts.guest_tree()
    content = _content(tree, base)
    if present is not None and _label(present, "content") == content and _label(present, "source") == base:
        return _info(present)
    # A superseded image stays, without a tag: another home on this engine may still run it by its digest. `docker image prune` removes it.
    if base == HOST:
        return _load_host(client, tag, tree, content)
    return _build_on_base(client, tag, base, tree, content, emit)


def _can_pull(client: Engine, emit: Callable[[str], None]) -> bool:
    try:
        client.pull(DEFAULT_BASE, PULL_SECONDS)
    except EngineRefused:
        python = image_parts.PYTHON
        emit(f"No registry gives {DEFAULT_BASE}; building the sandbox image from this host's own Python {python}.")
        return False
    return True


def check_rules(image: Mapping[str, Any]) -> None:
    """Refuse what would undo a sandbox: a VOLUME is writable and unlimited, HEALTHCHECK and ONBUILD run commands nobody asked for.

    Raises:
        EnvironmentProblem: names the rule that is broken.
    """
    config = image.get("Config") or {}
    for key, word in (("Volumes", "VOLUME"), ("Healthcheck", "HEALTHCHECK"), ("OnBuild", "ONBUILD")):
        if config.get(key):
            raise EnvironmentProblem(f"the sandbox image declares {word}, which is refused; build it on another base")


def _load_host(client: Engine, tag: str, tree: Tree, content: str) -> ImageInfo:
    with tempfile.TemporaryFile(prefix="cloche-image-") as file:
        image_id = write_image(file, image_parts.compiled(tree), tag, content)
        file.seek(0)
        client.load(file)
    image = client.image(tag)
    if image is None:
        raise EnvironmentProblem(f"the engine took the image and does not show it as {tag} ({image_id})")
    return _info(image)


def write_image(out: Any, tree: Tree, tag: str, content: str) -> str:
    """Write an image tar as ``docker load`` takes it; returns the config digest. Same tree, same bytes."""
    with tempfile.TemporaryFile(prefix="cloche-layer-") as layer:
        tree.write(layer)
        layer.seek(0)
        data = layer.read()
    diff_id = hashlib.sha256(data).hexdigest()
    machine = platform.machine()
    config = {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "created": "2020-01-01T00:00:00Z",
        "config": {
            "Entrypoint": _ENTRYPOINT,
            "Env": _ENVIRONMENT,
            "WorkingDir": "/",
            "User": "65534:65534",
            "Labels": {
                "org.cloche.python": image_parts.PYTHON,
                "org.cloche.protocol": str(PROTOCOL),
                "org.cloche.content": content,
                "org.cloche.source": HOST,
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
        "history": [{"created": "2020-01-01T00:00:00Z", "created_by": "cloche: the host's interpreter"}],
    }
    text = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(text).hexdigest()
    manifest = [{"Config": f"{digest}.json", "RepoTags": [tag], "Layers": [f"{diff_id}/layer.tar"]}]
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, f"{digest}.json", Node(mode=0o644, data=text))
        add(tar, diff_id, Node())
        add(tar, f"{diff_id}/layer.tar", Node(mode=0o644, data=data))
        add(tar, "manifest.json", Node(mode=0o644, data=json.dumps(manifest).encode()))
    return f"sha256:{digest}"


def _build_on_base(
    client: Engine, tag: str, base: str, tree: Tree, content: str, emit: Callable[[str], None]
) -> ImageInfo:
    image = client.image(base)
    if image is None:
        client.pull(base, PULL_SECONDS)
        image = client.image(base)
    if image is None:
        raise EnvironmentProblem(f"the base image {base} is not on this engine and cannot be pulled")
    check_rules(image)
    python = client.ask_python(image["Id"])
    if tuple(map(int, python.split("."))) < (3, 11):
        raise EnvironmentProblem(f"the base image {base} has Python {python}; a sandbox needs 3.11 or newer")
    emit(f"Building the sandbox image on {base} (Python {python}).")
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "Dockerfile", Node(mode=0o644, data=(image_parts.image_folder() / "Dockerfile").read_bytes()))
        packed = io.BytesIO()
        tree.write(packed, prefix="root/")
        packed.seek(0)
        with tarfile.open(fileobj=packed) as inner:
            for entry in inner:
                tar.addfile(entry, inner.extractfile(entry) if entry.isfile() else None)
    context.seek(0)
    client.build(context, tag, {"BASE": base, "PYTHON": python, "PROTOCOL": str(PROTOCOL), "CONTENT": content})
    built = client.image(tag)
    if built is None:
        raise EnvironmentProblem(f"the engine built the image and does not show it as {tag}")
    return _info(built)


def _content(tree: Tree, base: str) -> str:
    """Digest of what goes in. A base counts by its reference: one that moved on is taken up when its image is removed or named anew."""
    return hashlib.sha256(f"{_FORMAT} {PROTOCOL} {base} {tree.digest()}".encode()).hexdigest()


def _label(image: Mapping[str, Any], name: str) -> str:
    labels = (image.get("Config") or {}).get("Labels") or {}
    return str(labels.get(f"org.cloche.{name}", ""))


def _info(image: Mapping[str, Any]) -> ImageInfo:
    check_rules(image)
    if _label(image, "protocol") != str(PROTOCOL) or not _label(image, "python"):
        raise EnvironmentProblem(
            "the sandbox image was built for another version of Cloche; remove its tag and start again"
        )
    return ImageInfo(id=str(image["Id"]), python=_label(image, "python"), source=_label(image, "source"))
