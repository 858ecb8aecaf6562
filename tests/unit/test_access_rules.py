"""Names and passwords, without a database."""

from __future__ import annotations

import pytest

from cloche.domain.names import checked_username
from cloche.errors import Invalid
from cloche.services.passwords import PasswordVault, check_password


@pytest.mark.parametrize(
    ("given", "kept"), [("Anna", "anna"), ("ＡＮＮＡ", "anna"), ("a.b_c-9", "a.b_c-9"), ("9x", "9x")]
)
def test_names_are_folded(given, kept):
    assert checked_username(given) == kept


@pytest.mark.parametrize("given", ["", "a", "-ab", ".ab", "a b", "a\x00b", "a/b", "änne", "x" * 64, "a\n", "аdmin"])
def test_names_that_are_refused(given):
    with pytest.raises(Invalid) as caught:
        checked_username(given)
    assert caught.value.problems[0].pointer == "/username"


@pytest.mark.parametrize(
    "given",
    [
        "",
        "short",
        "x" * 11,
        "ä" * 513,  # more than 1,024 bytes
        "long enough \ud800",  # no text of Unicode
        "password12345",
        "P@ssw0rd-2026!",
        "PASSWORDPASSWORD",
        "drowssap12345",
        "qwertyuiop123",
        "correct horse battery staple",
        "aaaaaaaaaaaa",
        "abcabcabcabcab",
        "123456789012345",
        "9876543210987",
        "abcdefghijklmno",
    ],
)
def test_passwords_that_are_refused(given):
    with pytest.raises(Invalid) as caught:
        check_password(given)
    assert given == "" or given not in str(caught.value) + caught.value.problems[0].detail


@pytest.mark.parametrize("given", ["anna.meier", "Anna.Meier-2026", "xANNA.MEIERx", "anna.meieranna.meier"])
def test_a_password_is_more_than_the_users_name(given):
    with pytest.raises(Invalid):
        check_password(given, minimum=8, username="anna.meier")


@pytest.mark.parametrize(
    "given", ["another long password", "x7Kq2mVb9wPz", "é" * 6 + "ö" * 6, "anna.meier likes rain", "word " * 200]
)
def test_passwords_that_are_taken(given):
    check_password(given, username="anna.meier")


def test_how_long_a_password_is_at_least_is_a_setting():
    check_password("x7Kq2mVb", minimum=8)
    with pytest.raises(Invalid, match="password"):
        check_password("x7Kq2mVb9wPz", minimum=16)


def test_the_vault_knows_its_own_and_nothing_else():
    vault = PasswordVault(1)
    stored = vault.hash("correct horse battery")
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert vault.verify(stored, "correct horse battery")
    assert not vault.verify(stored, "correct horse batterx")
    assert not vault.verify(None, "correct horse battery")
    assert not vault.verify("damaged", "correct horse battery")


def test_the_vault_hashes_for_nobody_as_for_somebody(monkeypatch):
    vault = PasswordVault(1)
    stored, looked_at = vault.hash("correct horse battery"), []
    hasher = vault._hasher

    class Counting:
        def verify(self, encoded, password):
            looked_at.append(encoded)
            return hasher.verify(encoded, password)

    monkeypatch.setattr(vault, "_hasher", Counting())
    for known, given in ((stored, "wrong"), (None, "wrong"), ("!", "wrong"), (stored, "x" * 2_000), (stored, "\ud800")):
        assert not vault.verify(known, given)
    assert len(looked_at) == 5
    assert all(encoded.startswith("$argon2id$v=19$m=19456,t=2,p=1$") for encoded in looked_at)
