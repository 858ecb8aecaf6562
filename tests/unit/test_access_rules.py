"""Names, passwords and the lockout, without a database."""

from __future__ import annotations

import pytest

from cloche.errors import Invalid, RateLimited
from cloche.services import lockout
from cloche.services.lockout import PER_ACCOUNT, PER_ADDRESS, WINDOW_MS, Lockout
from cloche.services.passwords import PasswordVault, check_password, check_username


@pytest.mark.parametrize(
    ("given", "kept"), [("Anna", "anna"), ("ＡＮＮＡ", "anna"), ("a.b_c-9", "a.b_c-9"), ("9x", "9x")]
)
def test_names_are_folded(given, kept):
    assert check_username(given) == kept


@pytest.mark.parametrize("given", ["", "a", "-ab", ".ab", "a b", "a\x00b", "a/b", "änne", "x" * 64, "a\n", "аdmin"])
def test_names_that_are_refused(given):
    with pytest.raises(Invalid) as caught:
        check_username(given)
    assert caught.value.problems[0].pointer == "/username"


@pytest.mark.parametrize("given", ["", "short", "x" * 11, "x" * 1_025])
def test_passwords_that_are_refused(given):
    with pytest.raises(Invalid) as caught:
        check_password(given)
    assert given == "" or given not in str(caught.value) + caught.value.problems[0].detail


def test_the_vault_knows_its_own_and_nothing_else():
    vault = PasswordVault(1)
    stored = vault.hash("correct horse battery")
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert vault.verify(stored, "correct horse battery")
    assert not vault.verify(stored, "correct horse batterx")
    assert not vault.verify(None, "correct horse battery")
    assert not vault.verify("damaged", "correct horse battery")


class Clock:
    now = 0

    def __call__(self):
        return self.now


def test_ten_failures_lock_one_account_from_one_address():
    clock = Clock()
    guard = Lockout(clock)
    for _ in range(PER_ACCOUNT):
        guard.check("anna", "192.0.2.1")
        guard.failed("anna", "192.0.2.1")
    with pytest.raises(RateLimited) as caught:
        guard.check("anna", "192.0.2.1")
    assert caught.value.retry_after == WINDOW_MS // 1000
    guard.check("anna", "192.0.2.2")
    guard.check("berta", "192.0.2.1")
    clock.now = WINDOW_MS
    guard.check("anna", "192.0.2.1")


def test_a_success_forgets_the_accounts_failures():
    guard = Lockout(Clock())
    for _ in range(PER_ACCOUNT - 1):
        guard.failed("anna", "a")
    guard.succeeded("anna", "a")
    guard.failed("anna", "a")
    guard.check("anna", "a")


def test_an_address_that_tries_many_names_is_locked_too():
    guard = Lockout(Clock())
    for n in range(PER_ADDRESS):
        guard.failed(f"name-{n}", "a")
    with pytest.raises(RateLimited):
        guard.check("never-tried", "a")


def test_the_lockouts_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(lockout, "_MAX_KEYS", 50)
    guard = Lockout(Clock())
    for n in range(500):
        guard.failed(f"name-{n}", f"address-{n}")
    assert len(guard._failures) == 50
