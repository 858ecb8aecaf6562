"""Stored files: upload, look, download, delete."""

from __future__ import annotations

from typing import Any

from flask import Response

from cloche.domain.permissions import Permission
from cloche.web import models, shapes
from cloche.web.content import download
from cloche.web.routing import Call, Raw, RouteGroup
from cloche.web.uploads import incoming

group = RouteGroup("files")
_BYTES = Raw(("application/octet-stream",), "The bytes.")


@group.route(
    "POST",
    "/files",
    permission=Permission.FILE_WRITE,
    query=models.UploadQuery,
    body=Raw(("multipart/form-data", "application/octet-stream"), "The part `file`, or the bytes with `?name=`."),
    responses={201: shapes.FileOut},
    summary="Store a file.",
)
def upload(call: Call) -> Any:
    limit = call.services.settings.server.max_upload
    file = incoming(call.query.name, limit)
    stored = call.services.files.upload(call.actor, file.name, file.media_type, file.stream, limit)
    return stored, 201, {"Location": f"/api/v1/files/{stored['id']}"}


@group.route(
    "GET",
    "/files/<file_id>",
    permission=Permission.FILE_READ,
    responses={200: shapes.FileOut},
    summary="What is known of a file.",
)
def get_file(call: Call, file_id: str) -> Any:
    return call.services.files.get(call.actor, file_id)


@group.route(
    "GET",
    "/files/<file_id>/content",
    permission=Permission.FILE_READ,
    query=models.ContentQuery,
    headers=("Range", "If-None-Match"),
    responses={200: _BYTES, 206: _BYTES},
    summary="A file's bytes, whole or in part.",
)
def get_content(call: Call, file_id: str) -> Response:
    return download(call.services.files, call.actor, file_id, inline=call.query.inline == "1")


@group.route(
    "DELETE", "/files/<file_id>", permission=Permission.FILE_WRITE, responses={204: None}, summary="Delete a file."
)
def delete_file(call: Call, file_id: str) -> None:
    call.services.files.delete(call.actor, file_id)
