"""Quotas in words, and a quota's form as the API's body."""

from __future__ import annotations

import pytest

from cloche.domain.quotas import Kind
from cloche.web.dashboard.quota_words import amount, body, cpu, own_lines, typed


def of(limit, used=None, resets_at=None):
    return {"limit": limit, "used": used, "resets_at": resets_at}


def test_a_limit_and_what_is_used_of_it():
    limits = {
        "jobs": of(500, 450),
        "submissions_per_minute": of(600),
        "storage_bytes": of(0, 0),
        "cpu_seconds_per_day": of("unlimited", 7_300.0, "2026-11-30T00:00:00.000Z"),
    }
    jobs, submissions, storage, spent = own_lines(limits)
    assert (jobs.used, jobs.limit, jobs.share, jobs.tight) == ("450", "500", 90, True)
    assert (submissions.used, submissions.limit, submissions.share) == ("not told", "600", None)
    assert (storage.share, storage.tight) == (100, True)
    assert (spent.used, spent.limit, spent.share) == ("2 h 1 min", "no limit", None)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (0.012, "12 ms"), (59.94, "59.9 s"), (60, "1 min"), (3_600, "1 h"), (3_660, "1 h 1 min")],
)
def test_processor_time(seconds, words):
    assert cpu(seconds) == words
    assert amount(Kind.CPU, seconds) == words


def test_a_form_is_the_apis_body():
    form = {
        "jobs": "1,000",
        "submissions_per_minute": " Unlimited ",
        "storage_bytes": "10GB",
        "cpu_seconds_per_day": "",
    }
    made, problems = body(form)
    assert problems == {}
    assert made == {
        "jobs": 1_000,
        "submissions_per_minute": "unlimited",
        "storage_bytes": 10 << 30,
        "cpu_seconds_per_day": None,
    }
    assert typed(made) == {
        "jobs": "1000",
        "submissions_per_minute": "unlimited",
        "storage_bytes": str(10 << 30),
        "cpu_seconds_per_day": "",
    }


@pytest.mark.parametrize("text", ["many", "-1", "1.5", "١٢", "10GB", "1e9", "<b>"])
def test_what_is_no_limit_is_told_beside_its_field(text):
    made, problems = body({"jobs": text})
    assert "jobs" not in made
    assert problems["jobs"][0].startswith(f"“{text}” is no limit.")
