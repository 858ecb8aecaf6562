"""People who ask: signed in as in a browser, in whichever of their tenants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flask.testing import FlaskClient

from tests.support.web import API, PASSWORD, Site


@dataclass
class Person:
    """A signed-in user. ``tenant``: the name of the one to act in; None is the first of theirs."""

    client: FlaskClient
    csrf: str
    tenant: str | None = None

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """One request below ``/api/v1``."""
        headers = {"X-CSRFToken": self.csrf, **options.pop("headers", {})}
        if self.tenant is not None:
            headers["X-Cloche-Tenant"] = self.tenant
        return self.client.open(f"{API}{path}", method=method, headers=headers, **options)

    def got(self, path: str, status: int = 200) -> Any:
        answer = self.ask("GET", path)
        assert answer.status_code == status, answer.text
        return answer.json

    def change(self, method: str, path: str, json: Any = None, *, match: str = "*", etag_of: str | None = None) -> Any:
        """A request with ``If-Match``; ``etag_of``: the address whose present ETag that is."""
        if etag_of is not None:
            match = self.ask("GET", etag_of).headers["ETag"]
        return self.ask(method, path, json=json, headers={"If-Match": match})

    def made(self, path: str, **body: Any) -> Any:
        answer = self.ask("POST", path, json=body)
        assert answer.status_code == 201, answer.text
        return answer.json

    def within(self, tenant: str) -> Person:
        return Person(self.client, self.csrf, tenant)


def sign_in(site: Site, username: str = "admin", tenant: str | None = None) -> Person:
    return Person(*site.browser(username), tenant)


def add(chief: Person, username: str, *roles: str) -> str:
    """A new person in the chief's tenant; their id. The password is ``PASSWORD``."""
    return str(chief.made("/users", username=username, password=PASSWORD, roles=list(roles))["id"])


def add_tenant(root: Person, name: str, admin: str = "admin") -> str:
    return str(root.made("/tenants", name=name, admin=admin)["id"])


def submit(person: Person) -> str:
    """A job of the person's, which waits because no worker runs; its id."""
    stored = person.ask("POST", "/files", query_string={"name": "table.csv"}, data=b"a,b\n1,2\n")
    body = {"type": "csv_profile", "inputs": [{"from": f"artifact:{stored.json['id']}"}]}
    answer = person.ask("POST", "/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json["id"])
