"""``cloche audit``: verify. Offline: it reads a file and needs no server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloche.cli import output
from cloche.cli.settings import load_settings, settings_options
from cloche.errors import ClocheError

if TYPE_CHECKING:
    from cloche.audit.verify import Verdict


@click.group()
def audit() -> None:
    """Verify the audit trail."""


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@audit.command()
@settings_options
@click.option("--database", type=_FILE, help="A database file, such as a copy; the home's own when absent.")
@click.option("--export", type=_FILE, help="An export (NDJSON) instead of a database.")
@click.option(
    "--checkpoint", type=_FILE, help="A signed checkpoint that was kept elsewhere: the trail has to contain it."
)
@click.option("--public-key", type=_FILE, help="The public key to trust; the home's own when absent.")
@output.output_option
def verify(
    home: str | None,
    config: str | None,
    database: Path | None,
    export: Path | None,
    checkpoint: Path | None,
    public_key: Path | None,
    form: str,
) -> int:
    """Check every event, leaf, batch and signature. Exits 0: valid, 1: tampered, 2: incomplete or not verifiable; names the first bad event."""
    if database and export:
        raise click.UsageError("give --database or --export, not both")
    settings = load_settings("audit", home, config)
    from cloche.audit.offline import verify_database, verify_export

    keys = settings.home / "keys"
    try:
        if export:
            verdict = verify_export(export, keys=keys, checkpoint=checkpoint, public_key=public_key)
        else:
            path = database or _database(settings.database_url)
            verdict = verify_database(path, keys=keys, checkpoint=checkpoint, public_key=public_key)
    except ClocheError as error:
        # Not verified is not tampered with: who acts on the exit code must be able to tell.
        click.echo(f"cloche: could not verify: {error}", err=True)
        return 2
    _show(form, verdict)
    return verdict.exit_code


def _database(url: str) -> Path:
    from sqlalchemy import make_url

    return Path(make_url(url).database or "")


def _show(form: str, verdict: Verdict) -> None:
    bad = verdict.first_bad
    where = None
    if bad is not None:
        where = f"sequence {bad.seq if bad.seq is not None else '(not sealed yet)'}, event {bad.event_id or '(unknown)'}: {bad.why}"
    lines = [
        ("verdict", verdict.status.value),
        ("first bad", where),
        (
            "events",
            f"{verdict.events} ({verdict.leaves} sealed in {verdict.batches} batches, {verdict.unsealed} not yet)",
        ),
        ("root", verdict.root),
        ("key", verdict.key),
        ("checked", "signatures, hashes and HMACs" if verdict.hmac_checked else "signatures and hashes"),
        *(("note", text) for text in verdict.notes),
    ]
    output.details(form, verdict.to_dict(), lines, verdict.status.value)
