"""The page that submits a job: choose a plugin, fill in its payload, hand over files."""

from __future__ import annotations

from typing import Any

from flask import request
from werkzeug.datastructures import FileStorage

from cloche.clock import uuid7
from cloche.domain.permissions import Actor, Permission
from cloche.errors import Forbidden, NotFound, RequestError
from cloche.web.bodies import validated
from cloche.web.dashboard import form
from cloche.web.dashboard.site import Answer, Page, Site, go
from cloche.web.dashboard.skeleton import fields, skeleton
from cloche.web.models import NewJob

Problems = dict[str, list[str]]


def submit(site: Site, actor: Actor) -> Answer:
    versions = [item for item in site.services.plugins.list(actor) if item["enabled"]]
    chosen = _chosen(versions, request.values.get("plugin", ""))
    if request.method == "GET" or chosen is None:
        problems: Problems = {"plugin": ["Choose a plugin."]} if request.method == "POST" else {}
        return _page(site, actor, versions, chosen, problems=problems)
    typed = form.Typed.read(request.form)
    kept, problems = _files(site, actor)
    refused = "The job was not accepted."
    status = 422
    if not problems:
        try:
            body = form.body(chosen["name"], chosen["version"], typed, [file["id"] for file in kept])
            # What leaves the API's model is what the service takes, so both doors refuse the same.
            asked = validated(NewJob, body).model_dump(mode="json", by_alias=True, exclude_none=True)
            # The key is stored, and is a digest of the body: without the page's random nonce it would let one guess at that.
            key = form.key(typed, body) if typed.nonce else None
            _, job = site.services.jobs.submit(actor, asked, idempotency_key=key)
            return go("job", job_id=job["id"])
        except form.Refused as error:
            problems = dict(error.problems)
        except RequestError as error:
            problems = form.placed(error.problems, len(kept)) or {"form": [error.detail]}
            status = error.status
    return _page(site, actor, versions, chosen, typed=typed, kept=kept, problems=problems, refused=refused), status


def _page(
    site: Site,
    actor: Actor,
    versions: list[dict[str, Any]],
    chosen: dict[str, Any] | None,
    *,
    typed: form.Typed | None = None,
    kept: list[dict[str, Any]] | None = None,
    problems: Problems | None = None,
    refused: str = "",
) -> str:
    values: dict[str, Any] = {}
    if chosen is not None:
        detail = site.services.plugins.get(actor, chosen["name"], chosen["version"])
        schema = detail["params"]
        values = {
            "typed": typed or form.Typed(payload=skeleton(schema), nonce=uuid7()),
            "fields": fields(schema),
            "accepts": _accepts(detail["inputs"]),
            "accept": ",".join(detail["inputs"]["accept"]),
            "queues": site.services.queues.custom(actor),
        }
    return site.render(
        "submit.html",
        versions=versions,
        chosen=chosen,
        kept=kept or [],
        problems=problems or {},
        refused=refused,
        **values,
    )


def _chosen(versions: list[dict[str, Any]], text: str) -> dict[str, Any] | None:
    name, _, version = text.partition("@")
    for item in versions:
        if item["name"] == name and (item["version"] == version if version else item["default"]):
            return item
    return None


def _files(site: Site, actor: Actor) -> tuple[list[dict[str, Any]], Problems]:
    """Files uploaded before and now. They are stored at once, so that a refused form keeps them."""
    kept: list[dict[str, Any]] = []
    wrong: list[str] = []
    for file_id in dict.fromkeys(request.form.getlist("keep")):
        try:
            kept.append(site.services.files.get(actor, file_id))
        except NotFound:
            wrong.append("A file uploaded before is gone; choose it again.")
    for file in request.files.getlist("files"):
        if not file.filename:
            continue  # a file field left empty is sent as a file without a name
        try:
            kept.append(_store(site, actor, file))
        except RequestError as error:
            wrong.append(f"{file.filename[:80]}: {error.detail}")
            wrong += [problem.detail for problem in error.problems]
    return kept, {"files": wrong} if wrong else {}


def _store(site: Site, actor: Actor, file: FileStorage) -> dict[str, Any]:
    if not actor.may(Permission.FILE_WRITE):
        raise Forbidden(f"Uploading needs the permission {Permission.FILE_WRITE}.")
    name = (file.filename or "").replace("\\", "/").rpartition("/")[2]
    limit = site.services.settings.server.max_upload
    return site.services.files.upload(actor, name, file.mimetype, file.stream, limit)


def _accepts(inputs: dict[str, Any]) -> str:
    """How many files of which kinds the plugin takes, in words."""
    low, high = inputs["min"], inputs["max"]
    if high == 0:
        return "This plugin takes no files."
    if low and high == low:
        count = "One file" if low == 1 else f"{low} files"
    elif low:
        count = f"{low} to {high} files" if high else f"At least {low} file{'s' if low > 1 else ''}"
    else:
        count = f"At most {high} file{'s' if high > 1 else ''}" if high else "Any number of files"
    kinds = f", of {', '.join(inputs['accept'])}" if inputs["accept"] else ""
    return f"{count}{kinds}."


PAGES = (Page("/ui/submit", "submit", submit, Permission.JOB_SUBMIT, methods=("GET", "POST"), label="Submit"),)
