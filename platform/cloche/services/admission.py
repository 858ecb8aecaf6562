"""From a request's body to a job's row: everything is checked here, before anything is written."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, select

from cloche.audit.canonical import digest
from cloche.clock import is_uuid7, uuid7
from cloche.db import tables as t
from cloche.db.engine import now_ms
from cloche.domain.egress import Policy
from cloche.domain.jobs import DEFAULT_PRIORITY, DEFAULT_QUEUE, SEALED, SENSITIVE_QUEUE
from cloche.domain.permissions import Actor, Permission
from cloche.domain.runtimes import RUNSC, RuntimeRefused, decided
from cloche.errors import Forbidden, Invalid, Problem
from cloche.isolation.gvisor import OWN_IMAGE_REFUSED
from cloche.registry.catalog import Bundle
from cloche.registry.payload import PayloadCheck, apply_defaults
from cloche.registry.unfolding import MOST
from cloche.services import queue_rows
from cloche.services.actors import refuse_suspended
from cloche.services.asked import Defaults, callback_of, limits_of, retry_of
from cloche.services.egress import EgressService
from cloche.services.plugins import PluginService
from cloche.services.records import chunks
from cloche.services.sealing import JobVault
from cloche.services.secret_delivery import missing
from cloche.services.waiting import waiting
from cloche.staging.accept import matches
from cloche.staging.paths import check_relative
from cloche.staging.sources import ArtifactSource, RemoteSource, parse_destination, parse_source

_LABEL = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?\Z")
_MAX_LABELS = 32
_ASKED_AT_ONCE = 500  # files in one query
_ARTIFACTS = select(t.artifact.c.id, t.artifact.c.name, t.artifact.c.sha256)


def admit(
    connection: Connection,
    actor: Actor,
    body: Mapping[str, Any],
    plugins: PluginService,
    egress: EgressService,
    defaults: Defaults,
    vault: JobVault,
) -> dict[str, Any]:
    """The job's row, without the columns of its life cycle; the payload of a sensitive one is sealed in it.

    Raises:
        Invalid: with a JSON pointer to each thing that is wrong.
        Forbidden: a remote is named and the actor may not use remotes.
        Unavailable: it is sensitive, and the platform's key is not what it should be.
    """
    return Admission(connection, actor, plugins, egress, defaults, vault).admit(body)


class Admission:
    """Admits the jobs of one request, on one reading connection. What several of them share is resolved, compiled and looked up once."""

    def __init__(
        self,
        connection: Connection,
        actor: Actor,
        plugins: PluginService,
        egress: EgressService,
        defaults: Defaults,
        vault: JobVault,
        together: Collection[str] = (),
    ) -> None:
        """``together``: the ids that jobs of this request get, which may depend on each other.

        Raises:
            Conflict: the actor's tenant is suspended.
        """
        refuse_suspended(actor)
        self._connection = connection
        self._actor = actor
        self._plugins = plugins
        self._egress = egress
        self._defaults = defaults
        self._vault = vault
        self._together = frozenset(together)
        self._lookups = Lookups(connection, actor)
        self._resolved: dict[tuple[str, str | None], _Version] = {}
        self._work = MOST  # for all payloads together
        self._now = now_ms(connection)

    def admit(self, body: Mapping[str, Any], job_id: str | None = None) -> dict[str, Any]:
        """See :func:`admit`; with an id that was chosen before, or a new one."""
        version = self._version(body["type"], body.get("version"))
        bundle = version.bundle
        payload = apply_defaults(bundle.manifest.params, body.get("payload") or {})
        problems = self._payload(version, payload)
        sensitive, queue, found = _queue(self._lookups, body)
        problems += found
        problems += _runtime(bundle, self._defaults.runtime)
        problems += version.secrets(self._connection, self._actor.tenant_id)
        problems += _labels(body.get("labels") or {})
        inputs, found = _inputs(self._lookups, body.get("inputs") or [], bundle)
        problems += found
        outputs, found = _outputs(self._lookups, body.get("outputs") or [])
        problems += found
        limits, found = version.limits(body, self._defaults)
        problems += found
        retry, found = version.retry(body, self._defaults)
        problems += found
        waits, found = waiting(self._connection, self._actor.tenant_id, body, self._now, self._together)
        problems += found
        callback, found = callback_of(body.get("callback"), self._defaults.reach)
        problems += found
        if problems:
            raise Invalid("the job was not accepted; nothing was stored", problems=problems)
        job_id = job_id or uuid7()
        return {
            "id": job_id,
            "tenant_id": self._actor.tenant_id,
            "name": body.get("name"),
            "type": bundle.manifest.name,
            "version_spec": body.get("version"),
            "plugin_version": bundle.manifest.version,
            "plugin_digest": bundle.digest,
            "sensitive": sensitive,
            **_held(self._vault if sensitive else None, self._actor.tenant_id, job_id, payload),
            "queue": queue,
            "priority": body.get("priority", DEFAULT_PRIORITY),
            "labels": dict(body.get("labels") or {}),
            "inputs": inputs,
            "outputs": outputs,
            "limits": limits,
            "retry": retry,
            "callback": callback,
            "warnings": version.warnings or None,
            "submitted_by": self._actor.user_id,
            **waits,
        }

    def prefetch(self, bodies: Iterable[Mapping[str, Any]]) -> None:
        """Look up the files that these jobs name with few queries instead of one each. Changes no answer."""
        self._lookups.prefetch(bodies)

    def _version(self, name: str, spec: str | None) -> _Version:
        found = self._resolved.get((name, spec))
        if found is None:
            found = self._resolved[name, spec] = _Version(*self._plugins.resolve(self._connection, name, spec))
        return found

    def _payload(self, version: _Version, payload: Mapping[str, Any]) -> list[Problem]:
        version.check.left = self._work
        problems = version.check.problems(payload)
        self._work = version.check.left
        if (
            not problems and version.bundle.manifest.network_allow
        ):  # what a host is taken from has to be a valid payload
            manifest, tenant = version.bundle.manifest, self._lookups.policy(self._egress)
            problems = self._egress.admitted(self._connection, self._actor.tenant_id, manifest, payload, tenant)[1]
        return problems


class _Version:
    """A plugin version with what its jobs have in common, unless they ask for something of their own."""

    def __init__(self, bundle: Bundle, warnings: list[str]) -> None:
        self.bundle = bundle
        self.warnings = warnings
        self.check = PayloadCheck(bundle.manifest.params, key=bundle.digest)
        self._limits: dict[str, Any] | None = None
        self._retry: dict[str, Any] | None = None
        self._denied: list[Problem] | None = None

    def limits(self, body: Mapping[str, Any], defaults: Defaults) -> tuple[dict[str, Any], list[Problem]]:
        if body.get("limits") or body.get("timeout") is not None:
            own, problems = limits_of(body, self.bundle, defaults)
            return own.to_dict(), problems
        if self._limits is None:
            shared, problems = limits_of({}, self.bundle, defaults)
            if problems:
                return shared.to_dict(), problems
            self._limits = shared.to_dict()
        return self._limits, []

    def secrets(self, connection: Connection, tenant_id: str) -> list[Problem]:
        if self._denied is None:
            self._denied = missing(connection, tenant_id, self.bundle.manifest)
        return list(self._denied)

    def retry(self, body: Mapping[str, Any], defaults: Defaults) -> tuple[dict[str, Any], list[Problem]]:
        if body.get("retry"):
            own, problems = retry_of(body["retry"], self.bundle, defaults)
            return asdict(own), problems
        if self._retry is None:
            shared, problems = retry_of({}, self.bundle, defaults)
            if problems:
                return asdict(shared), problems
            self._retry = asdict(shared)
        return self._retry, []


class Lookups:
    """What the actor's tenant has of what jobs name; each thing is asked for once."""

    def __init__(self, connection: Connection, actor: Actor) -> None:
        self._connection = connection
        self._actor = actor
        self._artifacts: dict[str, Any] = {}
        self._remotes: dict[str, bool] = {}
        self._queues: dict[str, bool] = {}
        self._policy: Policy | None = None

    def prefetch(self, bodies: Iterable[Mapping[str, Any]]) -> None:
        prefix = "artifact:"
        named = {
            str(entry["from"]).removeprefix(prefix): None
            for body in bodies
            for entry in body.get("inputs") or []
            if str(entry["from"]).startswith(prefix)
        }
        for ids in chunks([name for name in named if is_uuid7(name)], _ASKED_AT_ONCE):
            query = _ARTIFACTS.where(t.artifact.c.tenant_id == self._actor.tenant_id, t.artifact.c.id.in_(ids))
            self._artifacts |= dict.fromkeys(ids) | {row.id: row for row in self._connection.execute(query)}

    def artifact(self, artifact_id: str) -> Any:
        """The file's row (``name``, ``sha256``), or None."""
        if artifact_id not in self._artifacts:
            mine = (t.artifact.c.id == artifact_id) & (t.artifact.c.tenant_id == self._actor.tenant_id)
            self._artifacts[artifact_id] = self._connection.execute(_ARTIFACTS.where(mine)).one_or_none()
        return self._artifacts[artifact_id]

    def remote(self, name: str) -> bool:
        """
        Raises:
            Forbidden: the actor may not use remotes.
        """
        if not self._actor.may(Permission.REMOTE_USE):
            raise Forbidden(f"this needs the permission {Permission.REMOTE_USE}")
        if name not in self._remotes:
            mine = (t.remote.c.name == name) & (t.remote.c.tenant_id == self._actor.tenant_id)
            self._remotes[name] = self._connection.execute(select(t.remote.c.id).where(mine)).first() is not None
        return self._remotes[name]

    def queue(self, name: str) -> bool:
        if name not in self._queues:
            self._queues[name] = queue_rows.known(self._connection, name)
        return self._queues[name]

    def policy(self, egress: EgressService) -> Policy:
        """The tenant's egress policy."""
        if self._policy is None:
            self._policy = egress.policy(self._connection, self._actor.tenant_id)
        return self._policy


def _held(vault: JobVault | None, tenant_id: str, job_id: str, payload: dict[str, Any]) -> dict[str, Any]:
    """The payload's columns; sealed where there is a ``vault``, with a keyed digest: a plain one of what can be guessed gives it away."""
    if vault is None:
        return {"payload": payload, "payload_sha256": digest(payload)}
    seal = vault.seal_for(tenant_id, job_id)
    return {"payload": {SEALED: seal.seal("payload", payload)}, "payload_sha256": seal.payload_mac(payload)}


def _queue(lookups: Lookups, body: Mapping[str, Any]) -> tuple[bool, str, list[Problem]]:
    """Whether the job is sensitive, and its queue: sensitive jobs have one of their own, which takes no others."""
    sensitive = body.get("sensitive") is True
    own = SENSITIVE_QUEUE if sensitive else DEFAULT_QUEUE
    asked = body.get("queue") or own
    if asked == own:
        return sensitive, own, []
    if not sensitive and asked != SENSITIVE_QUEUE:
        problems = [] if lookups.queue(asked) else [Problem("/queue", queue_rows.MISSING.format(name=asked))]
        return sensitive, asked, problems
    detail = f"is for {'other' if sensitive else 'sensitive'} jobs; leave it out, and this one goes to '{own}'"
    return sensitive, own, [Problem("/queue", detail)]


def _runtime(bundle: Bundle, policy: str) -> list[Problem]:
    """What no sandbox of this platform can be is told at once, and uses up none of the job's attempts."""
    manifest = bundle.manifest
    try:
        if decided(manifest.runtime, policy) == RUNSC and manifest.image is not None:
            what = f"{OWN_IMAGE_REFUSED}; every job gets that runtime here (CLOCHE_SANDBOX_RUNTIME is {policy})"
            return [Problem("/type", what)]
    except RuntimeRefused as error:
        return [Problem("/type", str(error))]
    return []


def _labels(labels: Mapping[str, str]) -> list[Problem]:
    found = [] if len(labels) <= _MAX_LABELS else [Problem("/labels", f"at most {_MAX_LABELS} labels")]
    for key, value in labels.items():
        if not _LABEL.match(key) or (value and not _LABEL.match(value)):
            found.append(Problem("/labels", "names and values are 1–63 of letters, digits, '.', '_', '-', '/'"))
            break
    return found


def _inputs(
    lookups: Lookups, asked: Sequence[Mapping[str, Any]], bundle: Bundle
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
            row = lookups.artifact(source.artifact_id)
            if row is None:
                problems.append(Problem(f"{pointer}/from", "there is no such file; upload it with POST /api/v1/files"))
                continue
            name, sha256 = to or row.name, row.sha256
        else:
            problems += _remote(lookups, source, f"{pointer}/from")
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


def _outputs(lookups: Lookups, asked: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Problem]]:
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
            problems += _remote(lookups, destination, pointer)
        outputs.append({"match": entry["match"], "to": entry.get("to")})
    return outputs, problems


def _remote(lookups: Lookups, source: RemoteSource, pointer: str) -> list[Problem]:
    if lookups.remote(source.remote):
        return []
    return [Problem(pointer, f"there is no remote '{source.remote}'; GET /api/v1/remotes lists them")]
