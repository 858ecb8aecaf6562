"""Failed sign-ins: whom they make wait, and for how long.

Counted are the account at an address (strictly), the address (for whatever account), and the account from wherever (loosely, and never at an
address from which it has signed in before: a stranger cannot keep the owner out). Shared by all processes through Redis; while that is away
each process counts by itself, and allows half.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from cloche import logs
from cloche.domain.addresses import peer
from cloche.errors import RateLimited, Unavailable
from cloche.throttle.failures import Failures, Limit, MemoryFailures, Tally

T = TypeVar("T")
_log = logs.get(__name__)
_MINUTE = 60_000
PER_PLACE = Limit(free=10, base=_MINUTE, longest=60 * _MINUTE, window=15 * _MINUTE)  # one account, one address
PER_ADDRESS = Limit(free=100, base=_MINUTE, longest=60 * _MINUTE, window=15 * _MINUTE)  # whatever the account
PER_ACCOUNT = Limit(free=100, base=5_000, longest=_MINUTE, window=15 * _MINUTE)  # from wherever
STRICTER = 2  # while every process counts by itself
_AWAY_S = 5.0  # Redis is not asked again so soon after it did not answer
_IPV6_SITE = 64  # bits; who has one address of IPv6 has all those beside it


def place_of(ip: str | None) -> str:
    """What an address counts as: itself, of IPv6 its /64; an IPv4 address in IPv6's clothes is the IPv4 one."""
    address = peer((ip or "").partition("%")[0])
    if address is None:
        return "local"
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address) >> _IPV6_SITE << _IPV6_SITE, _IPV6_SITE)))
    return str(address)


class Lockout:
    """Safe from any thread. ``key`` (the same in all processes) turns names into what is stored; ``shared`` None: this process alone counts."""

    def __init__(
        self, shared: Failures | None = None, *, key: bytes | None = None, alone: Failures | None = None
    ) -> None:
        self._shared = shared
        self._alone = alone or MemoryFailures()
        self._key = key or secrets.token_bytes(32)
        self._away_until = 0.0

    def check(self, account: str, ip: str | None) -> None:
        """Call before anything is done for a sign-in.

        Raises:
            RateLimited: too many have failed; it says when to try again.
        """
        self._ask(account, ip, lambda failures, *try_: failures.wait_ms(*try_))

    def attempt(self, account: str, ip: str | None) -> None:
        """Call before a password is looked at: it counts as failed until :meth:`succeeded` is called.

        Raises:
            RateLimited: see :meth:`check`; nothing is counted then.
        """
        self._ask(account, ip, lambda failures, *try_: failures.attempt(*try_))

    def succeeded(self, account: str, ip: str | None) -> None:
        """The password was right: the account's failures from this address are forgotten, and the address is known."""
        who, place, tallies = self._try(account, ip)
        self._with(lambda failures, limits: failures.forgive(who, place, limits, [tallies[0].key]), tallies)

    def cleared(self, account: str) -> None:
        """The account has a new password: nobody waits any more for what was tried with the old one from wherever."""
        who, _, tallies = self._try(account, None)
        self._with(lambda failures, _: failures.forgive(who, "reset", [], [tallies[1].key]), tallies)

    def _ask(self, account: str, ip: str | None, ask: Callable[..., int]) -> None:
        who, place, tallies = self._try(account, ip)
        wait = self._with(lambda failures, limits: ask(failures, who, place, limits), tallies)
        if wait > 0:
            raise RateLimited("Too many failed sign-ins. Try again later.", retry_after=-(-wait // 1000))

    def _try(self, account: str, ip: str | None) -> tuple[str, str, list[Tally]]:
        place = place_of(ip)
        who, where = self._hidden("account", account), self._hidden("address", place)
        pair = self._hidden("place", f"{account}\0{place}")
        return (
            who,
            where,
            [Tally(pair, PER_PLACE), Tally(who, PER_ACCOUNT, spares_known=True), Tally(where, PER_ADDRESS)],
        )

    def _hidden(self, kind: str, text: str) -> str:
        return hmac.digest(self._key, f"{kind}\0{text}".encode("utf-8", "surrogatepass"), "sha256").hex()[:32]

    def _with(self, call: Callable[[Failures, list[Tally]], T], tallies: list[Tally]) -> T:
        if self._shared is None:
            return call(self._alone, tallies)
        if time.monotonic() >= self._away_until:
            try:
                return call(self._shared, tallies)
            except Unavailable as error:
                self._away_until = time.monotonic() + _AWAY_S
                _log.warning("failed sign-ins are counted by this process alone", error=str(error))
        strict = [replace(tally, limit=tally.limit.stricter(STRICTER)) for tally in tallies]
        return call(self._alone, strict)
