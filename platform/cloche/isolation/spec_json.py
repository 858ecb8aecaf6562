"""Specs as sandboxd gets them on its socket, and back. Pure; everything that comes is checked."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from cloche.domain.limits import CEILINGS, Limits
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.spec import BadSpec, check_spec

_LIMIT_TYPES = {name: type(value) for name, value in CEILINGS.to_dict().items()}


def parse_spec(value: Any) -> SandboxSpec:
    """A SandboxSpec from the JSON that came over the socket.

    Raises:
        BadSpec: a field is missing, unknown, of the wrong type or out of bounds.
    """
    names = {field.name for field in fields(SandboxSpec)}
    if not isinstance(value, dict) or value.keys() != names:
        raise BadSpec(f"a spec has exactly the fields {', '.join(sorted(names))}")
    limits = value["limits"]
    if not isinstance(limits, dict) or limits.keys() != _LIMIT_TYPES.keys():
        raise BadSpec(f"limits has exactly the fields {', '.join(_LIMIT_TYPES)}")
    for name, kind in _LIMIT_TYPES.items():
        allowed = (int, float) if kind is float else (int,)
        if isinstance(limits[name], bool) or not isinstance(limits[name], allowed):
            raise BadSpec(f"limits.{name} is a number{'' if kind is float else ' without a fraction'}")
    command = value["command"]
    if isinstance(command, list):
        command = tuple(command)
    if not isinstance(value["preload"], list):
        raise BadSpec("preload is a list")
    preload = tuple(value["preload"])
    spec = SandboxSpec(**{**value, "limits": Limits(**limits), "command": command, "preload": preload})
    check_spec(spec)
    return spec


def spec_to_json(spec: SandboxSpec) -> dict[str, Any]:
    """What :func:`parse_spec` reads."""
    return {
        "job_id": spec.job_id,
        "attempt": spec.attempt,
        "bundle": spec.bundle,
        "wheels": spec.wheels,
        "limits": spec.limits.to_dict(),
        "lease_until": spec.lease_until,
        "image": spec.image,
        "command": None if spec.command is None else list(spec.command),
        "warm": spec.warm,
        "priority": spec.priority,
        "egress": spec.egress,
        "runtime": spec.runtime,
        "level": spec.level,
        "tenant": spec.tenant,
        "preload": list(spec.preload),
        "secrets": spec.secrets,
        "sensitive": spec.sensitive,
    }
