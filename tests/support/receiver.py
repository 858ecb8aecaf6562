"""A real receiver of callbacks on loopback, HTTP or HTTPS, that behaves as a test tells it to: also badly."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.stores import until


@dataclass(frozen=True)
class Got:
    """One request as it came. Header names are in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


Behave = Callable[[socket.socket, Got], None]


def answers(status: int, **headers: str) -> Behave:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())

    def behave(stream: socket.socket, got: Got) -> None:
        stream.sendall(f"HTTP/1.1 {status} Whatever\r\n{lines}Content-Length: 2\r\n\r\nok".encode())

    return behave


def writes(data: bytes) -> Behave:
    return lambda stream, got: stream.sendall(data)


@dataclass
class Receiver:
    """``behaviour`` holds what is done with the next requests; when it is used up, ``always``. ``closing`` is set at the end."""

    port: int = 0
    scheme: str = "http"
    behaviour: list[Behave] = field(default_factory=list)
    always: Behave = field(default_factory=lambda: answers(204))
    got: list[Got] = field(default_factory=list)
    connections: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/hook"

    def hangs(self, stream: socket.socket, got: Got) -> None:
        """Never answers."""
        self.closing.wait(60)

    def drips(self, stream: socket.socket, got: Got) -> None:
        """A byte now and then, for ever."""
        with contextlib.suppress(OSError):
            stream.sendall(b"HTTP/1.1 200 OK\r\n")
            while not self.closing.wait(0.05):
                stream.sendall(b"x")

    def wait(self, count: int, seconds: float = 20) -> list[Got]:
        until(lambda: len(self.got) >= count, seconds, f"{count} requests")
        return list(self.got)

    def serve(self, stream: socket.socket) -> None:
        with stream, contextlib.suppress(OSError):
            stream.settimeout(20)
            got = _read(stream)
            if got is None:
                return
            with self.lock:
                self.got.append(got)
                behave = self.behaviour.pop(0) if self.behaviour else self.always
            behave(stream, got)


@contextmanager
def receiving(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[Receiver]:
    """A receiver on a free port."""
    listener = socket.create_server((host, 0), backlog=64)
    receiver = Receiver(listener.getsockname()[1], "http" if tls is None else "https")

    def accept() -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            receiver.connections += 1
            threading.Thread(target=handle, args=(stream,), daemon=True).start()

    def handle(stream: socket.socket) -> None:
        if tls is not None:
            try:
                stream = tls.wrap_socket(stream, server_side=True)
            except OSError:
                stream.close()
                return
        receiver.serve(stream)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.closing.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def certificate(folder: Path, name: str = "127.0.0.1") -> tuple[ssl.SSLContext, Path]:
    """A server's context with a certificate for ``name``, and the file of the authority that it comes from (itself)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a receiver")])
    try:
        named: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        named = x509.DNSName(name)
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([named]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = folder / "cert.pem", folder / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)
    return context, pem


def _read(stream: socket.socket) -> Got | None:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = stream.recv(65_536)
        if not chunk:
            return None
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        chunk = stream.recv(65_536)
        if not chunk:
            return None
        body += chunk
    return Got(line, headers, body)
