"""The page of workers: what it shows of them, numbers, and draining: without JavaScript, as a form sends it."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from cloche.clock import now_ms, uuid7
from cloche.db import tables as t
from tests.support.web import running_site

RESOURCES = {"cpu_count": 8, "load": 0.25, "memory_total": 16 << 30, "memory_free": 3 << 30}
RESOURCES |= {"disk_total": 2 << 40, "disk_free": 1 << 40}


@pytest.fixture
def site(tmp_path):
    with running_site(tmp_path / "home") as running:
        for name, role in (("olga", "operator"), ("vera", "viewer")):
            running.add(name, role)
        yield running


def registered(site, host="host-1", resources=RESOURCES):
    worker_id = uuid7()
    service, db = site.services.workers, site.services.db
    service.register(worker_id, host, 7, ["default", "sensitive"], 4, None, {"zone": "eu", "gpu": ""})
    db.write(lambda c: service.beat(c, worker_id, "alive", None, now_ms(), resources))
    return worker_id


def page(site, user):
    client, token = site.browser(user)
    answer = client.get("/ui/workers")
    assert answer.status_code == 200
    return client, token, answer.text


def test_a_worker_is_shown_with_labels_and_what_its_host_has_left(site):
    registered(site, host="<img src=x onerror=alert(1)>\u202e")
    registered(site, resources={**dict.fromkeys(RESOURCES), "load": 1.5})
    _, _, text = page(site, "vera")
    assert "zone=eu" in text
    assert "gpu=" in text
    assert "3 GB of 16 GB memory, 1 TB of 2 TB disk, load 0.25 on 8 CPUs" in text
    assert "– of – memory, – of – disk, load 1.5 on ? CPUs" in text
    assert "0 of 4" in text
    assert "<img src=x" not in text
    assert "U+202E" in text
    assert "Drain" not in text, "a viewer is offered nothing to do"


def test_a_worker_is_drained_from_the_page(site):
    worker_id = registered(site)
    client, token, text = page(site, "admin")
    assert f'action="/ui/workers/{worker_id}/drain"' in text
    answer = client.post(f"/ui/workers/{worker_id}/drain", data={"csrf_token": token})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/workers")
    text = client.get("/ui/workers").text
    assert "draining" in text
    assert "/drain" not in text
    gone = update(t.worker).values(status="dead", drain_requested_at=None)
    site.services.db.write(lambda c: c.execute(gone))
    assert client.post(f"/ui/workers/{worker_id}/drain", data={"csrf_token": token}).status_code == 303
    assert "/drain" not in client.get("/ui/workers").text
    assert client.post(f"/ui/workers/{uuid7()}/drain", data={"csrf_token": token}).status_code == 404


def test_who_may_not_drains_nothing(site):
    worker_id = registered(site)
    for user in ("vera", "olga"):
        client, token, text = page(site, user)
        assert "/drain" not in text
        assert client.post(f"/ui/workers/{worker_id}/drain", data={"csrf_token": token}).status_code == 403
    client, token, _ = page(site, "admin")
    assert client.post(f"/ui/workers/{worker_id}/drain").status_code == 403, "without the form's token"
    (shown,) = site.request("GET", "/workers").json["items"]
    assert (shown["status"], shown["drain_requested"]) == ("alive", False)


def test_numbers_stand_above_the_workers_and_renew_themselves(site):
    client, _, text = page(site, "vera")
    assert "In numbers" in text
    part = client.get("/ui/statistics", headers={"HX-Request": "true"})
    assert part.status_code == 200
    assert "In numbers" in part.text
    assert "<html" not in part.text
    whole = client.get("/ui/statistics")
    assert (whole.status_code, whole.headers["Location"]) == (303, "/ui/workers")
