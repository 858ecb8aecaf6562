"""Settings: every one documented, unknown ones refused, secrets never shown."""

from pathlib import Path

import pytest

from cloche import config
from cloche.errors import SettingsError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in config.environment_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_every_setting_is_documented_with_its_own_words():
    shown = (ROOT / "docs" / "settings.md").read_text()
    for name, description in config.environment_names().items():
        assert f"`{name}`" in shown, name
        assert description, f"{name} needs a description"
        assert description in shown, name


@pytest.mark.parametrize("name", ["CLOCHE_PROT", "CLOCHE_SERVER_PROT", "CLOCHE_WORKER"])
def test_a_misspelt_name_in_the_environment_is_refused(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError):
        config.load()


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("a.toml", "[server]\nprot = 1\n", "prot"),
        ("b.yaml", "sever: {port: 1}\n", "sever"),
        ("c.toml", "[server\n", "well formed"),
        ("d.toml", "[server]\nport = 'x'\n", "port"),
        ("e.yaml", "- 1\n", "table"),
    ],
)
def test_a_wrong_file_is_refused_in_words(tmp_path, file, text, word):
    (tmp_path / file).write_text(text)
    with pytest.raises(SettingsError, match=word):
        config.load(config=str(tmp_path / file))


def test_a_named_file_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(SettingsError, match="cannot read"):
        config.load(config=str(tmp_path / "none.toml"))


def test_sources_in_order_of_strength(tmp_path, monkeypatch):
    (tmp_path / "c.toml").write_text("[server]\nport = 1\nhost = '::1'\n[worker]\nslots = 3\n")
    monkeypatch.setenv("CLOCHE_CONFIG", str(tmp_path / "c.toml"))
    monkeypatch.setenv("CLOCHE_SERVER_PORT", "2")
    settings = config.load(worker={"slots": 5})
    assert (settings.server.port, settings.server.host, settings.worker.slots) == (2, "::1", 5)
    assert config.load(server={"port": 7}).server.port == 7


def test_durations_and_sizes_are_written_as_people_write_them(monkeypatch):
    monkeypatch.setenv("CLOCHE_WORKER_GRACE", "1.5m")
    monkeypatch.setenv("CLOCHE_SERVER_MAX_UPLOAD", "2GB")
    settings = config.load()
    assert (settings.worker.grace, settings.server.max_upload) == (90_000, 2 << 30)


def test_printing_shows_no_secret(monkeypatch):
    monkeypatch.setenv("CLOCHE_ADMIN_PASSWORD", "correct horse battery")
    monkeypatch.setenv("CLOCHE_DATABASE_URL", "postgresql://u:battery@host/x")
    monkeypatch.setenv("CLOCHE_REDIS_URL", "redis://:staple@host")
    settings = config.load()
    assert not {word for word in ("horse", "battery", "staple") if word in f"{settings!r} {settings.model_dump()}"}
    assert settings.database_url == "postgresql://u:battery@host/x"
