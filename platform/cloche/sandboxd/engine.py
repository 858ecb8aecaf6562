"""The few things sandboxd asks of a Docker engine, and what its silence or refusal means."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import stat
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any
from urllib.parse import urlencode

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from cloche.domain.states import Reason
from cloche.errors import ClocheError, PlatformFailure

_CALL_SECONDS = 30
_LOAD_SECONDS = 300
_REMOVALS = 3  # tries; the second finds a container that has ended
_READ_LIMIT = 4 << 20  # bytes of a file of an image that are read
_HEAD_LIMIT = 16 << 10  # bytes of the answer's head to an attach


@dataclass(frozen=True)
class Found:
    """What lies at a path of an image. ``mode``: its ``st_mode``; 0, the mode of nothing, where links above the path lead in a circle.

    ``longest``: bytes of a regular file's longest line, at least; only where that was asked for.
    """

    mode: int
    longest: int = 0


class EngineRefused(ClocheError):
    """The engine answered, and said no."""


class EngineAway(PlatformFailure):
    """``engine_unavailable``: it does not answer. Whatever it is asked next may take as long, and be in vain."""


class Engine:
    """One engine behind its Unix socket. Connects when first used and again after the engine was away. Any thread may call.

    Every method raises EngineAway (``engine_unavailable``) when the engine does not answer and EngineRefused when it says no.
    """

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path
        self._lock = threading.Lock()
        self._client: docker.APIClient | None = None

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def version(self) -> Mapping[str, Any]:
        with self._answers() as client:
            return dict(client.version())

    def info(self) -> Mapping[str, Any]:
        with self._answers() as client:
            return dict(client.info())

    def ping(self) -> None:
        with self._answers() as client:
            client.ping()

    def create(self, name: str, config: Mapping[str, Any]) -> str:
        """Create a container from a whole configuration; returns its id. A warning of the engine is a refusal: an option did not take."""
        with self._answers() as client:
            answer = client.create_container_from_config(dict(config), name)
        if answer.get("Warnings"):
            with contextlib.suppress(EngineRefused):
                self.remove(answer["Id"])
            raise EngineRefused(f"the engine would not keep every option: {'; '.join(answer['Warnings'])}")
        return str(answer["Id"])

    def start(self, container: str) -> None:
        with self._answers() as client:
            client.start(container)

    def set_memory(self, container: str, size: int, with_swap: int) -> None:
        """Another limit of memory, and of memory and swap together (-1: none), in bytes, for a running container."""
        with self._answers() as client:
            answer = client.update_container(container, mem_limit=size, memswap_limit=with_swap)
        if answer.get("Warnings"):
            raise EngineRefused(f"the engine would not set the memory: {'; '.join(answer['Warnings'])}")

    def inspect(self, container: str) -> Mapping[str, Any] | None:
        """The container, or None when there is none of that id."""
        with self._answers() as client:
            try:
                return dict(client.inspect_container(container))
            except NotFound:
                return None

    def remove(self, container: str) -> None:
        """Kill and remove it with its anonymous volumes. Nothing happens when it is gone already, or another removal is under way.

        One that ends by itself while the engine goes about killing it is refused ("not running"), and has to be removed once more.
        """
        with self._answers() as client:
            for left in reversed(range(_REMOVALS)):
                try:
                    client.remove_container(container, force=True, v=True)
                    return
                except NotFound:
                    return
                except APIError:
                    status = _status(client, container)
                    if status in ("", "removing"):
                        return
                    if status == "running" or not left:
                        raise

    def containers(self, label: str) -> list[Mapping[str, Any]]:
        """Every container with the label, running or not."""
        with self._answers() as client:
            return list(client.containers(all=True, filters={"label": [label]}))

    def attach(self, container: str) -> socket.socket:
        """A connection that carries the container's stdin, stdout and stderr and nothing else; the caller closes it.

        Output arrives in the engine's multiplexed form: 8 bytes (stream, 0, 0, 0, length as 4 bytes big-endian), then the bytes.
        """
        return self._opened("POST", f"containers/{container}/attach?stream=1&stdin=1&stdout=1&stderr=1", b"101")

    def changes(self) -> socket.socket:
        """A connection on which something arrives when the engine's configuration has been loaded anew, and which ends when the engine does.

        The caller closes it.
        """
        return self._opened("GET", f"events?{urlencode({'filters': json.dumps({'type': ['daemon']})})}", b"200")

    def _opened(self, method: str, path: str, status: bytes) -> socket.socket:
        """A connection of its own, after the head of the engine's answer. The caller closes it."""
        with self._answers() as client:
            version = client.api_version
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.settimeout(_CALL_SECONDS)
            stream.connect(self.socket_path)
            upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n" if status == b"101" else ""
            stream.sendall(f"{method} /v{version}/{path} HTTP/1.1\r\nHost: engine\r\n{upgrade}\r\n".encode("ascii"))
            said = _read_head(stream).split(b"\r\n", 1)[0].split(b" ")
            if len(said) < 2 or said[1] != status:
                words = b" ".join(said).decode("ascii", "replace")[:100]
                raise EngineRefused(f"the engine did not open {path.partition('?')[0]}: {words}")
        except OSError as error:
            stream.close()
            raise _away(error) from None
        except BaseException:
            stream.close()
            raise
        stream.settimeout(None)
        return stream

    def image(self, reference: str) -> Mapping[str, Any] | None:
        """The image, or None."""
        with self._answers() as client:
            try:
                return dict(client.inspect_image(reference))
            except ImageNotFound:
                return None

    def look(
        self, image: str, paths: Sequence[str], labels: Mapping[str, str], lines: Sequence[str] = ()
    ) -> dict[str, Found | None]:
        """What lies at each path of an image, links not followed, None where nothing does. Nothing of it is started.

        ``lines``: those of the paths whose longest line is looked for.
        """
        config = {
            "Image": image,
            "Entrypoint": ["/never-started"],
            "WorkingDir": "/",  # the engine makes an image's own, and refuses where a file is in the way
            "Labels": dict(labels),
            "NetworkDisabled": True,
            "HostConfig": {"NetworkMode": "none", "ReadonlyRootfs": True, "CapDrop": ["ALL"]},
        }
        with self._answers() as client:
            container = str(client.create_container_from_config(config)["Id"])
            try:
                return {path: _found_at(client, container, path, measure=path in lines) for path in paths}
            finally:
                client.remove_container(container, force=True, v=True)

    def remove_image(self, image: str) -> None:
        """Remove an image that nothing uses and no tag names any more."""
        with self._answers() as client:
            client.remove_image(image, noprune=False)

    def load(self, tar: IO[bytes]) -> None:
        with self._answers(_LOAD_SECONDS) as client:
            _consume(client.load_image(tar), time.monotonic() + _LOAD_SECONDS)

    def pull(self, reference: str, seconds: float) -> None:
        """Pull it, within about that time."""
        deadline = time.monotonic() + seconds
        with self._answers(seconds) as client:
            _consume(client.pull(reference, stream=True, decode=True), deadline)

    def build(self, context: IO[bytes], tag: str, arguments: Mapping[str, str]) -> None:
        with self._answers(_LOAD_SECONDS) as client:
            answer = client.build(
                fileobj=context,
                custom_context=True,
                tag=tag,
                buildargs=dict(arguments),
                network_mode="none",
                rm=True,
                forcerm=True,
                decode=True,
            )
            _consume(answer, time.monotonic() + _LOAD_SECONDS)

    def ask_python(self, image: str) -> str:
        """The ``major.minor`` of the image's ``python3``, asked in a sealed container."""
        config = {
            "Image": image,
            "Entrypoint": ["python3", "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            "User": "65534:65534",
            "HostConfig": {
                "NetworkMode": "none",
                "ReadonlyRootfs": True,
                "CapDrop": ["ALL"],
                "PidsLimit": 16,
                "Memory": 256 << 20,
            },
        }
        with self._answers() as client:
            container = str(client.create_container_from_config(config)["Id"])
            try:
                client.start(container)
                code = client.wait(container, timeout=_CALL_SECONDS)["StatusCode"]
                text = client.logs(container, stdout=True, stderr=False).decode("ascii", "replace").strip()
            finally:
                client.remove_container(container, force=True, v=True)
        if code != 0 or not all(part.isdigit() for part in text.split(".")):
            raise EngineRefused(f"the image {image} has no python3 that runs as an ordinary user")
        return text

    @contextlib.contextmanager
    def _answers(self, seconds: float | None = None) -> Iterator[docker.APIClient]:
        """A client whose errors are turned into ours; with ``seconds``, one of its own with that time-out."""
        own = None
        try:
            if seconds is None:
                yield self._connected()
            else:
                own = docker.APIClient(base_url=f"unix://{self.socket_path}", version="auto", timeout=int(seconds))
                yield own
        except APIError as error:
            raise EngineRefused(str(error.explanation or error)) from None
        except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            if own is not None and isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
                raise EngineRefused("it took too long") from None
            self.close()
            raise _away(error) from None
        finally:
            if own is not None:
                own.close()

    def _connected(self) -> docker.APIClient:
        with self._lock:
            if self._client is not None:
                return self._client
        # Without the lock: of an engine that never answers, each caller is to learn it in the time of one call, not of all before it.
        made = docker.APIClient(
            base_url=f"unix://{self.socket_path}", version="auto", timeout=_CALL_SECONDS, max_pool_size=16
        )
        with self._lock:
            if self._client is None:
                self._client = made
                return made
            client = self._client
        made.close()  # another thread was faster
        return client


def _status(client: docker.APIClient, container: str) -> str:
    """The engine's word for what it is doing; empty when there is no such container."""
    try:
        return str(client.inspect_container(container)["State"]["Status"])
    except NotFound:
        return ""


_GO_TYPES = ((31, stat.S_IFDIR), (27, stat.S_IFLNK), (26, stat.S_IFBLK), (25, stat.S_IFIFO), (24, stat.S_IFSOCK))
_GO_CHAR_DEVICE = 21


def _found_at(client: docker.APIClient, container: str, path: str, *, measure: bool) -> Found | None:
    """The engine's answer to HEAD archive: a JSON object in base64, whose mode has Go's bits."""
    url = f"{client.base_url}/v{client.api_version}/containers/{container}/archive"
    answer = client.head(url, params={"path": path}, timeout=_CALL_SECONDS)
    if answer.status_code == 404:
        return None
    if answer.status_code == 500:
        return Found(0)
    if answer.status_code != 200:
        raise EngineRefused(f"the engine does not say what {path} of the image is ({answer.status_code})")
    try:
        told = json.loads(base64.b64decode(answer.headers["X-Docker-Container-Path-Stat"]))
        mode, size = int(told["mode"]), int(told["size"])
    except (KeyError, ValueError, TypeError):
        raise EngineRefused(f"the engine says nothing usable of {path}") from None
    if mode & (1 << _GO_CHAR_DEVICE):
        return Found(stat.S_IFCHR | (mode & 0o777))
    kinds = [kind for bit, kind in _GO_TYPES if mode & (1 << bit)]
    found = Found((kinds[0] if kinds else stat.S_IFREG) | (mode & 0o777))
    if not measure or not stat.S_ISREG(found.mode):
        return found
    return replace(found, longest=size if size > _READ_LIMIT else _longest_line(client, container, path))


def _longest_line(client: docker.APIClient, container: str, path: str) -> int:
    chunks, _ = client.get_archive(container, path)
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks)), mode="r:") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                return max((len(line) for line in content.read().split(b"\n")), default=0)
    return 0


def _away(error: Exception) -> EngineAway:
    return EngineAway(Reason.ENGINE_UNAVAILABLE, f"the container engine does not answer ({type(error).__name__})")


def _read_head(stream: socket.socket) -> bytes:
    """The HTTP head up to its empty line, and not one byte more: what follows belongs to the container."""
    head = b""
    while b"\r\n\r\n" not in head:
        waiting = stream.recv(4096, socket.MSG_PEEK)
        if not waiting or len(head) > _HEAD_LIMIT:
            raise ConnectionError("the engine closed the connection")
        end = (head + waiting).find(b"\r\n\r\n")
        size = len(waiting) if end < 0 else end + 4 - len(head)
        head += stream.recv(size)
    return head


def _consume(lines: Any, deadline: float) -> None:
    """Read the engine's progress to its end.

    Raises:
        EngineRefused: it reports an error, or takes longer than the deadline.
    """
    for line in lines:
        item = json.loads(line) if isinstance(line, (bytes, str)) else line
        if "error" in item:
            raise EngineRefused(str(item["error"])[:500])
        if time.monotonic() > deadline:
            raise EngineRefused("it took too long")
