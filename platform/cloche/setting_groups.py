"""Kinds of values that settings have, and groups of settings that :mod:`cloche.config` puts together with its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from cloche.clock import parse_duration
from cloche.units import parse_size


def _number(value: Any) -> Any:
    """Text of digits, as it comes from the environment, as a number."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _joined(value: Any) -> Any:
    """A list, as it comes from a file, as the text that the environment would hold."""
    return ",".join(str(item) for item in value) if isinstance(value, list) else value


Milliseconds = Annotated[int, BeforeValidator(lambda value: parse_duration(_number(value)))]
Bytes = Annotated[int, BeforeValidator(lambda value: parse_size(_number(value)))]
Texts = Annotated[str, BeforeValidator(_joined)]  # entries between commas or spaces; a file may have a list


MAX_LABELS = 32
MOST = 10**15  # of what a quota counts: domain.quotas has its meaning
_LABEL_PART = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?\Z")


def parse_labels(text: str) -> dict[str, str]:
    """``"zone=eu-1, gpu=none"`` as a mapping. Names and values are as those of jobs; a value may be empty.

    Raises:
        ValueError: an entry is no ``name=value``, a name comes twice, or there are too many.
    """
    labels: dict[str, str] = {}
    for entry in text.replace(",", " ").split():
        name, equals, value = entry.partition("=")
        if not equals or not _LABEL_PART.match(name) or (value and not _LABEL_PART.match(value)):
            raise ValueError(
                f"'{entry[:130]}' is no label: write name=value, each 1–63 of letters, digits, '.', '_', '-', '/'"
            )
        if name in labels:
            raise ValueError(f"the label {name} comes twice")
        labels[name] = value
    if len(labels) > MAX_LABELS:
        raise ValueError(f"at most {MAX_LABELS} labels")
    return labels


class Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SecretSettings(Group):
    keys: SecretStr = Field(
        SecretStr(""),
        description="Keys that tenants' secrets are encrypted with, 64 hex digits each: the first encrypts, all decrypt. Empty: `keys/secrets.key`.",
    )


class CallbackSettings(Group):
    enabled: bool = Field(True, description="Take jobs that ask for a callback, and deliver callbacks.")
    private: Texts = Field(
        "",
        description="Receivers that are not public and may be called all the same: addresses, networks, exact hosts (`host` or `host:port`).",
    )
    concurrency: int = Field(16, ge=1, le=256, description="Callbacks one scheduler sends at once.")
    receiver_concurrency: int = Field(2, ge=1, le=64, description="Callbacks sent at once to one host and port.")
    timeout: Milliseconds = Field(10_000, description="How long one try may take from its connection to the answer.")
    give_up: Milliseconds = Field(86_400_000, description="How long a callback that fails is tried again.")
    ca_file: Path | None = Field(
        None, description="File of further certificate authorities (PEM) that receivers' certificates may come from."
    )


class SigninSettings(Group):
    password_min: int = Field(12, ge=8, le=128, description="Characters that a new password has at least.")
    waiting: int = Field(
        8,
        ge=1,
        le=256,
        description="Sign-ins that wait for their turn in one web process, a quarter of `server.threads` at most; further ones are sent away.",
    )
    reset_life: Milliseconds = Field(
        3_600_000, ge=60_000, le=7 * 86_400_000, description="How long the code of a password reset is valid."
    )


_REMOTE_PLACE = re.compile(r"[a-z0-9_-]{1,32}:[^\x00-\x1f]{0,200}\Z")


def _remote_place(value: Any) -> Any:
    if isinstance(value, str) and value and not _REMOTE_PLACE.match(value):
        raise ValueError("write REMOTE:FOLDER, such as backup:cloche/checkpoints")
    return value


class AuditSettings(Group):
    checkpoint_file: Path | None = Field(
        None, description="File that signed checkpoints are appended to; best on a disk of another machine."
    )
    checkpoint_remote: Annotated[str, BeforeValidator(_remote_place)] = Field(
        "", description="`REMOTE:FOLDER`: signed checkpoints are stored there; a remote of tenant `default`."
    )
    checkpoint_webhook: SecretStr = Field(
        SecretStr(""),
        description="URL that signed checkpoints are sent to by POST. Kept as a secret, for such URLs often are one.",
    )
    checkpoint_interval: Milliseconds = Field(
        300_000, description="How often a new checkpoint is sent to each of these places."
    )
    reads: bool = Field(False, description="Record every successful read (GET) by somebody signed in, too.")


class ExtensionSettings(Group):
    enabled: Texts = Field(
        "",
        description="Installed packages that may run inside the platform, by the names of their entry points; see docs/quotas.md.",
    )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.enabled.replace(",", " ").split())


class QuotaSettings(Group):
    """Defaults of every tenant and every user; 0: no limit. See docs/quotas.md."""

    tenant_jobs: int = Field(
        0, ge=0, le=MOST, description="Jobs of one tenant that have not ended, at most; 0: no limit."
    )
    tenant_submissions: int = Field(
        0, ge=0, le=MOST, description="Jobs one tenant submits within a minute, at most; 0: no limit."
    )
    tenant_storage: Bytes = Field(0, ge=0, le=MOST, description="Stored files of one tenant, at most; 0: no limit.")
    tenant_cpu: int = Field(
        0, ge=0, le=MOST, description="CPU-seconds one tenant uses in a day (UTC), at most; 0: no limit."
    )
    user_jobs: int = Field(0, ge=0, le=MOST, description="Jobs of one user that have not ended, at most; 0: no limit.")
    user_submissions: int = Field(
        0, ge=0, le=MOST, description="Jobs one user submits within a minute, at most; 0: no limit."
    )
    user_storage: Bytes = Field(0, ge=0, le=MOST, description="Stored files of one user, at most; 0: no limit.")
    user_cpu: int = Field(
        0, ge=0, le=MOST, description="CPU-seconds one user uses in a day (UTC), at most; 0: no limit."
    )
