"""A job's payload against its plugin's JSON Schema (2020-12). Nothing is ever fetched: a remote ``$ref`` is an error."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema_rs

from cloche.errors import ClocheError, Problem
from cloche.registry.unfolding import MOST, Endless, Unfolding, size

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ITSELF = "a schema may refer only to itself ('#/$defs/…'): nothing is fetched"
_MAX_DEPTH = 64  # of schema and payload; far below where a recursive walk would hurt
_MAX_PROBLEMS = 20
_EXPLAINED = 20_000  # the work up to which faults are told one by one: where alternatives nest, telling takes far longer than finding
_SIMPLE = 500  # or the work for each value
_MAX_DETAIL = 300  # characters of one problem: its message may quote the caller's value
# Linear time whatever the pattern: a plugin's schema must not be able to stall the web process.
_PATTERNS = jsonschema_rs.RegexOptions(size_limit=1 << 20, dfa_size_limit=1 << 20)


class SchemaError(ClocheError):
    """A schema is not a usable one. ``where`` is a JSON pointer into it."""

    def __init__(self, where: str, detail: str) -> None:
        super().__init__(f"{where}: {detail}")
        self.where = where
        self.detail = detail


def pointer(parts: Sequence[str | int]) -> str:
    """An RFC 6901 JSON pointer."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


_VALIDATORS: dict[str, Any] = {}
_MOST_KNOWN = 256


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse what is not a self-contained JSON Schema 2020-12 of an object.

    Raises:
        SchemaError: with a pointer to the fault.
    """
    _check_plain(schema, ())
    _check_references(schema, ())
    if schema.get("$schema", DIALECT) != DIALECT:
        raise SchemaError("/$schema", f"this platform reads JSON Schema 2020-12; write {DIALECT} or leave it out")
    if schema.get("type") != "object":
        raise SchemaError("/type", "must be 'object': a payload is an object of named parameters")
    try:
        jsonschema_rs.meta.validate({**schema, "$schema": DIALECT})
    except jsonschema_rs.ValidationError as error:
        raise SchemaError(pointer(error.instance_path), _short(error.message)) from None
    except (jsonschema_rs.ReferencingError, ValueError) as error:
        raise SchemaError("", _short(str(error))) from None
    _validator(schema)
    try:
        if Unfolding(schema).work(1) > MOST:
            raise SchemaError("", "unfolds to too much: its references name one another too many times")
    except Endless as error:
        raise SchemaError("", str(error)) from None
    _check_defaults(schema)


def apply_defaults(schema: Mapping[str, Any], payload: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the payload in which absent top-level properties have their ``default``."""
    filled = copy.deepcopy(dict(payload))
    for name, part in _properties(schema).items():
        if name not in filled and isinstance(part, Mapping) and "default" in part:
            filled[name] = copy.deepcopy(part["default"])
    return filled


def validate_payload(schema: Mapping[str, Any], payload: Any, *, at: str = "/payload") -> list[Problem]:
    """What is wrong with the payload, at most 20 problems; an empty list when it fits.

    Pointers begin with ``at``, the payload's own place in the request's body. An unknown or a missing property is pointed
    at by its name, so that a form can show the problem beside its field.
    """
    return PayloadCheck(schema).problems(payload, at)


class PayloadCheck:
    """One schema, made ready once for any number of payloads. For one thread at a time.

    ``left`` is the work that may still be done on all payloads together: beyond it each further one is refused, so that many payloads in one
    request cannot take much longer than one.
    """

    def __init__(self, schema: Mapping[str, Any], left: int = MOST, key: str | None = None) -> None:
        """``key``: what the schema is known by, such as its bundle's digest; one with a key is compiled once."""
        self._unfolding = Unfolding(schema)
        self._validator = _validator(schema) if key is None else _known(key, schema)
        self._each: dict[int, int] = {}  # work for each value, by the payload's depth
        self.left = left

    def problems(self, payload: Any, at: str = "/payload") -> list[Problem]:
        """See :func:`validate_payload`."""
        try:
            _check_plain(payload, ())
        except SchemaError as error:
            return [Problem(at + error.where, error.detail)]
        values, depth = size(payload)
        if depth not in self._each:
            self._each[depth] = self._unfolding.work(depth)
        each = self._each[depth]
        work = values * each
        if work > MOST:
            detail = "is too large or too deeply nested for this plugin's schema, which would take too long to check"
            return [Problem(at, detail)]
        if work > self.left:
            return [Problem(at, "comes after so many others that checking them all would take too long; send fewer")]
        self.left -= work
        found: list[Problem] = []
        try:
            if work > _EXPLAINED and each > _SIMPLE:
                fits = self._validator.is_valid(payload)
                return [] if fits else [Problem(at, "does not fit this plugin's schema, and is too large to say where")]
            for fault in self._validator.iter_errors(payload):
                found.extend(_problems(fault, at))
                if len(found) >= _MAX_PROBLEMS:
                    break
        except ValueError as error:  # a value the validator cannot represent
            return [Problem(at, _short(str(error)))]
        return found[:_MAX_PROBLEMS]


def _known(key: str, schema: Mapping[str, Any]) -> Any:
    """The schema's validator, which threads may share."""
    found = _VALIDATORS.get(key)
    if found is None:
        if len(_VALIDATORS) >= _MOST_KNOWN:
            _VALIDATORS.clear()
        found = _VALIDATORS[key] = _validator(schema)
    return found


def _validator(schema: Mapping[str, Any]) -> Any:
    try:
        return jsonschema_rs.Draft202012Validator(
            dict(schema), validate_formats=True, retriever=_refuse, pattern_options=_PATTERNS
        )
    except jsonschema_rs.ValidationError as error:
        raise SchemaError(pointer(error.instance_path), _short(error.message)) from None
    except (jsonschema_rs.ReferencingError, ValueError) as error:
        raise SchemaError("", _short(str(error))) from None


def _refuse(_uri: str) -> Any:
    raise ValueError(_ITSELF)


def _check_references(schema: Any, path: tuple[str | int, ...]) -> None:
    """Say where a reference leads out of the schema; the retriever refuses what gets past this."""
    if isinstance(schema, Mapping):
        for key, item in schema.items():
            if key == "$id" and path and isinstance(item, str):
                raise SchemaError(pointer((*path, key)), "only the whole schema may have an '$id'")
            if key in ("$ref", "$dynamicRef") and isinstance(item, str) and not item.startswith("#"):
                raise SchemaError(pointer((*path, key)), _ITSELF)
            _check_references(item, (*path, key))
    elif isinstance(schema, (list, tuple)):
        for position, item in enumerate(schema):
            _check_references(item, (*path, position))


def _problems(error: Any, at: str) -> list[Problem]:
    where = at + pointer(error.instance_path)
    kind = error.kind
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.AdditionalProperties):
        return [Problem(where + pointer([name]), "is not a parameter of this plugin") for name in kind.unexpected]
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.Required):
        return [Problem(where + pointer([kind.property]), "is required")]
    return [Problem(where, _short(error.message))]


def _check_defaults(schema: Mapping[str, Any]) -> None:
    """A default that its own schema refuses would make every job without that property fail."""
    for problem in validate_payload(schema, apply_defaults(schema, {}), at=""):
        name = problem.pointer.split("/")[1] if problem.pointer else ""
        part = _properties(schema).get(name.replace("~1", "/").replace("~0", "~"))
        if isinstance(part, Mapping) and "default" in part:
            raise SchemaError(f"/properties/{name}/default", problem.detail)


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found = schema.get("properties", {})
    return found if isinstance(found, Mapping) else {}


def _check_plain(value: Any, path: tuple[str | int, ...]) -> None:
    """Refuse what JSON cannot say (TOML knows dates and infinities) and what is nested too deeply."""
    if len(path) > _MAX_DEPTH:
        raise SchemaError(pointer(path[:8]), f"is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            _check_plain(item, (*path, position))
    elif isinstance(value, float) and not math.isfinite(value):
        raise SchemaError(pointer(path), "must be a finite number")
    elif value is not None and not isinstance(value, (str, int, float, bool)):
        raise SchemaError(pointer(path), f"a {type(value).__name__} is not JSON; write it as text")


def _short(text: str) -> str:
    """One line of bounded length; the middle goes, since a message quotes the value first and says what is wrong with it last."""
    line = " ".join(text.split())
    half = _MAX_DETAIL // 2
    return line if len(line) <= _MAX_DETAIL else f"{line[:half]}…{line[-half:]}"
