"""From a command line's options to the body of ``POST /jobs``; local files are uploaded on the way."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cloche.cli import output
from cloche.cli.client import Api

_SOURCE = re.compile(r"^(artifact:[0-9a-f-]{36}|[a-z0-9_-]{1,32}:.+)\Z")


def job_body(
    api: Api,
    *,
    job_type: str,
    version: str | None,
    params: Sequence[str],
    payload: str | None,
    inputs: Sequence[str],
    outputs: Sequence[str],
    name: str | None,
    priority: int | None,
    labels: Sequence[str],
    sensitive: bool,
    timeout: str | None,
    max_retries: int | None,
    backoff: str | None,
    initial_delay: str | None,
    max_delay: str | None,
    retry_on: Sequence[str],
    schedule_at: str | None,
    expires_at: str | None,
    expires_in: str | None,
    depends_on: Sequence[str],
    depends_on_condition: str | None,
    on_upstream_failure: str | None,
) -> dict[str, Any]:
    """The body of a submission; fields that were not given are absent.

    Raises:
        click.UsageError: an option is malformed.
        ApiFailure: an upload was refused.
    """
    body: dict[str, Any] = {
        "type": job_type,
        "version": version,
        "name": name,
        "priority": priority,
        "sensitive": True if sensitive else None,
        "timeout": _duration(timeout),
        "payload": parameters(params, payload),
        "labels": dict(pair(item, "--label") for item in labels) or None,
        "outputs": [_output(item) for item in outputs] or None,
        "retry": _given(
            max_retries=max_retries,
            backoff=backoff,
            initial_delay=_duration(initial_delay),
            max_delay=_duration(max_delay),
            retry_on=list(retry_on) or None,
        )
        or None,
        "schedule_at": schedule_at,
        "expires_at": expires_at,
        "expires_in": _duration(expires_in),
        "depends_on": list(depends_on) or None,
        "depends_on_condition": depends_on_condition,
        "on_upstream_failure": on_upstream_failure,
    }
    parsed = [split_input(item) for item in inputs]  # every mistake is found before the first upload
    body["inputs"] = [_input(api, source, to) for source, to in parsed] or None
    return _given(**body)


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _duration(text: str | None) -> int | str | None:
    """Digits alone are seconds."""
    return int(text) if text and text.isascii() and text.isdigit() else text


def parameters(params: Sequence[str], payload: str | None) -> dict[str, Any] | None:
    """The payload: ``--payload`` first, single ``-p`` laid over it. ``-p width=300`` is a number, ``-p title=x`` text."""
    merged: dict[str, Any] = {}
    if payload is not None:
        try:
            given = json.loads(Path(payload[1:]).read_text("utf-8") if payload.startswith("@") else payload)
        except OSError as error:
            raise click.UsageError(f"--payload: cannot read {payload[1:]}: {error.strerror}") from None
        except ValueError as error:
            raise click.UsageError(f"--payload is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise click.UsageError("--payload must be a JSON object")
        merged |= given
    for item in params:
        key, text = pair(item, "-p")
        merged[key] = _value(text)
    return merged if merged or payload is not None else None


def pair(item: str, option: str) -> tuple[str, str]:
    """``"key=value"`` in two."""
    key, equals, value = item.partition("=")
    if not equals or not key:
        raise click.UsageError(f"{option} wants KEY=VALUE, not '{output.printable(item)}'")
    return key, value


def split_input(item: str) -> tuple[str | Path, str | None]:
    """A source and the name it gets: a path that exists here, or text that the platform understands.

    ``a=b.csv`` is a file if one is called so; else the part after the last ``=`` is the name.
    """
    if Path(item).is_file():
        return Path(item), None
    source, equals, to = item.rpartition("=")
    if equals and to and Path(source).is_file():
        return Path(source), to
    if _SOURCE.match(item):
        return (source, to) if equals and to and _SOURCE.match(source) else (item, None)
    raise click.UsageError(f"-i '{output.printable(item)}': no such file here, and neither artifact:ID nor remote:path")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def callback_body(url: str | None, events: Sequence[str]) -> dict[str, Any] | None:
    """A job's ``callback``; None without a URL.

    Raises:
        click.UsageError: there are events and no URL.
    """
    if url is None:
        if events:
            raise click.UsageError("--callback-on needs --callback")
        return None
    return {"url": url, "events": list(dict.fromkeys(events))} if events else {"url": url}


def _output(item: str) -> dict[str, str]:
    match, equals, to = item.partition("=")
    return {"match": match, "to": to} if equals else {"match": match}


def _input(api: Api, source: str | Path, to: str | None) -> dict[str, str]:
    if isinstance(source, Path):
        output.note(f"uploading {source} ({output.size(source.stat().st_size)})")
        stored = api.upload(source)
        return {"from": f"artifact:{stored['id']}", "to": to or source.name}
    return {"from": source, "to": to} if to else {"from": source}
