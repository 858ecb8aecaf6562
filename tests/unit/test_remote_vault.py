from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloche.errors import EnvironmentProblem, PlatformFailure
from cloche.staging.vault import OptionVault

OPTIONS = {"url": "https://x", "pass": "geheim ü"}


def test_round_trip_hides_everything(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "remotes.key"
    sealed = OptionVault.load_or_create(path).seal("t", "dav", OPTIONS)
    assert b"geheim" not in sealed
    assert b"url" not in sealed
    assert OptionVault.load_or_create(path).open("t", "dav", sealed) == OPTIONS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sealed != OptionVault.load_or_create(path).seal("t", "dav", OPTIONS)


@pytest.mark.parametrize(("tenant", "name"), [("other", "dav"), ("t", "dav2"), ("t\0dav", "")])
def test_a_row_moved_elsewhere_does_not_open(tmp_path: Path, tenant: str, name: str) -> None:
    vault = OptionVault.load_or_create(tmp_path / "k")
    sealed = vault.seal("t", "dav", OPTIONS)
    with pytest.raises(PlatformFailure):
        vault.open(tenant, name, sealed)


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b"\x02" + b[1:], lambda b: b"", lambda b: b[:20] + bytes([b[20] ^ 1]) + b[21:]],
)
def test_a_changed_row_does_not_open(tmp_path: Path, damage) -> None:
    vault = OptionVault.load_or_create(tmp_path / "k")
    with pytest.raises(PlatformFailure):
        vault.open("t", "dav", damage(vault.seal("t", "dav", OPTIONS)))


def test_processes_that_start_at_once_agree_on_the_key(tmp_path: Path) -> None:
    path = tmp_path / "k"
    with ThreadPoolExecutor(8) as pool:
        vaults = list(pool.map(lambda _: OptionVault.load_or_create(path), range(8)))
    sealed = vaults[0].seal("t", "dav", OPTIONS)
    assert all(vault.open("t", "dav", sealed) == OPTIONS for vault in vaults)
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "k"
    OptionVault.load_or_create(path)
    path.chmod(0o640)
    with pytest.raises(EnvironmentProblem, match="chmod 600"):
        OptionVault.load_or_create(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(EnvironmentProblem, match="damaged"):
        OptionVault.load_or_create(path)
