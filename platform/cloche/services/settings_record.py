"""That the platform started, and whether its settings are those of the last start: digests, and never a secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from sqlalchemy import Connection, select

from cloche.audit import canonical
from cloche.config import Settings
from cloche.db import tables
from cloche.db.audit_log import AuditEntry, AuditLog, Digest
from cloche.domain.events import Action
from cloche.domain.permissions import Actor
from cloche.services.checkpoint_sinks import webhook_target

_event = tables.audit_event.c
_SHORT = 16  # hex digits of a group's digest


def effective(settings: Settings) -> dict[str, Any]:
    """The settings as JSON. Of a secret only whether it is set; the URLs of stores hold passwords, and are secrets. Of the receiver of
    checkpoints also where it is: whoever turns them away to another is seen.

    Raises:
        SettingsError: that receiver's URL is none.
    """
    shown = {name: _plain(getattr(settings, name)) for name in type(settings).model_fields}
    target = webhook_target(settings.audit.checkpoint_webhook.get_secret_value())
    shown["audit"]["checkpoint_webhook"] = target and target.origin
    return shown


def record_start(
    connection: Connection, audit: AuditLog, actor: Actor, settings: Settings, details: dict[str, Any]
) -> None:
    """Record the start; before it, when the settings differ from those of the last start, that and which groups they are."""
    given = effective(settings)
    groups = {name: canonical.digest(value)[:_SHORT] for name, value in given.items()}
    last = connection.execute(
        select(_event.after_sha256, _event.details)
        .where(
            _event.tenant_id == actor.tenant_id,
            _event.action == Action.PLATFORM_START.value,
            _event.after_sha256.is_not(None),
        )
        .order_by(_event.id.desc())
        .limit(1)
    ).first()
    if last is not None and last.after_sha256 != canonical.digest(given):
        known = _groups(last.details)
        changed = sorted(name for name in {*known, *groups} if known.get(name) != groups.get(name))
        entry = AuditEntry(
            actor,
            Action.SETTINGS_CHANGE,
            "platform:settings",
            before=Digest(last.after_sha256),
            after=given,
            details={"changed": changed},
        )
        audit.record(connection, entry)
    # Texts: under a name such as "secret" a value of its own would be masked, and seem changed at each start.
    shown = [f"{name} {value}" for name, value in sorted(groups.items())]
    audit.record(
        connection,
        AuditEntry(actor, Action.PLATFORM_START, "platform:web", after=given, details={**details, "settings": shown}),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return "set" if value.get_secret_value() else None
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    return str(value) if isinstance(value, Path) else value


def _groups(details: str) -> dict[str, str]:
    found = json.loads(details).get("settings") or []
    return dict(text.split(" ") for text in found if " " in text)
