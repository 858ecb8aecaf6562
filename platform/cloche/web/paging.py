"""Cursor pages: ``{items, next_cursor}`` and the same as a ``Link`` header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from flask import request


def page(result: Mapping[str, Any]) -> tuple[dict[str, Any], int, dict[str, str]]:
    """A service's page as an answer; ``Link`` repeats the request's own filters with the next cursor."""
    cursor = result.get("next_cursor")
    headers = {}
    if cursor:
        kept = [(name, value) for name, value in request.args.items(multi=True) if name != "cursor"]
        headers["Link"] = f'<{request.path}?{urlencode([*kept, ("cursor", cursor)])}>; rel="next"'
    return {"items": result["items"], "next_cursor": cursor}, 200, headers
