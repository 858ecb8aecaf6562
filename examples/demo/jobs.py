"""The demo's jobs: which plugin gets which file, and what one looks at afterwards."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rest import Rest
from screen import Screen, size
from stack import CHECKOUT, WebDav

DATA = CHECKOUT / "examples" / "data"
REMOTE = "archive"


@dataclass
class Errand:
    """One job of the demo: its request, and later its id and how it ended."""

    title: str
    body: dict[str, Any]
    own: bool = False  # on a file of the user's
    job_id: str = ""
    job: dict[str, Any] = field(default_factory=dict)


def plugin_for(path: Path) -> str | None:
    """The job type that fits a user's file; None where none does."""
    kind = mimetypes.guess_type(path.name)[0] or ""
    if kind == "text/csv":
        return "csv_profile"
    if kind in ("image/png", "image/jpeg", "image/gif", "image/webp"):
        return "thumbnail"
    try:
        with path.open("rb") as stream:
            stream.read(65_536).decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        return "text_stats" if error.end >= 65_533 else None  # cut in the middle of a character is still text
    return "text_stats"


def shown(path: Path) -> str:
    """The file's name for people and for JSON: whatever its bytes, one printable line of at most 120 characters."""
    name = path.name.encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)[:120]


def stored_name(path: Path, kind: str) -> str:
    """A name under which any server takes the file, with the suffix by which its plugin knows it."""
    stem = "".join(char if char.isascii() and (char.isalnum() or char in "._") else "-" for char in path.stem).strip(
        "-."
    )
    suffix = path.suffix.lower() if path.suffix.isascii() and path.suffix[1:].isalnum() else ""
    if kind == "text_stats" and not (mimetypes.guess_type(f"x{suffix}")[0] or "").startswith("text/"):
        suffix = ".txt"
    return f"{stem[:80] or 'file'}{suffix}"


def submit_all(screen: Screen, user: Rest, files: Sequence[Path]) -> list[Errand]:
    """Upload, submit everything at once, and wait for each; returns the errands with their jobs."""
    table, text = user.upload(DATA / "airports.csv"), user.upload(CHECKOUT / "README.md")
    screen.table(
        ("uploaded", "size", "SHA-256", "artifact"),
        [(item["name"], size(item["size"]), item["sha256"][:16] + "…", item["id"]) for item in (table, text)],
    )
    picture = f"{REMOTE}:photos/grace_hopper.jpg"
    document = [{"from": f"artifact:{text['id']}", "to": "README.md"}]
    errands = [
        Errand(
            "a table of airports, profiled",
            {"type": "csv_profile", "inputs": [{"from": f"artifact:{table['id']}", "to": "airports.csv"}]},
        ),
        Errand(
            "a photograph from the WebDAV server, scaled down and put back there",
            {
                "type": "thumbnail",
                "payload": {"width": 160},
                "inputs": [{"from": picture}],
                "outputs": [{"match": "*", "to": f"{REMOTE}:thumbnails"}],
            },
        ),
        Errand("a text, counted by version 1", {"type": "text_stats", "version": "==1.*", "inputs": document}),
        Errand("the same text, counted by version 2", {"type": "text_stats", "version": "==2.*", "inputs": document}),
    ]
    for path in files:
        kind = plugin_for(path)
        if kind is None:
            screen.say(f"  {shown(path)}: no plugin here fits it (tables, pictures and UTF-8 text have one); left out")
            continue
        stored = user.upload(path, stored_name(path, kind))
        body = {"type": kind, "inputs": [{"from": f"artifact:{stored['id']}"}], "retry": {"max_retries": 0}}
        errands.append(Errand(f"your {shown(path)}", body, own=True))
    for errand in errands:
        errand.job_id = user.post("/jobs", errand.body | {"name": errand.title})["id"]
    screen.say(f"  {len(errands)} jobs accepted; each runs in a container of its own. Waiting …")
    for errand in errands:
        errand.job = user.finished(errand.job_id)
    rows = [
        (errand.title, f"{job['type']} {job['plugin']['version']}", job["status"], job["attempt"])
        for errand in errands
        for job in [errand.job]
    ]
    screen.table(("job", "plugin", "status", "attempt"), rows)
    for errand in errands:
        # What a plugin makes of a user's file is for the plugin to say; that every job reaches its end is for us.
        fine = ("completed", "failed") if errand.own else ("completed",)
        screen.check(errand.job["status"] in fine, f"{errand.title}: {errand.job['reason_text']}")
    return [errand for errand in errands if errand.job["status"] == "completed"]


def show(screen: Screen, user: Rest, errand: Errand, digests: dict[tuple[str, str], str], webdav: WebDav) -> None:
    """Trace, result, outputs and the digest of one job, each checked."""
    job = errand.job
    kind, version, digest = job["type"], job["plugin"]["version"], job["plugin"]["digest"]
    steps = _steps(user.get(f"/trace/{job['id']}")["items"])
    screen.table(("step", "after", "took", "details"), steps, errand.title)
    _result(screen, job["result"])
    outputs = user.get(f"/jobs/{job['id']}/outputs")["items"]
    if outputs:
        rows = [(item["path"], size(item["size"]), item["sha256"]) for item in outputs]
        screen.table(("output", "size", "SHA-256"), rows)
    for item in outputs:
        _output(screen, user, item, webdav)
    screen.check(
        digest == digests.get((kind, version)), f"what ran is the listed {kind} {version}, bundle {digest[:16]}…"
    )
    screen.check(job["plugin"]["image"], f"in the image {job['plugin']['image']}")


def _result(screen: Screen, result: Any) -> None:
    """A table's profile as a table, everything else as JSON."""
    columns = (result.get("files") or [{}])[0].get("columns") if isinstance(result, dict) else None
    if columns:
        keys = ("name", "type", "missing", "distinct", "min", "max", "mean")
        screen.table(keys, [[_number(column.get(key, "")) for key in keys] for column in columns], "result")
    else:
        screen.value("result", result)


def _output(screen: Screen, user: Rest, item: dict[str, Any], webdav: WebDav) -> None:
    """Fetch one output back, from where it went, and check its hash."""
    if item.get("artifact_id"):
        content = user.content(item["artifact_id"])
        same = hashlib.sha256(content).hexdigest() == item["sha256"]
        screen.check(same, f"{item['path']} fetched back from the artifact store: its SHA-256 is the same")
        if item["path"].endswith(".md"):
            screen.value(item["path"], content.decode("utf-8"))
        return
    found = webdav_copy(webdav, item["destination"], item["path"])
    same = found is not None and hashlib.sha256(found.read_bytes()).hexdigest() == item["sha256"]
    screen.check(same, f"{item['destination']} lies on the WebDAV server, with that SHA-256")


def webdav_copy(webdav: WebDav, destination: str, path: str) -> Path | None:
    """The output on the WebDAV server's own disk, wherever under the destination's folder it was put."""
    folder = webdav.folder / destination.partition(":")[2]
    places = (
        [folder] if folder.is_file() else [place for place in sorted(folder.rglob(Path(path).name)) if place.is_file()]
    )
    return places[0] if places else None


def _steps(items: Sequence[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Each trace event with the time since the first and since the one before."""
    moments = [datetime.fromisoformat(item["timestamp"]) for item in items]
    rows = []
    for index, item in enumerate(items):
        took = (moments[index] - moments[max(0, index - 1)]).total_seconds() * 1000
        after = (moments[index] - moments[0]).total_seconds() * 1000
        rows.append((item["event_type"], f"{after:.0f} ms", f"{took:.0f} ms", _details(item["details"] or {})))
    return rows


def _details(details: dict[str, Any]) -> str:
    """The details of a trace event that say something at a glance."""
    words = []
    for key, value in details.items():
        if key == "files" and isinstance(value, list):
            words.append(", ".join(f"{file['path']} ({size(file['size'])})" for file in value) or "no files")
        elif key in ("worker", "sandbox"):
            words.append(f"{key} …{str(value)[-8:]}")
        elif key == "memory_peak":
            words.append(f"{size(value)} of memory")
        elif key == "cpu_ms":
            words.append(f"{value} ms of CPU")
        elif key in ("type", "version", "reason", "start"):
            words.append(str(value))
    return " · ".join(words)


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
