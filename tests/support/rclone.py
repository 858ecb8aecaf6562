"""Real storage servers for tests: ``rclone serve`` over WebDAV, S3 and SFTP on free loopback ports; and a private daemon."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloche.staging.rclone import RcloneDaemon, rclone_binary
from tests.support import ports

USER = "gardener"
PASSWORD = "correct horse, battery: staple"
ACCESS_KEY = "ACCESSKEY123456789"
SECRET_KEY = "SECRETKEY12345678901234567890"


@dataclass(frozen=True)
class Server:
    """A running server: what it serves, its port, and the remote's options that reach it."""

    kind: str
    folder: Path
    port: int
    options: dict[str, str]
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def serving(kind: str, folder: Path, *more: str) -> Iterator[Server]:
    """Serve ``folder`` (for S3: its bucket ``garden``); ``kind`` is ``webdav``, ``s3`` or ``sftp``."""
    folder.mkdir(parents=True, exist_ok=True)
    key = host_key(folder.parent) if kind == "sftp" else None
    if kind == "s3":
        arguments = ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    else:
        arguments = ["--user", USER, "--pass", PASSWORD, *(["--key", str(key)] if key else [])]
    served = folder.parent if kind == "s3" else folder

    def start(port: int) -> subprocess.Popen[bytes]:
        address = ["--addr", f"127.0.0.1:{port}", "--config", "", "--vfs-cache-mode", "off"]
        command = [str(rclone_binary()), "serve", kind, str(served), *arguments, *address, *more]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    process, port = ports.listening(start)
    try:
        yield Server(kind, folder, port, _options(kind, folder, port, key), process)
    finally:
        process.terminate()
        process.wait(10)


def _options(kind: str, folder: Path, port: int, key: Path | None) -> dict[str, str]:
    """The remote's that reaches the server."""
    if kind == "webdav":
        return {"url": f"http://127.0.0.1:{port}", "vendor": "other", "user": USER, "pass": PASSWORD}
    if kind == "s3":
        return {
            "provider": "Rclone",
            "endpoint": f"http://127.0.0.1:{port}",
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
            "bucket": folder.name,
            "force_path_style": "true",
        }
    assert key is not None
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    return {"host": "127.0.0.1", "port": str(port), "user": USER, "pass": PASSWORD, "host_keys": public}


@contextlib.contextmanager
def daemon(run_dir: Path, *, allow_addresses: bool = True) -> Iterator[RcloneDaemon]:
    """A private daemon, closed at the end."""
    made = RcloneDaemon(rclone_binary(), run_dir, allow_addresses=allow_addresses)
    try:
        yield made
    finally:
        made.close()


def host_key(folder: Path) -> Path:
    """A new SSH host key, its public half beside it."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, path = Ed25519PrivateKey.generate(), folder / f"host-key-{time.monotonic_ns()}"
    path.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption()))
    path.chmod(0o600)
    path.with_suffix(".pub").write_bytes(
        key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    )
    return path
