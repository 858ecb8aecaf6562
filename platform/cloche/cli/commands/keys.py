"""``cloche key``: list, rotate. Offline: on the home's own files and database."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import click

from cloche.cli import exits, output
from cloche.cli.settings import load_settings, settings_options
from cloche.config import Settings


@click.group()
def key() -> None:
    """See and rotate the keys that sensitive jobs and tenants' secrets are encrypted with."""


_secrets_option = click.option(
    "--secrets", is_flag=True, help="The keys of tenants' secrets, not those of sensitive jobs."
)


@key.command("list")
@_secrets_option
@settings_options
def list_keys(home: str | None, config: str | None, secrets: bool) -> None:
    """Print the id of each key in the home's `keys` folder, the one in use first. Ids tell nothing of their keys."""
    settings = load_settings("key", home, config)
    from cloche.services.sealing import key_files
    from cloche.services.secret_vault import secret_key_files

    for key_id, path in (secret_key_files if secrets else key_files)(settings.home / "keys"):
        click.echo(f"{key_id}  {path}")


@key.command()
@_secrets_option
@settings_options
def rotate(home: str | None, config: str | None, secrets: bool) -> int:
    """Make a new key for sensitive jobs to come. The one before stays, under its id, for the jobs that were encrypted with it.

    Restart the web processes afterwards: they go on with the key before until then. Workers find the new one by themselves.

    With --secrets: make a new key for tenants' secrets and encrypt each of them anew, while the platform runs. Where that was cut short, it
    goes on; nothing needs a restart.
    """
    settings = load_settings("key", home, config)
    from cloche.audit.keys import KeyRing
    from cloche.db.audit_log import AuditLog
    from cloche.db.engine import Database
    from cloche.services.sealing import rotate as rotated

    audit = AuditLog(KeyRing.load_or_create(settings.home / "keys").hmac_key)
    with closing(Database(settings.database_url)) as database:
        if secrets:
            return _rotate_secrets(settings, database, audit)
        key_id = rotated(settings.home / "keys", database, audit)
    output.note(f"sensitive jobs are encrypted with key {key_id} from the next start of the web processes on")
    return exits.OK


def _rotate_secrets(settings: Settings, database: Any, audit: Any) -> int:
    from cloche.services.secret_rotation import rotate as rotated
    from cloche.services.secret_vault import vault_of

    done = rotated(vault_of(settings, database), database, audit)
    output.note(f"{done.encrypted} secrets were encrypted anew; the key is {done.key_id}")
    if done.before is None:
        output.note(
            "no key was made: one of the settings is in use, there was none, or an earlier rotation was finished"
        )
    for place in done.lost:
        output.note(f"{place} cannot be decrypted with any key that is here; set it again")
    return exits.FAILED if done.lost else exits.OK
