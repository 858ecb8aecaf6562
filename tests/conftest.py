"""Fixtures that several areas share. Anything with a service of its own lives in tests/support."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog

from cloche.db.engine import Database
from tests.support import postgres, stores

STORES = ("sqlite", "postgresql")


def pytest_addoption(parser):
    parser.addoption("--ugly-jobs", type=int, metavar="N", help="how many jobs tests/acceptance/test_ugly_jobs.py runs")


@pytest.fixture(scope="session")
def valkey_server():
    with stores.running_valkey() as server:
        yield server


@pytest.fixture
def valkey(valkey_server):
    """A flushed server, shared by the session's tests."""
    valkey_server.flush()
    return valkey_server


@pytest.fixture(scope="session")
def postgres_server():
    with postgres.running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory):
    """A migrated SQLite file to copy."""
    return stores.sqlite_template(tmp_path_factory.mktemp("template"))


@contextmanager
def _store(request, folder):
    if request.param == "postgresql":
        with request.getfixturevalue("postgres_server").database() as url:
            yield url
    else:
        shutil.copyfile(request.getfixturevalue("sqlite_template"), folder / "cloche.db")
        yield f"sqlite:///{folder / 'cloche.db'}"


@pytest.fixture(params=STORES)
def database_url(request, tmp_path):
    """The URL of an empty database with the schema; the test runs once for each kind."""
    with _store(request, tmp_path) as url:
        yield url


@pytest.fixture(scope="module", params=STORES)
def module_database_url(request, tmp_path_factory):
    """As ``database_url``, for all tests of a module."""
    with _store(request, tmp_path_factory.mktemp("store")) as url:
        yield url


@pytest.fixture
def db(database_url):
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def tenant(db):
    return stores.add_tenant(db)


@pytest.fixture
def admin(db, tenant):
    return stores.add_actor(db, tenant, "alma")


@pytest.fixture
def home():
    """An empty home directory with a short path."""
    with stores.short_folder() as folder:
        yield folder


@pytest.fixture(autouse=True)
def logs_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module's logger is kept from its first use on, with the stream and the level of then: not from one test to the next."""
    configure = structlog.configure
    monkeypatch.setattr(
        structlog, "configure", lambda **given: configure(**given | {"cache_logger_on_first_use": False})
    )
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
