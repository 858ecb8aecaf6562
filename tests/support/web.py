"""The whole web app over real services: a migrated database, real keys and files; only the broker is the one in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from cloche import config, wiring
from cloche.db import migrate
from cloche.db.engine import check_home
from cloche.domain.permissions import Permission
from cloche.queueing.memory_broker import MemoryBroker
from cloche.services.container import Services
from cloche.web.app import create_app

ADMIN_PASSWORD = "correct horse battery"
PASSWORD = "another long password"
API = "/api/v1"


@dataclass
class Site:
    """The app, its services, and clients of several users. Each client is a browser or a program of its own."""

    app: Flask
    services: Services
    tokens: dict[str, str] = field(default_factory=dict)

    def client(self) -> FlaskClient:
        return self.app.test_client()

    def token(self, username: str = "admin", **body: Any) -> str:
        """A fresh token of the user, by name and password."""
        password = ADMIN_PASSWORD if username == "admin" else PASSWORD
        answer = self.client().post(f"{API}/tokens", json={"name": "test", **body}, auth=(username, password))
        assert answer.status_code == 201, answer.text
        return str(answer.get_json()["token"])

    def add(self, username: str, *roles: str) -> None:
        body = {"username": username, "password": PASSWORD, "roles": list(roles)}
        answer = self.client().post(f"{API}/users", json=body, headers=self.naming())
        assert answer.status_code == 201, answer.text

    def headers(self, username: str = "admin") -> dict[str, str]:
        if username not in self.tokens:
            self.tokens[username] = self.token(username)
        return {"Authorization": f"Bearer {self.tokens[username]}"}

    def naming(self) -> dict[str, str]:
        """Admin's, with a token that names every scope: what hands on power a token has only so."""
        if "admin, naming" not in self.tokens:
            self.tokens["admin, naming"] = self.token(scopes=sorted(Permission))
        return {"Authorization": f"Bearer {self.tokens['admin, naming']}"}

    def request(self, method: str, path: str, user: str = "admin", **options: Any) -> Any:
        """One request below ``/api/v1`` with the user's token."""
        headers = {**self.headers(user), **options.pop("headers", {})}
        return self.client().open(f"{API}{path}", method=method, headers=headers, **options)

    def browser(self, username: str = "admin") -> tuple[FlaskClient, str]:
        """A client with a session cookie, and its CSRF token."""
        client = self.client()
        password = ADMIN_PASSWORD if username == "admin" else PASSWORD
        answer = client.post(f"{API}/session", json={"username": username, "password": password})
        assert answer.status_code == 200, answer.text
        return client, str(answer.get_json()["csrf_token"])

    def upload(self, content: bytes = b"a,b\n1,2\n", name: str = "table.csv", user: str = "admin") -> dict[str, Any]:
        answer = self.request("POST", "/files", user, query_string={"name": name}, data=content)
        assert answer.status_code == 201, answer.text
        return dict(answer.json)


@contextmanager
def running_site(
    home: Path,
    plugins: Path | None = None,
    egress: dict[str, Any] | None = None,
    sandbox: dict[str, Any] | None = None,
    callbacks: dict[str, Any] | None = None,
    quota: dict[str, Any] | None = None,
    *,
    rate: dict[str, Any] | None = None,
    database: str | None = None,
    **server: Any,
) -> Iterator[Site]:
    """A site in an empty ``home``; ``database`` is the URL of one with the schema, else an SQLite file there; ``server`` changes its
    server settings."""
    settings = config.load(
        home=str(home),
        server=server,
        admin={"password": ADMIN_PASSWORD},
        egress=egress or {},
        sandbox=sandbox or {},
        callbacks=callbacks or {},
        rate=rate or {},
        quota=quota or {},
        **({"database": {"url": database}} if database else {}),
        **({"plugin": {"path": str(plugins)}} if plugins else {}),
    )
    check_home(settings.home)
    if database is None:
        migrate.upgrade(settings.database_url)
    services = wiring.build(settings, "test", broker=MemoryBroker())
    try:
        services.access.bootstrap()
        services.plugins.sync(services.access.default_tenant())
        yield Site(create_app(services), services)
    finally:
        services.close()


def problem(answer: Any, status: int, code: str | None = None) -> dict[str, Any]:
    """The answer's problem document, checked for what every one has."""
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/problem+json"
    body: dict[str, Any] = json.loads(answer.text)
    assert body["status"] == status
    assert body["request_id"] == answer.headers["X-Request-ID"]
    assert {"type", "title", "detail", "code"} <= body.keys()
    assert "Traceback" not in answer.text
    if code is not None:
        assert body["code"] == code
    return body


def where(body: dict[str, Any]) -> set[str]:
    """Every pointer and parameter a problem names."""
    return {item.get("pointer", item.get("parameter")) for item in body.get("errors", [])}
