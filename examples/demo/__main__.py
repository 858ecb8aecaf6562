"""``./run demo [FILE…]``: real jobs on real files, from an empty machine to a verified audit trail. Exits 0 only if all of it held."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import httpx
import jobs
import record
import refusals
import starts
from rest import Rest
from screen import DemoFailed, Screen
from stack import Cloche, WebDav, leftovers, start_cloche, start_webdav, temporary_folder, wait_until_ready


def main(arguments: list[str]) -> int:
    if arguments in (["-h"], ["--help"]):
        print(
            "usage: ./run demo [FILE…]   each FILE (a table, a picture, a text) gets a job of its own beside the demo's"
        )
        return 0
    files = [Path(name).absolute() for name in arguments]
    for path in files:
        if not path.is_file():
            print(f"demo: there is no file {str(path)!a}", file=sys.stderr)
            return 2
    if os.geteuid() != 0:
        print("demo: sandboxes need root: sudo ./run demo", file=sys.stderr)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    screen, started = Screen(), time.monotonic()
    screen.title(
        "Cloche",
        "Other people's code on your files: each job sealed in a container of its own, each leaving a record.\n"
        "Everything below is real: a server, its REST API, rclone, Docker. ✓ marks what was checked.",
    )
    try:
        with temporary_folder() as folder:
            _story(screen, folder, files)
            screen.chapter("Cleaning up")
        screen.check(not folder.exists(), "the temporary home is gone")
    except (DemoFailed, httpx.HTTPError) as error:
        screen.failed(str(error))
        return 1
    except KeyboardInterrupt:
        screen.failed("interrupted")
        return 130
    screen.end(time.monotonic() - started)
    return 0


def _story(screen: Screen, folder: Path, files: list[Path]) -> None:
    """The chapters. Whatever happens, what was started is stopped."""
    with ExitStack() as stack:
        screen.chapter("Starting")
        webdav = _webdav(folder)
        stack.callback(webdav.stop)
        cloche = start_cloche(folder)
        stack.callback(cloche.stop)
        try:
            wait_until_ready(cloche)
            _use(screen, cloche, webdav, files)
        except (DemoFailed, httpx.HTTPError, KeyboardInterrupt):
            screen.log(cloche.log_tail())
            raise
        screen.chapter("Stopping")
        screen.check(cloche.stop() == 0, "Cloche stopped when it was asked to, and exited with 0")
        webdav.stop()
    left = leftovers(folder / "home")
    screen.check(not left, f"no container, mount or process of it is left{': ' + ', '.join(left) if left else ''}")


def _webdav(folder: Path) -> WebDav:
    """A WebDAV server that holds the photograph and the weather table."""
    share = folder / "webdav"
    for name, place in (("grace_hopper.jpg", "photos"), ("seattle-weather.csv", "tables")):
        (share / place).mkdir(parents=True)
        shutil.copy(jobs.DATA / name, share / place)
    return start_webdav(share)


def _use(screen: Screen, cloche: Cloche, webdav: WebDav, files: list[Path]) -> None:
    made = Rest(cloche.url).raw("POST", "/tokens", json={"name": "demo"}, auth=("admin", cloche.password))
    screen.check(made.status_code == 201, f"Cloche answers at {cloche.url}; the admin has a token")
    admin = Rest(cloche.url, made.json()["token"])
    plugins = admin.get("/plugins")["items"]
    rows = [(item["name"], item["version"], item["digest"][:16] + "…", item["summary"]) for item in plugins]
    screen.table(("plugin", "version", "digest", "what it does"), rows)
    digests = {(item["name"], item["version"]): item["digest"] for item in plugins}
    options = {"url": webdav.url, "vendor": "other", "user": webdav.user, "pass": webdav.password}
    admin.post("/remotes", {"name": jobs.REMOTE, "type": "webdav", "options": options})
    tested = admin.post(f"/remotes/{jobs.REMOTE}/test")
    screen.check(
        tested.get("ok"), f"the WebDAV server {webdav.url} is registered as remote '{jobs.REMOTE}', and answers"
    )
    screen.check(
        webdav.password not in str(admin.get("/remotes")), "its password is stored encrypted and never shown again"
    )

    screen.chapter("People")
    user, viewer = _person(screen, cloche, admin, "submitter"), _person(screen, cloche, admin, "viewer")

    screen.chapter("Jobs")
    errands = jobs.submit_all(screen, user, files)

    screen.chapter("What happened")
    for errand in errands:
        jobs.show(screen, user, errand, digests, webdav)
    first, second = errands[2].job, errands[3].job
    screen.check(
        first["result"] != second["result"], "the two versions of text_stats say different things about the same text"
    )

    screen.chapter("A warm start beside a cold one")
    starts.compare(screen, user)

    screen.chapter("Refusals")
    refusals.at_the_door(screen, cloche.url, user, viewer)
    refusals.inside(screen, user, admin)

    screen.chapter("The audit trail")
    record.verify(screen, cloche)
    record.tamper(screen, cloche, cloche.home.parent / "copy.db")
    for caller in (admin, user, viewer):
        caller.close()


def _person(screen: Screen, cloche: Cloche, admin: Rest, role: str) -> Rest:
    """Create a user with one role, and sign in as that user for a token."""
    name, password = f"demo-{role}", secrets.token_urlsafe(18)
    user = admin.post("/users", {"username": name, "password": password, "roles": [role]})
    answer = Rest(cloche.url).raw("POST", "/tokens", json={"name": "demo", "expires_in": "1h"}, auth=(name, password))
    screen.check(answer.status_code == 201, f"user {user['username']} with role {role} has a token for one hour")
    return Rest(cloche.url, answer.json()["token"])


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
