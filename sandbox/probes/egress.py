"""Ways out for a job that has one: other hosts than its own, other sockets, more than its share."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from typing import Any

from cloche_guest import Job

from .base import act, say, tried, wait_for

FOLDER = "/run/cloche"
SOCKET = f"{FOLDER}/egress.sock"
BEFORE: dict[str, list[str]] = {"import": os.listdir(FOLDER)}


def _talk(address: tuple[str, int] | None, job: Job, host: str, port: int) -> str:
    """A word there and back."""
    try:
        stream = socket.create_connection(address, 20) if address else job.connect(host, port, 20)
        with stream:
            stream.settimeout(20)
            stream.sendall(b"ping")
            stream.shutdown(socket.SHUT_WR)
            got = b""
            while part := stream.recv(100):
                got += part
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "DONE" if got == b"ping" else f"got {got!r}"


@act
def egress_reach(job: Job) -> Any:
    """Every target by ``connect``; a single one by a forwarded port too."""
    targets = job.payload["targets"]
    found = [_talk(None, job, host, port) for host, port in targets]
    return [*found, _talk(job.forward(*targets[0]), job, *targets[0])] if len(targets) == 1 else found


@act
def egress_redirect(job: Job) -> Any:
    """What a client gets that follows a redirect, to a host that the job may not reach."""
    # Not with the module: every other probe would have it in its memory too, of which each has little.
    import http.client
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(job.payload["url"], timeout=20) as answer:
            return f"DONE {answer.status}"
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"


@act
def egress_moving(job: Job) -> Any:
    """The same name before and after the host has changed where it leads."""
    target = job.payload["target"]
    found = [_talk(None, job, *target)]
    wait_for("go", "first")
    return [*found, _talk(None, job, *target)]


@act
def egress_raw(job: Job) -> Any:
    """The status of each request's answer, sent past our own proxy to the socket itself."""
    found = []
    for text in job.payload["requests"]:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(20)
            stream.connect(SOCKET)
            try:
                stream.sendall(text.encode("latin-1"))
                stream.shutdown(socket.SHUT_WR)
            except BrokenPipeError:
                pass  # refused while we were sending; the answer is there
            answer = stream.recv(100)
        found.append(int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else repr(answer))
    return found


@act
def egress_flood(job: Job) -> Any:
    """As many as can be had at once, then one bad request after the other, until nobody listens."""
    held, counts = [], {"held": 0, "waiting": 0, "refused": 0, "asked": 0}
    for _n in range(job.payload["at_once"]):
        stream = socket.socket(socket.AF_UNIX)
        stream.setblocking(False)
        code = stream.connect_ex(SOCKET)
        if code == 0 and len(held) < 200:
            held.append(stream)
            counts["held"] += 1
            continue
        stream.close()
        counts["waiting" if code == errno.EAGAIN else "refused"] += 1
    say("flooding")
    for stream in held:
        stream.close()
    for _n in range(500):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(20)
            if stream.connect_ex(SOCKET) != 0:
                counts["refused"] += 1
                break
            try:
                stream.sendall(b"CONNECT nowhere.invalid:1 HTTP/1.1\r\n\r\n")
                stream.recv(200)
                counts["asked"] += 1
            except OSError:
                counts["refused"] += 1
    return counts


@act
def egress_slow(job: Job) -> Any:
    stream = job.connect("127.0.0.1", job.payload["port"])
    sent = 0
    try:
        while True:
            stream.sendall(b"x")
            sent += 1
            if not stream.recv(1):
                return sent
            time.sleep(0.05)
    except OSError:
        return sent


@act
def egress_pour(job: Job) -> Any:
    def one() -> None:
        stream = job.connect("127.0.0.1", job.payload["port"])
        try:
            while True:
                stream.sendall(b"x" * 65_536)
                stream.recv(65_536)
        except OSError:
            return

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return "poured"


@act
def egress_stay(job: Job) -> Any:
    stream = job.connect("127.0.0.1", job.payload["port"])

    def chatter() -> None:
        while True:
            stream.sendall(b"x")
            time.sleep(0.01)

    threading.Thread(target=chatter, daemon=True).start()
    stream.recv(1)
    say("staying")
    return "left"


@act
def egress_sockets(job: Job) -> Any:
    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(job.payload["path"])

    return {"path": tried(connect), "sockets": os.listdir(FOLDER)}


@act
def egress_before(_: Job) -> Any:
    return BEFORE


@act
def egress_replace(_: Job) -> Any:
    def bind() -> None:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.bind(f"{FOLDER}/other.sock")

    return {
        "remove": tried(os.unlink, SOCKET),
        "rename": tried(os.rename, SOCKET, f"{FOLDER}/other"),
        "mode": tried(os.chmod, SOCKET, 0o666),
        "give": tried(os.chown, SOCKET, 0, 0),
        "link": tried(os.link, SOCKET, "/tmp/egress.sock"),
        "bind": tried(bind),
        "create": tried(os.mkdir, f"{FOLDER}/folder"),
    }
