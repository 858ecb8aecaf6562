"""Who sees which page, and may send which form, about whose: every address of the dashboard × every caller × own, other tenant's and missing.

The table is ``page_table.csv``, in the manner of ``route_table.csv``; the callers come with the cookie of a session, as browsers do. A cell is the
status that is answered, or ``sign-in`` where one is sent there. Whoever adds a page runs
``python -m tests.security.page_table --draw`` and reads its lines.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flask.testing import FlaskClient
from sqlalchemy import select, update

from cloche.db import tables as t
from cloche.web.dashboard.blueprint import PAGES
from cloche.web.dashboard.site import Page
from tests.security import objects
from tests.security.objects import FIXED, MAKERS, ROLES, Caller, Kind, Maker, World
from tests.security.route_table import MISSING, NONE, OTHER, OWN, Cell, Row, Walk, plain
from tests.support.web import running_site

TABLE = Path(__file__).with_name("page_table.csv")
CALLERS = ("anonymous", *ROLES, "custom", "platform")
CUSTOM = ("job:read", "queue:read")  # what somebody with a role of the tenant's own may do
SIGN_IN = "sign-in"
_PARAMETER = re.compile(r"<(?:path:)?(\w+)>")
_CSRF = re.compile(r'name="csrf_token"[^>]*value="([^"]+)"')

# Pages below what the API calls otherwise.
KINDS: dict[str, Kind] = MAKERS | {
    "/account/sessions/{session_id}": MAKERS["/sessions/{session_id}"],
    "/account/tokens/{token_id}": MAKERS["/tokens/{token_id}"],
    "/audit/{event_id}": MAKERS["/audit/{event}"],
}


def platform_admin(world: World, actor: Any) -> str:
    user_id = objects.user(world, actor)
    world.db.write(
        lambda c: c.execute(update(t.user).where(t.user.c.id == user_id).values(platform_admin=True)).rowcount
    )
    return user_id


def disabled(world: World, actor: Any) -> str:
    user_id = objects.user(world, actor)
    world.db.write(lambda c: c.execute(update(t.user).where(t.user.c.id == user_id).values(disabled=True)).rowcount)
    return user_id


# Where a form wants its object in a state of its own to succeed.
SPECIAL: dict[str, Maker] = {
    "POST /jobs/{job_id}/retry": objects.failed_job,
    "POST /batches/{batch_id}/retry": objects.failed_batch,
    "POST /tenants/{tenant_id}/resume": objects.suspended_tenant,
    "POST /tenants/{tenant_id}/empty": objects.suspended_tenant,
    "POST /tenants/{tenant_id}/delete": objects.suspended_tenant,
    "GET /users/{user_id}/tokens/new": objects.service,
    "POST /users/{user_id}/tokens/new": objects.service,
    "POST /users/{user_id}/tokens/{token_id}/revoke": objects.user_with_token,
    "POST /users/{user_id}/dismiss": platform_admin,
    "POST /users/{user_id}/enable": disabled,
}
Form = dict[str, Any]
Filled = Callable[[World, str], Form]


def _versioned(table: Any, key: str, column: str = "version", **values: Any) -> Filled:
    """The form with the version that its object has now."""

    def fill(world: World, target: str) -> Form:
        at = world.db.read(lambda c: c.scalar(select(table.c[column]).where(table.c[key] == target)))
        return {"version": str(at or 1), **values}

    return fill


def _policy(world: World, _target: str) -> Form:
    here = t.egress_policy.c.tenant_id == world.colleague.actor.tenant_id
    at = world.db.read(lambda c: c.scalar(select(t.egress_policy.c.version).where(here)))
    return {"version": str(at or 0), "allow": "pypi.org:443"}


_of_user, _of_tenant = _versioned(t.user, "id"), _versioned(t.tenant, "id")
_TOKEN = {"name": "ci", "expires_in": "7d", "reach": "these", "permission": ["job:read"], "addresses": ""}
FORMS: dict[str, Filled] = {
    "POST /submit": lambda w, _t: {
        "plugin": "text_stats@1.0.0",
        "payload": "{}",
        "keep": [w.job()["inputs"][0]["from"].removeprefix("artifact:")],
    },
    "POST /plugins/{name}/{version}/state": _versioned(t.plugin_version, "name", "revision", state="enabled"),
    "POST /queues/{name}/pause": lambda _w, _t: {"scope": "tenant"},
    "POST /queues/{name}/resume": lambda _w, _t: {"scope": "tenant"},
    "POST /users/{user_id}/roles": _versioned(t.user, "id", role=["viewer"]),
    **{f"POST /users/{{user_id}}/{act}": _of_user for act in ("disable", "enable", "remove", "appoint", "dismiss")},
    "POST /users/new": lambda w, _t: {
        "kind": "person",
        "username": f"u{next(w.numbers)}",
        "password": "a password of some length",
        "role": ["viewer"],
    },
    "POST /users/{user_id}/tokens/new": lambda _w, _t: _TOKEN,
    "POST /roles/new": lambda w, _t: {"name": f"r{next(w.numbers)}", "permission": ["job:read"]},
    "POST /roles/{name}/change": _versioned(t.role, "name", permission=["job:read"]),
    "POST /roles/{name}/delete": _versioned(t.role, "name"),
    "POST /secrets/new": lambda w, _t: {"name": f"N{next(w.numbers)}", "value": "a value of some length"},
    "POST /secrets/{name}/value": _versioned(t.secret, "name", value="another value"),
    "POST /secrets/{name}/grants": _versioned(t.secret, "name", grants="text_stats *"),
    "POST /secrets/{name}/delete": _versioned(t.secret, "name"),
    "POST /egress/set": _policy,
    "POST /tenants/{tenant_id}/quota/set": lambda _w, _t: {"version": "0", "jobs": "70"},
    "POST /users/{user_id}/quota/set": lambda _w, _t: {"version": "0", "jobs": "7"},
    "POST /tenants/new": lambda w, _t: {"name": f"t{next(w.numbers)}"},
    **{f"POST /tenants/{{tenant_id}}/{act}": _of_tenant for act in ("suspend", "resume", "delete")},
    "POST /tenants/{tenant_id}/empty": lambda w, target: {**_of_tenant(w, target), "confirm": w.suspended},
    "POST /account/password": lambda _w, _t: {"current_password": "x", "new_password": "a" * 20, "again": "b" * 20},
    "POST /account/tenant": lambda _w, _t: {"tenant": objects.MARK},
    "POST /account/tokens/new": lambda _w, _t: _TOKEN,
    "POST /sign-in": lambda _w, _t: {"username": "nobody", "password": "no password at all"},
    "POST /password-reset": lambda _w, _t: {"code": "cloche_reset_x_y", "new_password": "a" * 20, "again": "a" * 20},
}
ENDS = ("POST /sign-out", "POST /account/tenant")  # after these one signs in anew: one is out, or elsewhere


def declared() -> dict[str, Page]:
    """Every page by method and template, below ``/ui``."""
    return {f"{method} {template_of(page)}": page for page in PAGES for method in page.methods}


def template_of(page: Page) -> str:
    return _PARAMETER.sub(r"{\1}", page.path.removeprefix("/ui")) or "/"


def kind_of(page: Page) -> Kind | None:
    """What the address names.

    Raises:
        LookupError: nobody has said how such an object is made.
    """
    template = template_of(page)
    if "{" not in template or page.name == "missing":
        return None
    fitting = [path for path in KINDS if f"{template}/".startswith(f"{path}/")]
    if not fitting:
        raise LookupError(f"{template}: say in KINDS of tests/security/page_table.py how to make what its path names")
    return KINDS[max(fitting, key=len)]


def whose(page: Page) -> tuple[str, ...]:
    kind = kind_of(page)
    if kind is None:
        return (NONE,)
    return (OWN, MISSING) if kind.shared else (OWN, OTHER, MISSING)


class PageWalk:
    """Makes the requests, each caller with a browser of their own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.walk = Walk(world)
        self.callers = dict(world.callers)
        self.callers["custom"] = world.custom("custom", CUSTOM)
        self.browsers: dict[str, tuple[FlaskClient, str]] = {}

    def ask(self, key: str, page: Page, name: str, owner: str) -> Cell:
        """The answer; ``status`` is 0 where one is sent to sign in."""
        caller, kind, method = self.callers[name], kind_of(page), key.partition(" ")[0]
        make = SPECIAL.get(key, kind.make) if kind is not None else None
        target = self.walk.target(kind, make, caller, owner)
        path = _PARAMETER.sub(lambda found: FIXED.get(found[1], target), page.path)
        path = "/ui/nothing/here" if page.name == "missing" else path
        client, csrf = self._browser(name, caller)
        with client.session_transaction() as session:
            session.pop("said", None)  # what the form before this one says of itself on the next page
        sent = None if method == "GET" else {**FORMS.get(key, _nothing)(self.world, target), "csrf_token": csrf}
        with client.open(path, method=method, data=sent, headers={"Accept": "text/html"}, buffered=False) as answer:
            stream = answer.mimetype == "text/event-stream"
            text = "" if stream else answer.get_data(as_text=True)
            where = answer.headers.get("Location", "")
            if key in ENDS:
                self.browsers.pop(name, None)
            elif method != "GET" and answer.status_code < 400:
                self.walk.used(target)
            away = where.startswith("/ui/sign-in") and page.name != "sign_out"
            return Cell(0 if away else answer.status_code, _plain(text, target), {"Location": _plain(where, target)})

    def row(self, key: str, page: Page, owner: str) -> dict[str, Cell]:
        return {name: self.ask(key, page, name, owner) for name in CALLERS}

    def _browser(self, name: str, caller: Caller) -> tuple[FlaskClient, str]:
        if name not in self.browsers:
            client = self.world.site.client()
            if caller.actor is None:
                csrf = _CSRF.search(client.get("/ui/sign-in").text)
                assert csrf is not None
                self.browsers[name] = client, csrf[1]
            else:
                known = self.world.sign_in(caller)
                assert known.browser is not None
                self.browsers[name] = known.browser, known.csrf
        return self.browsers[name]


def _nothing(_world: World, _target: str) -> Form:
    return {}


_ONCE = re.compile(
    r'(csrf_token"[^>]*value=|name="csrf-token" content=|nonce=|name="nonce" value=)"[^"]*"|Request [\w-]+'
)


def _plain(text: str, target: str) -> str:
    return _ONCE.sub("", plain(text, target))


def shown(cell: Cell) -> str:
    return str(cell.status or SIGN_IN)


def load() -> dict[tuple[str, str], Row]:
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {(row["page"], owner): row for row in rows for owner in row["object"].split()}


def draw(keep: dict[tuple[str, str], Row], world: World) -> Iterator[Row]:
    """The table's lines for the pages there are: those that are kept, and new ones as the answers are now."""
    walk = PageWalk(world)
    for key, page in declared().items():
        lines: list[Row] = []
        for owner in whose(page):
            if (key, owner) in keep:
                cells = {name: keep[key, owner].get(name, "?") for name in CALLERS}
            else:
                cells = {name: shown(cell) for name, cell in walk.row(key, page, owner).items()}
                print(f"{key:44} {owner:10}", *cells.values(), file=sys.stderr)
            same = next((line for line in lines if all(line[name] == cells[name] for name in CALLERS)), None)
            if same:
                same["object"] += f" {owner}"
            else:
                lines.append({"page": key, "object": owner, **cells})
        yield from lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Add the lines of new pages to the table, and drop those of pages that are gone."
    )
    parser.add_argument("--draw", action="store_true", required=True)
    parser.add_argument("--again", default=None, metavar="TEXT", help="also draw again pages whose key holds this")
    options = parser.parse_args()
    keep = load() if TABLE.exists() else {}
    if options.again is not None:
        keep = {known: row for known, row in keep.items() if options.again not in known[0]}
    with tempfile.TemporaryDirectory(prefix="cloche-pages-") as home, running_site(Path(home)) as site:
        rows = list(draw(keep, World(site)))
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["page", "object", *CALLERS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{TABLE.name}: {len(rows)} lines. Read those that are new: git diff {TABLE}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
