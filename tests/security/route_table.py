"""Who may do what to whose: every route × every caller × own, colleague's, other tenant's and missing object.

The table is ``route_table.csv``: a line for each route and object, a column for each caller, in it the status that is answered (``200|503``:
either, where the time of day decides). It is read by people. Whoever adds a route runs ``python -m tests.security.route_table --draw``, which
adds its lines with what is answered now, and then reads each of them: is that what should be answered?
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloche.web.app import API_PREFIX, api_routes, system_routes
from cloche.web.routing import Raw, Route
from tests.security import objects
from tests.security.objects import CALLERS, MAKERS, MARK, SPECIAL, Caller, Kind, Maker, World
from tests.support.web import running_site

TABLE = Path(__file__).with_name("route_table.csv")
OWN, COLLEAGUES, OTHER, MISSING, NONE = "own", "colleague", "other", "missing", "-"
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_PARAMETER = re.compile(r"\{(\w+)\}")

# What is sent, where an empty object or nothing will not do. Called anew for each request.
BODIES: dict[str, Callable[[World], Any]] = {
    "POST /session": lambda _: {"username": "nobody", "password": "no password at all"},
    "POST /users": lambda w: {
        "username": f"u{next(w.numbers)}",
        "password": "a password of some length",
        "roles": ["viewer"],
    },
    "PUT /me/password": lambda _: {
        "current_password": "no password at all",
        "new_password": "another one that is long",
    },
    "POST /password-resets": lambda _: {"code": "cloche_reset_x_y", "new_password": "another one that is long"},
    "PATCH /users/{user_id}": lambda _: {"disabled": False},
    "PUT /users/{user_id}/roles": lambda _: {"roles": ["viewer"]},
    "POST /users/{user_id}/tokens": lambda _: {"name": "ci"},
    "POST /roles": lambda w: {"name": f"r{next(w.numbers)}", "permissions": ["job:read"]},
    "PUT /roles/{name}": lambda _: {"permissions": ["job:read"]},
    "POST /tenants": lambda w: {"name": f"t{next(w.numbers)}"},
    "PATCH /tenants/{tenant_id}": lambda _: {"suspended": False},
    "POST /tenants/{tenant_id}/empty": lambda w: {"confirm": w.suspended},
    "POST /tokens": lambda _: {"name": "more"},
    "POST /jobs": lambda w: w.job(),
    "POST /jobs/batch": lambda w: {"jobs": [w.job()]},
    "POST /dead-letters/replay": lambda _: {"filter": {}, "dry_run": True},
    "DELETE /dead-letters": lambda _: {"filter": {}, "dry_run": True},
    "POST /queues": lambda w: {"name": f"n{next(w.numbers)}"},
    "PATCH /queues/{name}": lambda _: {"paused": False},
    "PATCH /plugins/{name}/{version}": lambda _: {"state": "enabled"},
    "POST /remotes": lambda w: {"name": f"n{next(w.numbers)}", "type": "s3", "options": objects.S3},
    "PATCH /remotes/{name}": lambda _: {"options": {"bucket": "another"}},
    "POST /secrets": lambda w: {"name": f"N{next(w.numbers)}", "value": "a value of some length"},
    "PUT /secrets/{name}": lambda _: {"value": "another value"},
    "PUT /secrets/{name}/grants": lambda _: {"grants": [{"plugin": "text_stats", "versions": "*"}]},
    "PUT /egress-policy": lambda _: {"allow": []},
    "POST /audit/forget": lambda _: {"value": "nobody-there"},
}


def key_of(route: Route) -> str:
    return f"{route.method} {route.template}"


def declared() -> dict[str, tuple[str, Route]]:
    """Every route with its prefix, by method and template."""
    every = [(API_PREFIX, route) for route in api_routes()] + [("", route) for route in system_routes()]
    return {key_of(route): (prefix, route) for prefix, route in every}


def kind_of(route: Route) -> Kind | None:
    """What the path's id names.

    Raises:
        LookupError: nobody has said how such an object is made.
    """
    if not route.parameters:
        return None
    fitting = [path for path in MAKERS if f"{route.template}/".startswith(f"{path}/")]
    if not fitting:
        raise LookupError(
            f"{key_of(route)}: say in MAKERS of tests/security/objects.py how to make what its path names"
        )
    return MAKERS[max(fitting, key=len)]


def whose(route: Route) -> tuple[str, ...]:
    kind = kind_of(route)
    if kind is None:
        return (NONE,)
    return (OWN, MISSING) if kind.shared else (OWN, COLLEAGUES, OTHER, MISSING)


@dataclass
class Cell:
    """One request's answer. ``text`` has its ids replaced, so that two can be compared."""

    status: int
    text: str
    headers: dict[str, str]


class Walk:
    """Makes the requests. What a request may have changed is not used again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.made: dict[tuple[str, ...], str] = {}

    def ask(self, prefix: str, route: Route, caller: Caller, owner: str, *, exact: bool = False) -> Cell:
        world, key = self.world, key_of(route)
        target = self._target(route, caller, owner)
        path = prefix + _filled(route, target)
        options: dict[str, Any] = {"headers": {"If-Match": "*"} if "If-Match" in route.headers else {}}
        if isinstance(route.body, Raw):
            options |= {"data": b"x", "query_string": {"name": "x.txt"}}
        elif route.body is not None:
            options["json"] = BODIES[key](world) if key in BODIES else {}
        with world.send(caller, route.method, path, **options) as answer:
            stream = answer.mimetype == "text/event-stream"
            text = "" if stream else answer.get_data(as_text=True)
            if route.method != "GET" and answer.status_code < 300:
                self.used(target)
            headers = {name: value for name, value in answer.headers if name not in _CHANGING}
            return Cell(answer.status_code, text if exact else plain(text, target), headers)

    def path(self, route: Route, caller: Caller, owner: str) -> str:
        """The route's path for that object, below its prefix."""
        return _filled(route, self._target(route, caller, owner))

    def row(self, prefix: str, route: Route, owner: str) -> dict[str, Cell]:
        return {name: self.ask(prefix, route, self.world.callers[name], owner) for name in CALLERS}

    def _target(self, route: Route, caller: Caller, owner: str) -> str:
        kind = kind_of(route)
        return self.target(kind, None if kind is None else SPECIAL.get(key_of(route), kind.make), caller, owner)

    def target(self, kind: Kind | None, make: Maker | None, caller: Caller, owner: str) -> str:
        """The id or name of that object: made anew where the last one was used."""
        if kind is None or make is None:
            return ""
        if owner == MISSING:
            return kind.missing
        world = self.world
        person = {OWN: caller.actor, COLLEAGUES: world.colleague.actor, OTHER: world.stranger.actor}[owner]
        person = person or world.colleague.actor  # nobody owns nothing: a stranger to everything
        known = (make.__name__, person.user_id)
        if known not in self.made:
            self.made[known] = make(world, person)
        return self.made[known]

    def used(self, target: str) -> None:
        """It may not be what it was: the next request gets another."""
        self.made = {known: value for known, value in self.made.items() if value != target}


_CHANGING = ("X-Request-ID", "RateLimit", "RateLimit-Policy", "Set-Cookie", "Content-Length")


def _filled(route: Route, target: str) -> str:
    return _PARAMETER.sub(lambda found: objects.FIXED.get(found[1], target), route.template)


def plain(text: str, target: str) -> str:
    """Without what differs between any two answers: the object's name, ids."""
    if target:
        text = text.replace(target, "ID")
    text = _ID.sub("ID", text)
    return re.sub(r'"request_id": "[^"]*"', '"request_id": ""', text)


Row = dict[str, str]


def load() -> dict[tuple[str, str], Row]:
    """The committed table by route and object."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        for owner in row["object"].split():
            found[row["route"], owner] = row
    return found


def draw(keep: dict[tuple[str, str], Row], world: World) -> Iterator[Row]:
    """The table's lines for the routes there are: those that are kept, and new ones as the answers are now."""
    walk = Walk(world)
    for key, (prefix, route) in declared().items():
        lines: list[Row] = []
        for owner in whose(route):
            if (key, owner) in keep:
                cells = {name: keep[key, owner].get(name, "?") for name in CALLERS}
            else:
                cells = {name: str(cell.status) for name, cell in walk.row(prefix, route, owner).items()}
                print(f"{key:44} {owner:10}", *cells.values(), file=sys.stderr)
            same = next((line for line in lines if all(line[name] == cells[name] for name in CALLERS)), None)
            if same:
                same["object"] += f" {owner}"
            else:
                lines.append({"route": key, "object": owner, **cells})
        yield from lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Add the lines of new routes to the table, and drop those of routes that are gone."
    )
    parser.add_argument("--draw", action="store_true", required=True)
    parser.add_argument("--again", default=None, metavar="TEXT", help="also draw again routes whose name holds this")
    options = parser.parse_args()
    keep = load() if TABLE.exists() else {}
    if options.again is not None:
        keep = {known: row for known, row in keep.items() if options.again not in known[0]}
    with tempfile.TemporaryDirectory(prefix="cloche-table-") as home, running_site(Path(home)) as site:
        rows = list(draw(keep, World(site)))
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["route", "object", *CALLERS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{TABLE.name}: {len(rows)} lines. Read those that are new: git diff {TABLE}", file=sys.stderr)
    return 0


__all__ = ["MARK", "Walk", "World", "declared", "load", "whose"]

if __name__ == "__main__":
    sys.exit(main())
