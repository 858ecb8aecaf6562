"""``cloche image``: build."""

from __future__ import annotations

import click

from cloche.cli import output
from cloche.cli.settings import load_settings, settings_options


@click.group()
def image() -> None:
    """Build the sandbox image."""


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
