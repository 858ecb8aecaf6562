"""Fixtures that several areas share. Anything with a service of its own lives in tests/support."""

from __future__ import annotations

import pytest

from tests.support import stores


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


@pytest.fixture
def db(tmp_path):
    database = stores.migrated(tmp_path)
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
