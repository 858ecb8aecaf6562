"""``cloche file``: put and get."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cloche.cli import output
from cloche.cli.client import Api, ApiFailure, client_options
from cloche.cli.commands.jobs import path_part
from cloche.cli.download import fetch, inside

_COLUMNS: output.Columns = (
    ("ID", lambda row: row["id"]),
    ("NAME", lambda row: row["name"]),
    ("SIZE", lambda row: output.size(row["size"])),
    ("TYPE", lambda row: row.get("media_type")),
    ("SHA-256", lambda row: row["sha256"]),
)


@click.group()
def file() -> None:
    """Upload and download files."""


@file.command()
@click.argument(
    "paths", nargs=-1, required=True, metavar="FILE…", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@output.output_option
@client_options
def put(url: str, token: str | None, form: str, paths: tuple[Path, ...]) -> None:
    """Upload each FILE; a job names it as artifact:ID."""
    stored: list[Any] = []
    with Api(url, token) as api:
        for path in paths:
            stored.append(api.upload(path))  # noqa: PERF401 - what is stored so far is shown even when a later one fails
    output.show(form, {"items": stored}, rows=stored, columns=_COLUMNS, name=lambda row: str(row["id"]))


@file.command()
@click.argument("file_id")
@click.option(
    "--to", "target", metavar="PATH", help="Where to write it ('-': stdout); its own name, here, when absent."
)
@client_options
def get(url: str, token: str | None, file_id: str, target: str | None) -> None:
    """Download a file and check its SHA-256. An existing file is replaced only where --to names it."""
    with Api(url, token) as api:
        stored = api.get(f"/files/{path_part(file_id)}")
        if target == "-":
            if api.download(file_id, sys.stdout.buffer) != stored["sha256"]:
                raise ApiFailure("the download's SHA-256 is not the stored one")
            return
        if target is None:
            path = inside(Path.cwd(), str(stored["name"]).rpartition("/")[2])
            if path.exists():
                raise ApiFailure(f"{path.name} exists already; name a place with --to")
        else:
            path = Path(target) / Path(str(stored["name"])).name if Path(target).is_dir() else Path(target)
        fetch(api, file_id, path, str(stored["sha256"]))
    output.note(f"saved {path}")
