"""``cloche image``: build, check."""

from __future__ import annotations

from dataclasses import asdict

import click

from cloche.cli import exits, output
from cloche.cli.settings import load_settings, settings_options


@click.group()
def image() -> None:
    """Build the sandbox image; check one that a plugin brings."""


@image.command()
@settings_options
@click.option(
    "--base",
    default="auto",
    show_default=True,
    metavar="auto|host|REFERENCE",
    help="'host': this machine's own Python; an image reference: built FROM it; 'auto': a reference if it can be pulled, else 'host'.",
)
@output.output_option
def build(home: str | None, config: str | None, base: str, form: str) -> None:
    """Build the image that jobs run in, unless it is there already. sandboxd does so by itself at its start."""
    settings = load_settings("image", home, config)
    from cloche.sandboxd.engine import Engine
    from cloche.sandboxd.image import ensure_image

    engine = Engine(settings.sandbox.docker_socket)
    try:
        made = ensure_image(engine, settings.sandbox.image, base, emit=output.note)
    finally:
        engine.close()
    data = {"tag": settings.sandbox.image, "id": made.id, "python": made.python, "source": made.source}
    output.details(form, data, list(data.items()), made.id)


_CHECKED: output.Columns = (
    ("", lambda row: "✓" if row["kept"] else "✗"),
    ("RULE", lambda row: row["rule"]),
    ("FOUND", lambda row: row["found"]),
    ("DO", lambda row: row["advice"]),
)


@image.command()
@settings_options
@click.argument("image_id", metavar="ID")
@output.output_option
def check(home: str | None, config: str | None, image_id: str, form: str) -> int:
    """Say whether a plugin may bring the image ID (sha256:…, on this host's engine), and which rule it breaks. Nothing of it is run."""
    settings = load_settings("image", home, config)
    from cloche.sandboxd.engine import Engine
    from cloche.sandboxd.own_image import findings

    engine = Engine(settings.sandbox.docker_socket)
    try:
        rows = [asdict(finding) for finding in findings(engine, image_id, {})]
    finally:
        engine.close()
    kept = all(row["kept"] for row in rows)
    data = {"id": image_id, "usable": kept, "rules": rows}
    output.show(form, data, rows=rows, columns=_CHECKED, name=lambda row: f"{row['rule']} {row['kept']}")
    return exits.OK if kept else exits.FAILED
