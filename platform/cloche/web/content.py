"""Stored bytes as a response: ranges, ETag, and headers that keep a browser from running what somebody uploaded."""

from __future__ import annotations

import base64
import re
import unicodedata
from urllib.parse import quote

from flask import Response, request
from werkzeug.wsgi import wrap_file

from cloche.domain.permissions import Actor
from cloche.services.files import FileService
from cloche.web.headers import CONTENT_CSP

_PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_SUFFIX_RANGE = re.compile(r"bytes=-(\d{1,19})\Z")
_CHUNK = 131_072


def download(files: FileService, actor: Actor, file_id: str, *, inline: bool = False) -> Response:
    """The file's bytes. ``inline`` shows pictures as they are and text as plain text; everything else stays a download."""
    facts = files.get(actor, file_id)
    media_type, shown = _shown_as(facts["media_type"], inline)
    stream = files.open(actor, file_id)
    response = Response(wrap_file(request.environ, stream, _CHUNK), content_type=media_type, direct_passthrough=True)
    response.headers["Content-Disposition"] = disposition("inline" if shown else "attachment", facts["name"])
    response.headers["Content-Security-Policy"] = CONTENT_CSP
    response.headers["Cache-Control"] = "private, no-cache"
    response.headers["Repr-Digest"] = f"sha-256=:{_base64(facts['sha256'])}:"
    response.content_length = facts["size"]
    response.set_etag(facts["sha256"])
    environ = dict(request.environ)
    if "," in environ.get("HTTP_RANGE", ""):
        del environ[
            "HTTP_RANGE"
        ]  # several ranges at once: the whole file is a valid answer, and nobody's parser is tried
    if suffix := _SUFFIX_RANGE.match(environ.get("HTTP_RANGE", "")):
        # "The last 20 bytes" of a file of 10 are all of it (RFC 9110, 14.1.3).
        environ["HTTP_RANGE"] = f"bytes=-{min(int(suffix[1]), facts['size'])}"
    try:
        response.make_conditional(environ, accept_ranges=True, complete_length=facts["size"])
    except BaseException:
        stream.close()
        raise
    return response


def disposition(kind: str, name: str) -> str:
    """A Content-Disposition value for any name: an ASCII form for old clients and the exact one (RFC 6266, RFC 8187)."""
    clean = "".join(char if unicodedata.category(char)[0] != "C" else "_" for char in name) or "file"
    plain = unicodedata.normalize("NFKD", clean).encode("ascii", "ignore").decode()
    plain = "".join(char if char.isalnum() or char in " ._-+()" else "_" for char in plain) or "file"
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(clean, safe='')}"


def _shown_as(media_type: str, inline: bool) -> tuple[str, bool]:
    bare = media_type.partition(";")[0].strip().casefold()
    if not inline:
        return bare or "application/octet-stream", False
    if bare in _PICTURES:
        return bare, True
    if bare.startswith("text/") or bare in ("application/json", "application/x-ndjson"):
        return "text/plain; charset=utf-8", True  # also text/html: shown, never rendered
    return bare or "application/octet-stream", False


def _base64(digest: str) -> str:
    return base64.b64encode(bytes.fromhex(digest)).decode()
