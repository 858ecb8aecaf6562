"""A bounded run of ``./run fuzz``: nobody gets a 5xx, an answer that is not described, or a word of the other tenant."""

from __future__ import annotations

import pytest

from tests.security.fuzz import CALLERS, RATE, Fuzz
from tests.security.objects import World
from tests.support.web import running_site

EXAMPLES = 3  # of each kind for each operation; `./run fuzz` makes more


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home"), rate=RATE) as site:
        yield Fuzz(World(site))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CALLERS)
def test_every_route_answers_as_it_is_described(fuzz, name):
    outcome = fuzz.run(name, EXAMPLES)
    assert not outcome.failures, "\n\n".join(f"{label}\n{told}" for label, told in outcome.failures.items())
    assert len(outcome.answers) > 3
    assert not [status for status in outcome.answers if status >= 500 and status != 503]
