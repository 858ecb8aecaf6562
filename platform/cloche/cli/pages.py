"""Lists that come in pages, gathered."""

from __future__ import annotations

from typing import Any

import click

from cloche.cli.client import Api

limit_option = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=1_000, show_default=True, help="At most this many."
)


def gathered(api: Api, path: str, limit: int, **filters: Any) -> dict[str, Any]:
    """``{"items", "next_cursor"}`` of as many pages as ``limit`` items take.

    Raises:
        ApiFailure: an answer is an error.
    """
    items: list[Any] = []
    cursor: str | None = None
    while len(items) < limit:
        page = api.get(path, limit=min(100, limit - len(items)), cursor=cursor, **filters)
        items += page["items"]
        cursor = page.get("next_cursor")
        if not cursor:
            break
    return {"items": items, "next_cursor": cursor}
