"""Requests made from the description itself, fitting and not, over every route: ``./run fuzz``.

Each is sent as an administrator, as a viewer, and with no credential. Nobody may get a 5xx, an answer that the description does not know, or
a word of the other tenant. The paths name real objects now and then: ours, and the other tenant's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase, strategies
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.openapi import from_wsgi
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from cloche.domain.permissions import EVERYTHING
from tests.security.objects import MARK, World, failed_job
from tests.security.route_table import declared, kind_of
from tests.support.web import running_site

CALLERS = ("platform", "viewer", "anonymous")
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SEES_ALL = "/api/v1/tenants"  # what a platform administrator sees every tenant at
SAYS_503 = {"/readyz", "/health"}  # that is what they are for
RATE = {"address": 0, "user": 0, "token": 0}


@dataclass
class Outcome:
    """``answers``: how often each status was answered. ``failures``: what was wrong, by operation."""

    answers: dict[int, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class Fuzz:
    """One site, and the description as its own server tells it."""

    def __init__(self, world: World) -> None:
        self.world = world
        # Credentials are ours to send: one that is made up beside them is answered with 400, and nothing else is tried.
        config = SchemathesisConfig.from_dict({"generation": {"with-security-parameters": False}})
        self.schema = from_wsgi("/openapi.json", app=world.site.app, config=config)
        self._routes = {(route.method, prefix + route.template): route for prefix, route in declared().values()}
        self._objects: dict[str, list[str]] = {}

    def operations(self, only: str = "") -> Iterator[Any]:
        for result in self.schema.get_all_operations():
            operation = result.ok()
            if only in operation.label:
                yield operation

    def run(
        self, name: str, examples: int, *, only: str = "", seed: int | None = None, shrink: bool = False
    ) -> Outcome:
        """``examples`` fitting and as many unfitting requests to each operation, as the caller ``name``."""
        outcome = Outcome()
        for operation in self.operations(only):
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                try:
                    self._one(operation, mode, name, examples, seed, shrink, outcome)
                except (FailureGroup, AssertionError) as error:
                    told = "\n".join(str(one) for one in getattr(error, "exceptions", [error]))
                    outcome.failures.setdefault(f"{operation.label} as {name}", told[:2_000])
                except hypothesis.errors.Unsatisfiable:
                    continue  # nothing that would not fit can be made of this one
        return outcome

    def _one(
        self, operation: Any, mode: Any, name: str, examples: int, seed: int | None, shrink: bool, seen: Outcome
    ) -> None:
        known = self._known(operation)
        headers = self._headers(name)
        checks = CHECKS[1:] if operation.path in SAYS_503 else CHECKS
        picked = strategies.one_of(strategies.none(), strategies.sampled_from(known)) if known else strategies.none()

        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=seed is None,
            phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(operation.as_strategy(generation_mode=mode), picked)
        def attempt(case: Any, object_id: str | None) -> None:
            if object_id is not None:
                first = next(iter(case.path_parameters))
                case.path_parameters[first] = object_id
            answer = case.call(headers={**(case.headers or {}), **headers})
            seen.answers[answer.status_code] = seen.answers.get(answer.status_code, 0) + 1
            if name != "platform" or not operation.path.startswith(SEES_ALL):
                assert MARK not in answer.text, f"{case.method} {case.formatted_path} shows the other tenant"
            case.validate_response(answer, checks=checks)

        if seed is not None:
            attempt = hypothesis.seed(seed)(attempt)
        attempt()

    def _headers(self, name: str) -> dict[str, str]:
        """A token of its own for each operation: some of them end tokens."""
        caller = self.world.callers[name]
        if caller.actor is None:
            return {}
        actor = replace(caller.actor, permissions=EVERYTHING) if name == "platform" else caller.actor
        scopes = sorted(actor.permissions)  # some permissions a token has only where it names them
        made = self.world.site.services.access.create_token(actor, "fuzz", scopes)
        return {"Authorization": f"Bearer {made['token']}"}

    def _known(self, operation: Any) -> list[str]:
        """Ids that the path may name: an object of ours and one of the other tenant's."""
        kind = kind_of(self._routes[operation.method.upper(), operation.path])
        if kind is None:
            return []
        make = failed_job if "job" in kind.make.__name__ else kind.make  # one that has ended: nothing waits for it
        if make.__name__ not in self._objects:
            people = (self.world.colleague.actor, self.world.stranger.actor)
            self._objects[make.__name__] = [make(self.world, one) for one in (people[:1] if kind.shared else people)]
        return self._objects[make.__name__]


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=50, help="requests of each kind to each route (50)")
    parser.add_argument("--as", dest="who", choices=CALLERS, action="append", help="only as this one; may come again")
    parser.add_argument("--only", default="", help="only routes whose method and path hold this")
    parser.add_argument("--seed", type=int, default=None, help="other requests than the ones that are made without it")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="cloche-fuzz-") as home, running_site(Path(home), rate=RATE) as site:
        fuzz = Fuzz(World(site))
        for name in options.who or CALLERS:
            outcome = fuzz.run(name, options.examples, only=options.only, seed=options.seed, shrink=True)
            counts = ", ".join(f"{count} × {status}" for status, count in sorted(outcome.answers.items()))
            print(f"{name}: {sum(outcome.answers.values())} requests: {counts}", flush=True)
            for label, told in outcome.failures.items():
                failed = True
                print(f"\n{label}\n{told}\n", flush=True)
    return int(failed)


warnings.filterwarnings("ignore", module="schemathesis")
__all__ = ["CALLERS", "Fuzz", "Outcome", "schemathesis"]

if __name__ == "__main__":
    sys.exit(main())
