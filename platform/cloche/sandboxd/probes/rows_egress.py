"""Probes of what a job with egress can reach beyond its list."""

from __future__ import annotations

from typing import Any

from cloche.sandboxd.probes import scenes_egress as scenes
from cloche.sandboxd.probes.outside import LOOPBACK
from cloche.sandboxd.probes.probe import Probe, equals, only


def _refused(facts: Any, *verdicts: str) -> bool:
    """Nothing was reached, each attempt was refused, and each refusal is one of these."""
    return (
        not facts["reached"]
        and all(said != "DONE" for said in facts["value"])
        and set(facts["verdicts"]) <= set(verdicts)
        and sum(facts["verdicts"].values()) == len(facts["value"])
    )


def _not_led_on(facts: Any) -> bool:
    """Whether a connection that was let through had ended by itself when the job did is chance."""
    listed, both = facts
    through = [sum(run["verdicts"].get(verdict, 0) for verdict in ("closed", "job_ended")) for run in facts]
    return (
        listed["value"] == 403
        and listed["verdicts"]["not_allowed"] == 1
        and [run["reached"] for run in facts] == [0, 1]
        and through == [1, 2] == [sum(listed["verdicts"].values()) - 1, sum(both["verdicts"].values())]
    )


def _pinned(facts: Any) -> bool:
    return (
        facts["first"] == ["DONE", "DONE"]
        and facts["led to"] == [LOOPBACK] * 2
        and _refused(
            {"value": facts["later"], "verdicts": facts["verdicts"], "reached": facts["reached"]}, "address_refused"
        )
    )


def flooded(facts: Any) -> bool:
    # How many were still under way when the sandbox died is chance; that none was let beyond the bounds is not.
    return (
        facts["bounded"] and facts["told"] and facts["neighbour"] == ["DONE", "DONE"] and facts["value"]["refused"] > 0
    )


# fmt: off
EGRESS = (
    Probe("egress_reach", "egress", "the host on its list, directly and by a forwarded port", "both work: the probes below are not refused by accident",
          equals({"value": ["DONE", "DONE"], "verdicts": {"closed": 2}}), scenes.reach),
    Probe("egress_others", "egress", "hosts that are not on its list, and the one that is in nine odd notations", "each is refused, nothing is connected to",
          lambda f: _refused(f, "not_allowed", "malformed"), scenes.others),
    Probe("egress_inside", "egress", "allowed names and addresses that lead to this host, a carrier's network or a metadata service",
          "each is refused by its address, nothing is connected to", lambda f: _refused(f, "address_refused"), scenes.inside),
    Probe("egress_smuggling", "egress", "requests with two hosts, bodies, bare line feeds, NUL, huge heads, another one behind", "each is 4xx, nothing is connected to",
          lambda f: not f["reached"] and len(f["value"]) == 11 and all(400 <= status < 500 for status in f["value"]), scenes.smuggle),
    Probe("egress_second_request", "egress", "a second CONNECT behind one that is let through", "it is bytes for the first one's server",
          equals({"value": [200], "first": 1, "reached": False}), scenes.second_request),
    Probe("egress_redirect", "egress", "a redirect of a listed host to one that is not; and where both are", "403 and nothing is connected to; followed where it may be",
          _not_led_on, scenes.redirect),
    Probe("egress_moving", "egress", "an allowed name that changes its answer to a metadata address: for the same job, and for the next one",
          "the first answer holds for the attempt; afterwards each is refused by its address, nothing is connected to", _pinned, scenes.moving),
    Probe("egress_socket_of_another", "egress", "another sandbox's socket", "not there; it belongs to that sandbox's user alone, in root's folder",
          equals({"value": {"path": "ENOENT", "sockets": []}, "owner": ["0o600", True, 0]}), scenes.another_ones),
    Probe("egress_replace", "egress", "remove, rename, cover or chmod its own socket", "each is refused",
          only("EROFS", "EXDEV", "EPERM", "EACCES"), scenes.replace_socket),
    Probe("egress_setup", "egress", "reach out in the import and in setup()", "there is no socket yet", equals({"import": [], "setup": []}), scenes.before_the_job),
    Probe("egress_flood", "egress", "connections without end", "bounded at once and in all, the rest refused; a neighbour reaches its host", flooded, scenes.flooding(3_000)),
    Probe("egress_slow", "egress", "a byte at a time, for ever", "cut by the time limit", equals({"verdicts": {"time_limit": 1}, "ended": True, "last": "result"}), scenes.slow),
    Probe("egress_pour", "egress", "bytes without end over four connections", "cut at the bound of all together",
          lambda f: f["within"] and f["last"] == "result" and f["verdicts"].get("byte_limit", 0) >= 1, scenes.pour),
    Probe("egress_stay", "egress", "a thread that goes on sending when the job has ended", "the server finds its connection closed",
          equals({"open": 1, "last": "result", "quiet": True}), scenes.stay),
)
# fmt: on
