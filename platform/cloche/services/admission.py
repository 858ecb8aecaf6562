"""From a request's body to a job's row: everything is checked here, before anything is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, select

from cloche.audit.canonical import digest
from cloche.clock import parse_duration, uuid7
from cloche.db import tables as t
from cloche.domain.jobs import DEFAULT_PRIORITY, DEFAULT_QUEUE, RetryPolicy
from cloche.domain.limits import Limits, parse_size, violations
from cloche.domain.permissions import Actor, Permission
from cloche.errors import Forbidden, Invalid, Problem
from cloche.registry.catalog import Bundle
from cloche.registry.payload import apply_defaults, validate_payload
from cloche.services.egress import EgressService
from cloche.services.plugins import PluginService
from cloche.staging.accept import matches
from cloche.staging.paths import check_relative
from cloche.staging.sources import ArtifactSource, RemoteSource, parse_destination, parse_source

_LABEL = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?\Z")
_MAX_LABELS = 32
_MAX_DELAY_MS = 7 * 86_400_000
_TIGHTEN: dict[str, Callable[[Any], float | int]] = {
    "cpu": float,
    "memory": parse_size,
    "pids": int,
    "output": parse_size,
}


@dataclass(frozen=True)
class Defaults:
    """What the operator set for jobs whose plugin and body say nothing."""

    max_retries: int
    timeout_ms: int


def admit(
    connection: Connection,
    actor: Actor,
    body: Mapping[str, Any],
    plugins: PluginService,
    egress: EgressService,
    defaults: Defaults,
) -> dict[str, Any]:
    """The job's row, without the columns of its life cycle.

    Raises:
        Invalid: with a JSON pointer to each thing that is wrong.
        Forbidden: a remote is named and the actor may not use remotes.
    """
    bundle = plugins.resolve(body["type"], body.get("version"))
    payload = apply_defaults(bundle.manifest.params, body.get("payload") or {})
    problems = validate_payload(bundle.manifest.params, payload)
    if not problems:  # what a host is taken from has to be a valid payload
        problems = egress.admitted(connection, actor.tenant_id, bundle.manifest, payload)[1]
    problems += _labels(body.get("labels") or {})
    inputs, found = _inputs(connection, actor, body.get("inputs") or [], bundle)
    problems += found
    outputs, found = _outputs(connection, actor, body.get("outputs") or [])
    problems += found
    limits, found = _limits(body, bundle, defaults)
    problems += found
    retry, found = _retry(body.get("retry") or {}, bundle, defaults)
    problems += found
    if problems:
        raise Invalid("the job was not accepted; nothing was stored", problems=problems)
    return {
        "id": uuid7(),
        "tenant_id": actor.tenant_id,
        "name": body.get("name"),
        "type": bundle.manifest.name,
        "version_spec": body.get("version"),
        "plugin_version": bundle.manifest.version,
        "plugin_digest": bundle.digest,
        "payload": payload,
        "payload_sha256": digest(payload),
        "queue": DEFAULT_QUEUE,
        "priority": body.get("priority", DEFAULT_PRIORITY),
        "labels": dict(body.get("labels") or {}),
        "inputs": inputs,
        "outputs": outputs,
        "limits": limits.to_dict(),
        "retry": asdict(retry),
        "submitted_by": actor.user_id,
    }


def _labels(labels: Mapping[str, str]) -> list[Problem]:
    found = [] if len(labels) <= _MAX_LABELS else [Problem("/labels", f"at most {_MAX_LABELS} labels")]
    for key, value in labels.items():
        if not _LABEL.match(key) or (value and not _LABEL.match(value)):
            found.append(Problem("/labels", "names and values are 1–63 of letters, digits, '.', '_', '-', '/'"))
            break
    return found


def _inputs(
    connection: Connection, actor: Actor, asked: Sequence[Mapping[str, Any]], bundle: Bundle
) -> tuple[list[dict[str, Any]], list[Problem]]:
    manifest = bundle.manifest
    inputs: list[dict[str, Any]] = []
    problems: list[Problem] = []
    names: set[str] = set()
    for n, entry in enumerate(asked):
        pointer = f"/inputs/{n}"
        try:
            source = parse_source(entry["from"], pointer=f"{pointer}/from")
            to = check_relative(entry["to"], pointer=f"{pointer}/to") if entry.get("to") else None
        except Invalid as error:
            problems += error.problems or [Problem(pointer, error.detail)]
            continue
        name, sha256 = to, None
        if isinstance(source, ArtifactSource):
            row = _artifact(connection, actor, source.artifact_id)
            if row is None:
                problems.append(Problem(f"{pointer}/from", "there is no such file; upload it with POST /api/v1/files"))
                continue
            name, sha256 = to or row.name, row.sha256
        else:
            problems += _remote(connection, actor, source, f"{pointer}/from")
            # A pattern's files are known, and checked, when they are staged; its `to` names their folder.
            name = None if source.is_glob else to or source.basename
        if name is not None:
            if name in names:
                problems.append(Problem(pointer, f"two inputs would be called '{name}'; give one of them a 'to'"))
            names.add(name)
            if not matches(manifest.accept, name):
                wanted = ", ".join(manifest.accept)
                problems.append(Problem(pointer, f"'{name}' is not what {manifest.name} accepts: {wanted}"))
        inputs.append({"from": entry["from"], "to": name or to, "sha256": sha256})
    if len(asked) < manifest.inputs_min:
        problems.append(Problem("/inputs", f"{manifest.name} needs at least {manifest.inputs_min} input(s)"))
    if manifest.inputs_max is not None and len(asked) > manifest.inputs_max:
        problems.append(Problem("/inputs", f"{manifest.name} takes at most {manifest.inputs_max} input(s)"))
    return inputs, problems


def _outputs(
    connection: Connection, actor: Actor, asked: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[Problem]]:
    outputs: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for n, entry in enumerate(asked):
        pointer = f"/outputs/{n}/to"
        if entry.get("to"):
            try:
                destination = parse_destination(entry["to"], pointer=pointer)
            except Invalid as error:
                problems += error.problems or [Problem(pointer, error.detail)]
                continue
            problems += _remote(connection, actor, destination, pointer)
        outputs.append({"match": entry["match"], "to": entry.get("to")})
    return outputs, problems


def _artifact(connection: Connection, actor: Actor, artifact_id: str) -> Any:
    mine = (t.artifact.c.id == artifact_id) & (t.artifact.c.tenant_id == actor.tenant_id)
    return connection.execute(select(t.artifact.c.name, t.artifact.c.sha256).where(mine)).one_or_none()


def _remote(connection: Connection, actor: Actor, source: RemoteSource, pointer: str) -> list[Problem]:
    if not actor.may(Permission.REMOTE_USE):
        raise Forbidden(f"this needs the permission {Permission.REMOTE_USE}")
    mine = (t.remote.c.name == source.remote) & (t.remote.c.tenant_id == actor.tenant_id)
    if connection.execute(select(t.remote.c.id).where(mine)).one_or_none() is None:
        return [Problem(pointer, f"there is no remote '{source.remote}'; GET /api/v1/remotes lists them")]
    return []


def _limits(body: Mapping[str, Any], bundle: Bundle, defaults: Defaults) -> tuple[Limits, list[Problem]]:
    """The plugin's limits, tightened by the job where it asks; a job cannot widen them."""
    limits, problems = bundle.manifest.limits, []
    asked: dict[str, Any] = {}
    for name, value in (body.get("limits") or {}).items():
        try:
            asked[name] = _TIGHTEN[name](value)
        except (ValueError, KeyError) as error:
            problems.append(Problem(f"/limits/{name}", str(error)))
    if body.get("timeout") is not None:
        try:
            asked["time_ms"] = parse_duration(body["timeout"])
        except ValueError as error:
            problems.append(Problem("/timeout", str(error)))
    elif not bundle.manifest.names_time:
        asked["time_ms"] = min(defaults.timeout_ms, limits.time_ms)
    for name, value in asked.items():
        if value > getattr(limits, name):
            where = "/timeout" if name == "time_ms" else f"/limits/{name}"
            problems.append(
                Problem(where, f"{bundle.manifest.name} allows at most {getattr(limits, name)}; a job may only tighten")
            )
    limits = replace(limits, **asked)
    problems += [Problem("/limits", text) for text in violations(limits)] if not problems else []
    return limits, problems


def _retry(asked: Mapping[str, Any], bundle: Bundle, defaults: Defaults) -> tuple[RetryPolicy, list[Problem]]:
    problems: list[Problem] = []
    own = bundle.manifest.max_retries
    values: dict[str, Any] = {"max_retries": defaults.max_retries if own is None else own}
    values |= {key: asked[key] for key in ("max_retries", "backoff") if asked.get(key) is not None}
    for name in ("initial_delay", "max_delay"):
        if asked.get(name) is not None:
            try:
                values[f"{name}_ms"] = parse_duration(asked[name])
            except ValueError as error:
                problems.append(Problem(f"/retry/{name}", str(error)))
    policy = RetryPolicy(**values)
    if policy.initial_delay_ms > policy.max_delay_ms:
        problems.append(Problem("/retry/initial_delay", "is longer than max_delay"))
    if policy.max_delay_ms > _MAX_DELAY_MS:
        problems.append(Problem("/retry/max_delay", "is longer than 7 days"))
    return policy, problems
