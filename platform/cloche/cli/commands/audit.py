"""``cloche audit``: verify, and what an operator does to the trail. They work on the home's own files and database: no part of the platform
has to run or to be believed. ``forget`` asks the platform, which knows who may.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloche.cli import output
from cloche.cli.client import Api, client_options
from cloche.cli.settings import load_settings, settings_options
from cloche.errors import ClocheError

if TYPE_CHECKING:
    from cloche.audit.verify import Verdict


@click.group()
def audit() -> None:
    """Verify the audit trail; rotate its keys, prune it, forget a person, declare a restore."""


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@audit.command()
@settings_options
@click.option(
    "--database", type=_FILE, help="An SQLite file, such as a copy; the database of the settings when absent."
)
@click.option("--export", type=_FILE, help="An export (NDJSON) instead of a database.")
@click.option("--proof", type=_FILE, help="A proof of one event (JSON) instead of a database.")
@click.option(
    "--checkpoint", type=_FILE, help="Signed checkpoints that were kept elsewhere: the trail has to contain each."
)
@click.option("--public-key", type=_FILE, help="The public key to trust, the first one; the home's own when absent.")
@output.output_option
def verify(
    home: str | None,
    config: str | None,
    database: Path | None,
    export: Path | None,
    proof: Path | None,
    checkpoint: Path | None,
    public_key: Path | None,
    form: str,
) -> int:
    """Check every event, leaf, batch and signature. Names the first bad event.

    Exits 0: valid, 1: tampered, 2: incomplete or not verifiable, 3: valid but for what a declared restore lost.
    """
    if sum(given is not None for given in (database, export, proof)) > 1:
        raise click.UsageError("give one of --database, --export and --proof")
    if proof and checkpoint:
        raise click.UsageError("a proof cannot be held against a checkpoint: a whole export, or the database, can")
    settings = load_settings("audit", home, config)
    from cloche.audit.offline import verify_database, verify_export, verify_one, verify_server

    keys = settings.home / "keys"
    try:
        if proof:
            verdict = verify_one(proof, keys=keys, public_key=public_key)
        elif export:
            verdict = verify_export(export, keys=keys, checkpoint=checkpoint, public_key=public_key)
        elif database is None and settings.database_url.startswith("postgresql"):
            verdict = verify_server(settings.database_url, keys=keys, checkpoint=checkpoint, public_key=public_key)
        else:
            path = database or _database(settings.database_url)
            verdict = verify_database(path, keys=keys, checkpoint=checkpoint, public_key=public_key)
    except ClocheError as error:
        # Not verified is not tampered with: who acts on the exit code must be able to tell.
        click.echo(f"cloche: could not verify: {error}", err=True)
        return 2
    _show(form, verdict)
    return verdict.exit_code


@audit.command("rotate-key")
@settings_options
@click.option(
    "--key",
    "which",
    type=click.Choice(("signing", "hmac")),
    default="signing",
    show_default=True,
    help="The key that signs batches, or the one that covers events until they are sealed.",
)
def rotate_key(home: str | None, config: str | None, which: str) -> None:
    """Make a new audit key; a batch that the old one signs announces it. Nothing has to be restarted.

    The first public key stays the one to trust: a verification follows the announcements from it. Copy the home's `keys` folder to your
    backup afterwards, and to the other hosts of this platform.
    """
    settings = load_settings("audit", home, config)
    from cloche.audit.keys import KeyRing
    from cloche.db.engine import Database
    from cloche.services.audit_keeping import rotate_hmac_key, rotate_signing_key

    keyring = KeyRing.load_or_create(settings.home / "keys")
    with closing(Database(settings.database_url)) as database:
        if which == "hmac":
            rotate_hmac_key(database, keyring)
            output.note("events are covered by a new HMAC key from now on; the one before is kept to verify with")
            return
        made = rotate_signing_key(database, keyring)
    output.note("batches are signed by a new key from now on; the private half of the one before was removed")
    click.echo(made.text)


@audit.command()
@settings_options
@click.option(
    "--before", "before", required=True, help="A time such as 2026-01-31T00:00:00Z; what is older is deleted."
)
@click.option("--yes", is_flag=True, help="Do it: the events are gone afterwards, but for backups and exports.")
def prune(home: str | None, config: str | None, before: str, yes: bool) -> None:
    """Delete events older than a time, in whole batches. A signed mark takes their place, and what is left verifies.

    The trail is verified first, and nothing younger than a day is deleted, nor what the places that checkpoints are sent to do not vouch for
    yet. On PostgreSQL it works as the tables' owner (CLOCHE_DATABASE_OWNER_URL).
    """
    settings = load_settings("audit", home, config)
    from cloche.audit.keys import KeyRing
    from cloche.clock import from_rfc3339
    from cloche.db.engine import Database
    from cloche.services.audit_prune import prune as pruned

    try:
        before_ms = from_rfc3339(before)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if not yes:
        raise click.UsageError(
            "this deletes a part of the record: export it first if it has to be kept, and give --yes"
        )
    with closing(Database(settings.owner_url)) as database:
        done = pruned(database, KeyRing.load_or_create(settings.home / "keys"), before_ms)
    output.note(f"{done.events} events were deleted; the trail now begins at sequence {done.upto}")


@audit.command("declare-restore")
@settings_options
@click.option("--checkpoint", type=_FILE, required=True, help="Checkpoints kept elsewhere; the newest of them counts.")
def declare_restore(home: str | None, config: str | None, checkpoint: Path) -> None:
    """Say, in a signed batch, that the database was restored from a backup older than a checkpoint.

    A verification with that checkpoint then says which events are lost, and exits 3, instead of calling the trail tampered.
    """
    settings = load_settings("audit", home, config)
    from cloche.audit.keys import KeyRing
    from cloche.audit.offline import read_notes
    from cloche.db.engine import Database
    from cloche.services.audit_keeping import declare_restore as declared

    with closing(Database(settings.database_url)) as database:
        lost = declared(database, KeyRing.load_or_create(settings.home / "keys"), read_notes(checkpoint))
    output.note(f"declared: events {lost.first} to {lost.last} were lost in a restore")


@audit.command()
@click.argument("value", metavar="NAME")
@click.option("--ip", "is_address", is_flag=True, help="NAME is an address.")
@output.output_option
@client_options
def forget(url: str, token: str | None, form: str, value: str, is_address: bool) -> None:
    """Forget a person's NAME in the trail: the events stay and verify, and nobody can say any more whose they are.

    Disable or delete the account first. Of platform administrators alone.
    """
    with Api(url, token) as api:
        done = api.post("/audit/forget", {"kind": "ip" if is_address else "name", "value": value})
    output.details(form, done, [("forgotten", done["kind"]), ("commitment", done["commitment"])], done["commitment"])


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
