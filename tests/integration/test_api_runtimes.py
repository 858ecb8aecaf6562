"""Jobs that no sandbox of this platform could run are refused when they are submitted, and nothing of them is stored."""

from __future__ import annotations

import pytest

from tests.support.plugins import write_bundle
from tests.support.web import problem, running_site, where

IMAGE = f'[image]\nid = "sha256:{"a" * 64}"\ncommand = ["/bin/true"]\n'


@pytest.mark.parametrize(
    ("policy", "refused", "says"),
    [
        ("runsc", {"own"}, "CLOCHE_SANDBOX_RUNTIME is runsc"),
        ("runc", {"sealed"}, "CLOCHE_SANDBOX_RUNTIME is runc"),
        ("plugin", set(), ""),
    ],
)
def test_what_the_runtime_policy_rules_out(home, tmp_path, policy, refused, says):
    folder = tmp_path / "plugins"
    write_bundle(folder, "own", more=IMAGE)
    write_bundle(folder, "sealed", more='[sandbox]\nruntime = "runsc"\n')
    write_bundle(folder, "plain")
    with running_site(home, folder, sandbox={"runtime": policy}) as site:
        for name in ("own", "sealed", "plain"):
            answer = site.request("POST", "/jobs", json={"type": name})
            if name in refused:
                body = problem(answer, 422, "invalid")
                assert where(body) == {"/type"}
                assert says in body["errors"][0]["detail"]
            else:
                assert answer.status_code == 202, answer.text
        assert len(site.request("GET", "/jobs").json["items"]) == 3 - len(refused)
