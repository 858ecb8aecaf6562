"""Carries bytes both ways between a job and a server, within a budget of bytes and two clocks."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from cloche.egress.bounds import Bounds, Budget
from cloche.isolation.egress import Verdict

CHUNK = 32 << 10  # bytes; buffers of one connection hold a few of these


@dataclass
class Count:
    """Bytes of one connection so far."""

    up: int = 0
    down: int = 0


@dataclass
class Pipe:
    """One side's two ends."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def abort(self) -> None:
        """Gone at once, with whatever was still to be sent."""
        self.writer.transport.abort()


class _OverBudget(Exception):
    pass


@dataclass
class Relay:
    """``run`` once. ``early``: bytes that the job sent behind its request."""

    job: Pipe
    server: Pipe
    bounds: Bounds
    budget: Budget
    count: Count = field(default_factory=Count)
    _moved: float = 0.0

    async def run(self, early: bytes) -> Verdict:
        """Until both sides have ended, one of them broke, or a bound was reached. Both are closed afterwards, whatever happens."""
        loop = asyncio.get_running_loop()
        began = self._moved = loop.time()
        tasks = {
            loop.create_task(self._carry(self.job.reader, self.server.writer, "up", early)),
            loop.create_task(self._carry(self.server.reader, self.job.writer, "down", b"")),
        }
        pending = set(tasks)
        try:
            while pending:
                now = loop.time()
                until = min(began + self.bounds.max_time_s, self._moved + self.bounds.idle_s)
                if now >= until:
                    return Verdict.IDLE if until < began + self.bounds.max_time_s else Verdict.TIME_LIMIT
                done, pending = await asyncio.wait(pending, timeout=until - now, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if isinstance(task.exception(), _OverBudget):
                        return Verdict.BYTE_LIMIT
                    if task.exception() is not None:
                        return Verdict.CLOSED  # reset by either side
            return await self._last_bytes()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.job.abort()
            self.server.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str, data: bytes) -> None:
        while data or (data := await reader.read(CHUNK)):
            if not self.budget.take(len(data)):
                raise _OverBudget
            setattr(self.count, way, getattr(self.count, way) + len(data))
            writer.write(data)
            await writer.drain()
            self._moved = asyncio.get_running_loop().time()
            data = b""
        writer.write_eof()

    async def _last_bytes(self) -> Verdict:
        """What the buffers still hold goes out before the connections are cut; a side that does not read gets the idle time for it."""
        try:
            async with asyncio.timeout(self.bounds.idle_s):
                for pipe in (self.job, self.server):
                    pipe.writer.close()
                    with contextlib.suppress(OSError):
                        await pipe.writer.wait_closed()
        except TimeoutError:
            return Verdict.IDLE
        return Verdict.CLOSED
