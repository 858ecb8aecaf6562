"""One POST over HTTP/1.1 to a receiver that somebody else chose.

Written for this one purpose, so that what it does not do is certain: the name is resolved once and the very address that was checked is
connected to; no redirect is followed, no proxy of the environment is used, no cookie or credential is sent; one deadline holds for all of it,
however slowly bytes come; of the answer no more is read than its head and a little of its body, and of that nothing is shown to anybody.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloche import __version__
from cloche.domain.addresses import Address, parse_address
from cloche.domain.callbacks import Outcome, Reach, Target
from cloche.errors import SettingsError

Resolver = Callable[[str, int], Sequence[str]]
_CONNECT_S = 5.0  # for one address
_MAX_ADDRESSES = 4  # tried of one name
_MAX_HEAD = 16_384
_MAX_REST = 65_536  # read of a body, so that the receiver may finish writing it
_REST_S = 1.0
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?\Z")


class NotDelivered(Exception):
    """The receiver has not taken it. ``detail`` is for the people of the job's tenant: it names no address and no content."""

    def __init__(
        self, outcome: Outcome, detail: str, status: int | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail
        self.status = status
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class _Head:
    status: int
    fields: Mapping[str, str]
    rest: bytes


class Sender:
    """Shared by threads. ``timeout_s`` bounds one POST as a whole, but for the system's own time-out of a name look-up."""

    def __init__(
        self, reach: Reach, timeout_s: float, ca_file: Path | None = None, resolve: Resolver | None = None
    ) -> None:
        """
        Raises:
            SettingsError: ``ca_file`` holds no certificates.
        """
        self._reach = reach
        self._timeout_s = timeout_s
        self._resolve = resolve or _resolved
        self._tls = ssl.create_default_context()
        if ca_file is not None:
            try:
                self._tls.load_verify_locations(ca_file)
            except (OSError, ssl.SSLError) as error:
                raise SettingsError(f"callbacks.ca_file {ca_file} cannot be read as certificates: {error}") from None

    def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> int:
        """The status of the receiver's answer, 200 to 299.

        Raises:
            NotDelivered: anything else.
        """
        addresses = self._addresses(target)
        deadline = _Deadline(self._timeout_s)
        try:
            with self._connected(target, addresses, deadline) as stream:
                deadline.bound(stream)
                stream.sendall(_request(target, headers, body))
                head = _read_head(stream, deadline)
                _read_rest(stream, head, deadline)
        except TimeoutError:
            raise NotDelivered(Outcome.TIMED_OUT, f"no answer within {self._timeout_s:g} s") from None
        except ssl.SSLError as error:
            raise NotDelivered(Outcome.TLS_FAILED, _tls_words(error)) from None
        except OSError as error:
            raise NotDelivered(Outcome.UNREACHABLE, f"the connection failed: {_words(error)}") from None
        return _verdict(head)

    def _addresses(self, target: Target) -> list[Address]:
        try:
            found = [parse_address(text) for text in dict.fromkeys(self._resolve(target.host, target.port))]
        except (OSError, ValueError, UnicodeError):
            found = []
        if not found:
            raise NotDelivered(Outcome.UNREACHABLE, f"{target.host} has no address")
        for address in found:
            # One bad address refuses them all: which of them would be taken is the name server's choice.
            if not self._reach.permits(target, address) or (_is_ours(address) and not self._listed(target, address)):
                detail = f"{target.host} leads to an address that is not public; the operator may allow it (CLOCHE_CALLBACKS_PRIVATE)"
                raise NotDelivered(Outcome.ADDRESS_REFUSED, detail)
        return found[:_MAX_ADDRESSES]

    def _listed(self, target: Target, address: Address) -> bool:
        """Whether the operator named the host or the address, beyond its being public."""
        return self._reach.names(target) or any(
            address.version == network.version and address in network for network in self._reach.networks
        )

    @contextlib.contextmanager
    def _connected(self, target: Target, addresses: Sequence[Address], deadline: _Deadline):  # type: ignore[no-untyped-def]
        failure: OSError = OSError("no address")
        for address in addresses:
            try:
                plain = socket.create_connection((str(address), target.port), timeout=min(_CONNECT_S, deadline.left()))
                break
            except OSError as error:
                failure = error
        else:
            if isinstance(failure, TimeoutError):
                raise NotDelivered(Outcome.UNREACHABLE, "nobody answers there")
            raise NotDelivered(Outcome.UNREACHABLE, f"nobody answers there: {_words(failure)}")
        with plain:
            if target.scheme == "http":
                yield plain
                return
            deadline.bound(plain)
            with self._tls.wrap_socket(plain, server_hostname=target.host) as secured:
                yield secured


class _Deadline:
    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """
        Raises:
            TimeoutError: nothing is left.
        """
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def bound(self, stream: socket.socket, longest: float | None = None) -> None:
        """Let the stream's next call take no longer than what is left."""
        left = self.left()
        stream.settimeout(left if longest is None else min(left, longest))


def _resolved(host: str, port: int) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _is_ours(address: Address) -> bool:
    """Whether it is one of this host's own: the kernel then takes the address itself as the sender's. Nothing is sent."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), 9))
        return bool(probe.getsockname()[0] == str(address))
    return False


def _request(target: Target, headers: Mapping[str, str], body: bytes) -> bytes:
    default = {"http": 80, "https": 443}[target.scheme]
    host = target.authority if target.port != default else target.authority.rpartition(":")[0]
    lines = [
        f"POST {target.path} HTTP/1.1",
        f"Host: {host}",
        f"User-Agent: cloche/{__version__}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header holds the end of a line")
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


def _read_head(stream: socket.socket, deadline: _Deadline) -> _Head:
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            deadline.bound(stream)
            chunk = stream.recv(4_096)
            if not chunk:
                raise NotDelivered(Outcome.MALFORMED, "the connection ended before an answer")
            data += chunk
            if len(data) > _MAX_HEAD:
                raise NotDelivered(Outcome.MALFORMED, f"the answer's head is longer than {_MAX_HEAD} bytes")
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        match = _STATUS.match(first)
        if match is None:
            raise NotDelivered(Outcome.MALFORMED, "the answer is not HTTP/1.1")
        status = int(match[1])
        if status == 101:
            raise NotDelivered(Outcome.MALFORMED, "the answer changes the protocol, which was not asked for")
        if status >= 200:
            fields = {}
            for line in lines:
                name, _, value = line.decode("latin-1").partition(":")
                fields[name.strip().lower()] = value.strip()
            return _Head(status, fields, data)


def _read_rest(stream: socket.socket, head: _Head, deadline: _Deadline) -> None:
    """A little of the body, thrown away: a receiver that is cut off while it writes may count its own answer as failed."""
    announced = head.fields.get("content-length", "")
    wanted = min(int(announced), _MAX_REST) if announced.isdecimal() and len(announced) < 10 else _MAX_REST
    ends = time.monotonic() + _REST_S
    size = len(head.rest)
    with contextlib.suppress(OSError):  # the verdict is known
        while size < wanted and (left := ends - time.monotonic()) > 0:
            deadline.bound(stream, left)
            chunk = stream.recv(4_096)
            if not chunk:
                return
            size += len(chunk)


def _verdict(head: _Head) -> int:
    status = head.status
    if 200 <= status < 300:
        return status
    if 300 <= status < 400:
        detail = f"the receiver answered {status}; redirects are not followed, so name the address itself"
        raise NotDelivered(Outcome.REDIRECTED, detail, status)
    if status == 410:
        raise NotDelivered(Outcome.GONE, "the receiver answered 410: it wants no more of this job", status)
    asked = head.fields.get("retry-after", "")
    retry_after = int(asked) if asked.isdecimal() and len(asked) < 8 and status in (429, 503) else None
    raise NotDelivered(Outcome.HTTP_ERROR, f"the receiver answered {status}", status, retry_after)


def _words(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _tls_words(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate was refused: {error.verify_message}"[:300]
    return f"no TLS connection: {(error.reason or 'the receiver speaks none').lower().replace('_', ' ')}"[:300]
