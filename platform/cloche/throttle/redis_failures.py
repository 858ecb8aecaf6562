"""Failures in Redis or Valkey, shared by all processes.

All keys share the hash tag ``{cloche}``, as those of :mod:`cloche.queueing.scripts` do. Names in them are keyed hashes: people type their
password where the name belongs. Each goes by itself; how many there are is bounded by how many tries are let through in that time, and
each of those has cost a password's hash.

===================================  ======  ====================================================================
key                                  type    holds
===================================  ======  ====================================================================
``{cloche}:tries:<what>``            hash    ``n``: tries that were not forgiven; ``until``: ms by this server's clock, before which nobody
                                             is let through. Gone a window (15 min) after the last wait is over
``{cloche}:known:<account>``         zset    places (addresses) from which the account has signed in, score when (ms); the newest 16. Gone
                                             30 days after the last time
===================================  ======  ====================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cloche.errors import SettingsError, Unavailable
from cloche.throttle.failures import KNOWN_MAX, KNOWN_MS, Tally

T = TypeVar("T")
PREFIX = "{cloche}"
# Somebody waits for it at a sign-in, and there is a limiter for when it is away.
_TIMEOUT_S = 0.5

_CLOCK = """
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
"""

# KEYS: known, then one of each tally. ARGV: place, 1 to count or 0 to look, then of each tally: 1 where a known place is spared, free, base,
# longest, window. Returns how long to wait (ms); 0: let through, and counted.
ATTEMPT = (
    _CLOCK
    + """
local known = redis.call('ZSCORE', KEYS[1], ARGV[1])
local wait = 0
for i = 2, #KEYS do
  if not (known and ARGV[5 * i - 7] == '1') then
    wait = math.max(wait, (tonumber(redis.call('HGET', KEYS[i], 'until') or '0') or 0) - now)
  end
end
if wait > 0 or ARGV[2] == '0' then return wait end
for i = 2, #KEYS do
  local at = 5 * i - 7
  local free, base, longest, window = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local n = redis.call('HINCRBY', KEYS[i], 'n', 1)
  local lock = 0
  if n >= free then
    lock = math.min(longest, base * 2 ^ math.min(n - free, 30))
    redis.call('HSET', KEYS[i], 'until', string.format('%.0f', now + lock))
  end
  redis.call('PEXPIRE', KEYS[i], string.format('%.0f', window + lock))
end
return 0
"""
)

# KEYS: known, how many tallies there are of those that follow, then what is to be forgotten. ARGV: place, number of tallies, most, life (ms).
FORGIVE = (
    _CLOCK
    + """
for i = 2, #KEYS do
  if i > 1 + tonumber(ARGV[2]) then
    redis.call('DEL', KEYS[i])
  elseif redis.call('EXISTS', KEYS[i]) == 1 then
    if redis.call('HINCRBY', KEYS[i], 'n', -1) < 0 then redis.call('HSET', KEYS[i], 'n', '0') end
    redis.call('HDEL', KEYS[i], 'until')
  end
end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[3]))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
"""
)


def tries_key(what: str) -> str:
    return f"{PREFIX}:tries:{what}"


def known_key(account: str) -> str:
    return f"{PREFIX}:known:{account}"


class RedisFailures:
    """See :class:`cloche.throttle.failures.Failures`. Connects on first use, and again after a loss."""

    def __init__(self, url: str) -> None:
        try:
            # Any: redis-py types every answer as a union of what all protocol versions and decoders could give.
            self._client: Any = redis.Redis.from_url(
                url,
                decode_responses=True,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                retry=Retry(NoBackoff(), 1),
            )
        except ValueError as error:
            raise SettingsError(f"redis.url: {error}") from None
        self._attempt = self._client.register_script(ATTEMPT)
        self._forgive = self._client.register_script(FORGIVE)

    def wait_ms(self, account: str, place: str, tallies: Sequence[Tally]) -> int:
        return self._asked(account, place, tallies, 0)

    def attempt(self, account: str, place: str, tallies: Sequence[Tally]) -> int:
        return self._asked(account, place, tallies, 1)

    def forgive(self, account: str, place: str, tallies: Sequence[Tally], clear: Sequence[str] = ()) -> None:
        keys = [known_key(account), *(tries_key(tally.key) for tally in tallies), *(tries_key(key) for key in clear)]
        self._guarded(lambda: self._forgive(keys=keys, args=[place, len(tallies), KNOWN_MAX, KNOWN_MS]))

    def close(self) -> None:
        self._client.close()

    def _asked(self, account: str, place: str, tallies: Sequence[Tally], count: int) -> int:
        arguments: list[str | int] = [place, count]
        for tally in tallies:
            limit = tally.limit
            arguments += [int(tally.spares_known), limit.free, limit.base, limit.longest, limit.window]
        keys = [known_key(account), *(tries_key(tally.key) for tally in tallies)]
        return int(self._guarded(lambda: self._attempt(keys=keys, args=arguments)))

    def _guarded(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except redis.RedisError as error:  # away, loading, read-only, out of memory: all are waited out
            raise Unavailable(f"Redis does not answer ({error})") from error
