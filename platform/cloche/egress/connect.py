"""From an endpoint to a connection: resolved once, every address checked, and the very address that was checked is connected to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from cloche import logs
from cloche.domain.addresses import Address, Network, is_public, parse_address, within
from cloche.domain.egress import Endpoint, is_literal
from cloche.isolation.egress import Verdict

log = logs.get(__name__)
Resolver = Callable[[str], Awaitable[list[str]]]
_MAX_ADDRESSES = 8  # tried of one name
_RESOLVERS = 128  # look-ups at once in the process; one that hangs holds its thread until the system's own time-out
_PER_SANDBOX = 2  # of them for one sandbox, counted until they have really ended


class ConnectRefused(Exception):
    """No connection; the message says why, for the plugin's author."""

    def __init__(self, verdict: Verdict, status: int, detail: str) -> None:
        super().__init__(detail)
        self.verdict = verdict
        self.status = status


class SystemResolver:
    """The host's own resolver, in threads. ``close`` waits for nobody."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="resolve")

    async def __call__(self, host: str) -> list[str]:
        """
        Raises:
            OSError: the name has no address.
        """
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Connector:
    """One sandbox's. What a name led to at first holds for the rest of the attempt, unless nobody answers there any more."""

    def __init__(self, resolve: Resolver, resolve_s: float, connect_s: float) -> None:
        self._resolve = resolve
        self._resolve_s = resolve_s
        self._connect_s = connect_s
        self._pinned: dict[str, tuple[Address, ...]] = {}
        self._looking: dict[str, asyncio.Task[list[str]]] = {}
        self._lookups = asyncio.Semaphore(_PER_SANDBOX)

    def close(self) -> None:
        """Wait for no name server any more."""
        for task in self._looking.values():
            task.cancel()

    async def connect(self, endpoint: Endpoint, private: tuple[Network, ...]) -> tuple[socket.socket, str]:
        """A connected, non-blocking socket and the address it leads to. ``private``: networks allowed though they are not public.

        Raises:
            ConnectRefused: no such host, an address that is not allowed, or no answer.
        """
        addresses = await self._addresses(endpoint.host)
        for address in addresses:
            # One bad address refuses them all: which of them would be taken is the name server's choice.
            if not within(address, private) and (not is_public(address) or _is_ours(address)):
                # The job is not told which: names of the inside would be no secret to it.
                # The host may be a job's secret, and so may an address that was written in its place.
                log.info("egress_address_refused", address=None if is_literal(endpoint.host) else str(address))
                raise ConnectRefused(
                    Verdict.ADDRESS_REFUSED, 403, f"{endpoint.host} leads to an address that is not public"
                )
        try:
            async with asyncio.timeout(self._connect_s):
                return await _first(addresses, endpoint.port)
        except (OSError, TimeoutError):
            self._pinned.pop(endpoint.host, None)
            raise ConnectRefused(Verdict.UNREACHABLE, 502, f"{endpoint} does not answer") from None

    async def _addresses(self, host: str) -> tuple[Address, ...]:
        if is_literal(host):
            return (parse_address(host),)
        if host not in self._pinned:
            self._pinned[host] = await self._look_up(host)
        return self._pinned[host]

    async def _look_up(self, host: str) -> tuple[Address, ...]:
        try:
            async with asyncio.timeout(self._resolve_s):
                # Shielded: who gives up waiting does not make room for another look-up of a name server that never answers.
                found = tuple(parse_address(text) for text in await asyncio.shield(await self._asked(host)))
        except (OSError, TimeoutError, ValueError, UnicodeError):
            found = ()
        if not found:
            raise ConnectRefused(Verdict.NO_SUCH_HOST, 502, f"{host} has no address")
        return found

    async def _asked(self, host: str) -> asyncio.Task[list[str]]:
        """The look-up of the name that is under way, or a new one."""
        if host in self._looking:
            return self._looking[host]
        await self._lookups.acquire()
        if host in self._looking:  # somebody was faster
            self._lookups.release()
            return self._looking[host]
        task = self._looking[host] = asyncio.get_running_loop().create_task(self._found(host))
        task.add_done_callback(lambda _: self._done(host))
        return task

    async def _found(self, host: str) -> list[str]:
        return await self._resolve(host)

    def _done(self, host: str) -> None:
        task = self._looking.pop(host)
        self._lookups.release()
        if not task.cancelled():
            task.exception()  # whoever still waits has it too


async def _first(addresses: tuple[Address, ...], port: int) -> tuple[socket.socket, str]:
    """The first that answers.

    Raises:
        OSError: none does.
    """
    failure = OSError("no address")
    for address in addresses[:_MAX_ADDRESSES]:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        stream = socket.socket(family, socket.SOCK_STREAM)
        try:
            stream.setblocking(False)
            await asyncio.get_running_loop().sock_connect(stream, (str(address), port))
            return stream, str(address)
        except OSError as error:
            stream.close()
            failure = error
        except BaseException:
            stream.close()
            raise
    raise failure


def _is_ours(address: Address) -> bool:
    """Whether it is one of this host's own: the kernel then takes the address itself as the sender's. Nothing is sent."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), 9))
        return bool(probe.getsockname()[0] == str(address))
    return False
