"""One sandbox's right to connections: its listening socket, its list, its bounds, and what became of each connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from dataclasses import dataclass, field

from cloche import logs
from cloche.domain.egress import Endpoint, PlatformEgress
from cloche.egress.bounds import Bounds, Budget
from cloche.egress.connect import Connector, ConnectRefused, Resolver
from cloche.egress.head import END, ESTABLISHED, MAX_HEAD, BadHead, parse_head, response
from cloche.egress.peers import Peers, admits
from cloche.egress.relay import CHUNK, Count, Pipe, Relay
from cloche.isolation.egress import MAX_RECORDED, EgressConnection, EgressReport, Verdict

log = logs.get(__name__)
_LAST_WORDS_S = 2.0  # to read why it was refused
_ENDING_S = 0.05
_RESERVE = 8  # of all places: one part in so many, and at least one
_PAUSE_S = 0.2  # before another accept when the process has no descriptor left


class Shared:
    """What all sandboxes of this process share. ``places``: connections that may be open at once; used in one thread.

    All but the last eighth of the places are for whoever comes. Of that eighth a sandbox gets another one only while it holds fewer than an equal
    share of those that are still free, counted over all sandboxes that hold any; one that holds none gets one as long as any is left. So what some
    jobs hold, for up to an hour, leaves others something, and the more they hold the less of it they get. Nothing that is open is cut.

    With the defaults, 1,024 places and 32 for each job: 28 jobs have all of their 32, and 128 places are left. The next job gets 5 of them,
    later ones 4 and fewer, and when 64 jobs have what they can get 46 are left. No more than an eighth is free when anybody is refused.
    """

    def __init__(self, platform: PlatformEgress, bounds: Bounds, resolve: Resolver, places: int) -> None:
        self.platform = platform
        self.bounds = bounds
        self.resolve = resolve
        self.places = places
        self.open = 0
        self._held: Counter[Grant] = Counter()

    def take(self, grant: Grant) -> bool:
        """Whether the sandbox may have another connection, which is then counted until :meth:`give_back`."""
        held, free = self._held[grant], self.places - self.open
        if free <= 0:
            return False
        if held > 0 and free <= max(1, self.places // _RESERVE) and held * len(self._held) >= free:
            return False
        self.open += 1
        self._held[grant] += 1
        return True

    def give_back(self, grant: Grant) -> None:
        self.open -= 1
        self._held[grant] -= 1
        if not self._held[grant]:
            del self._held[grant]


@dataclass
class _Attempt:
    """One connection as it goes on."""

    began: float
    endpoint: Endpoint | None = None
    address: str | None = None
    verdict: Verdict = Verdict.JOB_ENDED  # unless it ends before
    count: Count = field(default_factory=Count)


class Grant:
    """``start`` → ``close``, in the loop's thread. Owns the listening socket."""

    def __init__(self, listener: socket.socket, peers: Peers, allow: tuple[Endpoint, ...], shared: Shared) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._peers = peers
        # What the operator does not allow is not allowed, whoever asked us to.
        self._allow = frozenset(endpoint for endpoint in allow if shared.platform.policy.allows(endpoint))
        self._shared = shared
        bounds = shared.bounds
        self._budget = Budget(bounds.max_bytes)
        self._connector = Connector(shared.resolve, bounds.resolve_s, bounds.connect_s)
        self._began = time.monotonic()
        self._recorded: list[EgressConnection] = []
        self._accepted = 0
        self._total = self._up = self._down = 0
        self._verdicts: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._listening = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._listener, self._accept)
        self._listening = True

    async def close(self) -> EgressReport:
        """Nobody new, everything that is open cut; what there was. Any number of times."""
        self._stop_listening()
        tasks = set(self._tasks)
        if tasks:
            # The job is dead by now: what is at its own end is told as that, and not as cut.
            await asyncio.wait(tasks, timeout=_ENDING_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._connector.close()
        return EgressReport(tuple(self._recorded), self._total, self._up, self._down, dict(self._verdicts))

    def _accept(self) -> None:
        """Somebody connects. At the bound of open connections nobody is accepted: further ones wait in the socket's own short queue."""
        try:
            stream, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no descriptor is left, for now
            log.warning("egress_accept_failed", error=str(error))
            self._loop.remove_reader(self._listener)
            self._loop.call_later(_PAUSE_S, self._resume)
            return
        bounds = self._shared.bounds
        if self._accepted >= bounds.total:
            stream.close()
            self._stop_listening()
            self._end(_Attempt(time.monotonic(), verdict=Verdict.TOO_MANY))
            return
        self._accepted += 1
        stream.setblocking(False)
        task = self._loop.create_task(self._connection(stream))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if len(self._tasks) >= bounds.connections:
            self._loop.remove_reader(self._listener)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._resume()

    def _resume(self) -> None:
        if self._listening and len(self._tasks) < self._shared.bounds.connections:
            self._loop.add_reader(self._listener, self._accept)

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self._listener)
        self._listener.close()

    async def _connection(self, stream: socket.socket) -> None:
        attempt = _Attempt(time.monotonic())
        held = self._shared.take(self)
        try:
            if not admits(self._peers, stream):
                attempt.verdict = Verdict.WRONG_USER
                return
            job = await _opened(stream)
            try:
                if not held:
                    raise ConnectRefused(Verdict.BUSY, 503, "too many connections are open on this host; try again")
                await self._serve(job, attempt)
            except ConnectRefused as refusal:
                attempt.verdict = refusal.verdict
                await _refuse(job, refusal)
            finally:
                job.abort()
        except OSError:
            attempt.verdict = Verdict.CLOSED  # the job went away
        finally:
            stream.close()
            if held:
                self._shared.give_back(self)
            self._end(attempt)

    async def _serve(self, job: Pipe, attempt: _Attempt) -> None:
        bounds = self._shared.bounds
        endpoint, early = await _request(job.reader, bounds.head_s)
        attempt.endpoint = endpoint
        if endpoint not in self._allow:
            raise ConnectRefused(Verdict.NOT_ALLOWED, 403, f"{endpoint} is not among the hosts this job may reach")
        platform = self._shared.platform
        private = platform.private if platform.policy.names(endpoint) else ()
        stream, attempt.address = await self._connector.connect(endpoint, private)
        try:
            server = await _opened(stream)
        except BaseException:
            stream.close()
            raise
        job.writer.write(ESTABLISHED)
        relay = Relay(job, server, bounds, self._budget, attempt.count)
        attempt.verdict = await relay.run(early)

    def _end(self, attempt: _Attempt) -> None:
        self._total += 1
        self._up += attempt.count.up
        self._down += attempt.count.down
        self._verdicts[attempt.verdict] = self._verdicts.get(attempt.verdict, 0) + 1
        if len(self._recorded) < MAX_RECORDED:
            self._recorded.append(
                EgressConnection(
                    host=attempt.endpoint.host if attempt.endpoint else None,
                    port=attempt.endpoint.port if attempt.endpoint else None,
                    address=attempt.address,
                    verdict=attempt.verdict.value,
                    bytes_up=attempt.count.up,
                    bytes_down=attempt.count.down,
                    started_ms=round((attempt.began - self._began) * 1000),
                    duration_ms=round((time.monotonic() - attempt.began) * 1000),
                )
            )


async def _opened(stream: socket.socket) -> Pipe:
    kind = asyncio.open_unix_connection if stream.family == socket.AF_UNIX else asyncio.open_connection
    reader, writer = await kind(sock=stream, limit=CHUNK)
    return Pipe(reader, writer)


async def _request(reader: asyncio.StreamReader, seconds: float) -> tuple[Endpoint, bytes]:
    """The endpoint asked for, and what came behind the request.

    Raises:
        ConnectRefused: malformed, too long, or too slow.
        OSError: the job went away.
    """
    data = b""
    try:
        async with asyncio.timeout(seconds):
            while END not in data:
                if len(data) > MAX_HEAD:
                    raise BadHead(431, f"a request of more than {MAX_HEAD} bytes")
                part = await reader.read(MAX_HEAD)
                if not part:
                    raise ConnectionResetError("no request")
                data += part
        head, _, early = data.partition(END)
        if len(head) > MAX_HEAD:
            raise BadHead(431, f"a request of more than {MAX_HEAD} bytes")
        return parse_head(head), early
    except TimeoutError:
        raise ConnectRefused(Verdict.MALFORMED, 408, f"no whole request within {seconds:g} s") from None
    except BadHead as error:
        raise ConnectRefused(Verdict.MALFORMED, error.status, str(error)) from None


async def _refuse(job: Pipe, refusal: ConnectRefused) -> None:
    """Say why, and give the job a moment to read it: a reset would throw the answer away."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_LAST_WORDS_S):
            job.writer.write(response(refusal.status, str(refusal)))
            job.writer.write_eof()
            await job.writer.drain()
            while await job.reader.read(CHUNK):
                continue
