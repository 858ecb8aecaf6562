"""Passwords and user names: the rules for new ones, and argon2id behind a semaphore."""

from __future__ import annotations

import os
import re
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import Type

from cloche.errors import Invalid, Problem, Unavailable

MIN_PASSWORD = 12  # characters
MAX_PASSWORD = 1_024  # characters; longer ones only cost time
_USERNAME = re.compile(r"^[a-z0-9][a-z0-9._-]{1,62}\Z")
_WAIT_S = 10.0


class PasswordVault:
    """Hashes and verifies passwords (OWASP's argon2id minimum: 19 MiB, 2 passes, 1 lane). Safe from any thread.

    At most ``parallel`` hashes run at once, so that a burst of sign-ins takes neither all cores nor all memory.
    """

    def __init__(self, parallel: int | None = None) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1, type=Type.ID)
        self._turns = threading.BoundedSemaphore(parallel or max(1, (os.cpu_count() or 1) // 2))
        self._decoy = self._hasher.hash(os.urandom(16).hex())

    def hash(self, password: str) -> str:
        """The encoded argon2id hash.

        Raises:
            Unavailable: too many hashes are being computed already.
        """
        with self._turn():
            return self._hasher.hash(password)

    def verify(self, stored: str | None, password: str) -> bool:
        """Whether the password fits. ``stored`` None (no such user) costs the same time and is False.

        Raises:
            Unavailable: see :meth:`hash`.
        """
        with self._turn():
            try:
                return self._hasher.verify(stored or self._decoy, password[: MAX_PASSWORD + 1]) and stored is not None
            except (VerificationError, InvalidHashError):
                return False

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._turns.acquire(timeout=_WAIT_S):
            raise Unavailable("too many sign-ins at once", retry_after=5)
        try:
            yield
        finally:
            self._turns.release()


def fold_username(text: str) -> str:
    """The form in which names are stored and compared: NFKC, case folded."""
    return unicodedata.normalize("NFKC", text).casefold()


def check_username(text: str) -> str:
    """The folded name.

    Raises:
        Invalid: the folded name has other characters than a user name may have.
    """
    name = fold_username(text)
    if not _USERNAME.match(name):
        detail = "a user name has 2 to 63 of a-z, 0-9, '.', '_' and '-', and begins with a letter or digit"
        raise Invalid("The user name cannot be used.", problems=[Problem("/username", detail)])
    return name


def check_password(text: str) -> None:
    """Refuse a password that is too short or too long.

    Raises:
        Invalid: with a pointer; the message never repeats the password.
    """
    if not MIN_PASSWORD <= len(text) <= MAX_PASSWORD:
        detail = f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters"
        raise Invalid("The password cannot be used.", problems=[Problem("/password", detail)])
