"""Passwords: the rules for new ones, and argon2id for few at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import Type

from cloche.domain.names import fold
from cloche.errors import Invalid, Problem
from cloche.services.turns import Turns

MIN_PASSWORD = 12  # characters, unless the settings say otherwise
MAX_PASSWORD = 1_024  # bytes; longer ones only cost time
_BESIDE_NAME = 8  # characters that a password has beside the user's name
_COMMON = Path(__file__).with_name("common_passwords.txt")
# What people write for a letter, and how often a piece may be repeated to make a password.
_LETTERS = str.maketrans({"0": "o", "1": "l", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "!": "i"})
_LONGEST_PIECE = 4
_WAITING = 8
_NICE = 10
_ENCODED = "$argon2id$"


class PasswordVault:
    """Hashes and verifies passwords (OWASP's argon2id minimum: 19 MiB, 2 passes, 1 lane). Safe from any thread.

    At most ``parallel`` hashes run at once and ``waiting`` wait, so that a burst of sign-ins takes neither all cores, nor all memory, nor
    all the threads that answer requests. Those that hash are of their own, and give way to the others.
    """

    def __init__(self, parallel: int | None = None, waiting: int = _WAITING) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1, type=Type.ID)
        parallel = parallel or max(1, (os.cpu_count() or 1) // 2)
        self._turns = Turns(parallel, waiting)
        self._hashing = ThreadPoolExecutor(parallel, thread_name_prefix="password", initializer=_give_way)
        self._decoy = self._hasher.hash(os.urandom(16).hex())

    def hash(self, password: str) -> str:
        """The encoded argon2id hash.

        Raises:
            Unavailable: too many hashes are asked for already.
        """
        with self._turns.turn():
            return self._hashing.submit(self._hasher.hash, password).result()

    def verify(
        self, stored: str | None, password: str, *, place: str = "", first: Callable[[], None] = lambda: None
    ) -> bool:
        """Whether the password fits. ``stored`` None (no such user, or one without a password) costs the same time and is False.

        ``place``: who asks, for the order in which those who wait have their turn. ``first`` is called when it has come; what it raises
        is raised, and nothing hashed.

        Raises:
            Unavailable: see :meth:`hash`.
        """
        # One that nobody can have takes as long as another one.
        known = stored if (stored or "").startswith(_ENCODED) and _size(password) <= MAX_PASSWORD else None
        with self._turns.turn(place):
            first()
            fits = self._hashing.submit(self._fits, known or self._decoy, password if known else "").result()
        return fits and known is not None

    def _fits(self, encoded: str, password: str) -> bool:
        try:
            return self._hasher.verify(encoded, password)
        except (VerificationError, InvalidHashError):
            return False


def _give_way() -> None:
    """Let the system run this thread when no other one of ours wants to run: who signs in waits for tens of milliseconds anyway."""
    with suppress(OSError, AttributeError):  # on systems where threads have no priority of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def check_password(text: str, *, minimum: int = MIN_PASSWORD, username: str = "", pointer: str = "/password") -> None:
    """Refuse a password that is too short or too long, that is tried first by those who guess, or that is little more than the user's name.

    Raises:
        Invalid: with a pointer; the message never repeats the password.
    """
    if len(text) < minimum or _size(text) > MAX_PASSWORD:
        detail = f"a password has at least {minimum} characters and at most {MAX_PASSWORD} bytes"
    elif is_common(text):
        detail = "this is one of the passwords that are tried first; take one that nobody would guess"
    elif _is_name(text, username):
        detail = "a password is more than the user's name"
    else:
        return
    raise Invalid("The password cannot be used.", problems=[Problem(pointer, detail)])


def is_common(text: str) -> bool:
    """Whether it is a common password, one with usual changes (letters as digits, something appended), a piece repeated or a row of characters."""
    plain = fold(text)
    core = plain.strip("0123456789!?.,:;#*+-_@$%& ")
    spelled = plain.translate(_LETTERS)
    forms = {plain, core, spelled, core.translate(_LETTERS), plain[::-1], core[::-1]}
    return not forms.isdisjoint(_common()) or _repeated(plain) or _row(plain)


@lru_cache(maxsize=1)
def _common() -> frozenset[str]:
    return frozenset(_COMMON.read_text("utf-8").splitlines())


def _repeated(text: str) -> bool:
    return any(text == (text[:n] * len(text))[: len(text)] for n in range(1, _LONGEST_PIECE + 1))


def _row(text: str) -> bool:
    """Nothing but characters that follow each other, such as 23456789 or zyxwvu."""
    steps = {ord(after) - ord(before) for before, after in pairwise(text)}
    return len(text) > 1 and (steps <= {1, -9} or steps <= {-1, 9})


def _is_name(text: str, username: str) -> bool:
    name = fold(username)
    return len(name) > 2 and name in (plain := fold(text)) and len(plain.replace(name, "")) < _BESIDE_NAME


def _size(text: str) -> int:
    """Bytes; a text that is no text of Unicode is longer than any."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return MAX_PASSWORD + 1
