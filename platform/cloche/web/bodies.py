"""Bodies and queries: read within their limits, parsed strictly, validated by the route's model; faults get JSON pointers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_origin

from flask import request
from pydantic import BaseModel, ValidationError

from cloche.errors import BadRequest, Invalid, Problem, TooLarge, UnsupportedMedia
from cloche.web import reading, strictjson
from cloche.web.problems import ParameterProblem

M = TypeVar("M", bound=BaseModel)
_CHUNK = 65_536
_MAX_QUERY = 8_192  # characters
_MAX_PROBLEMS = 50
# Words of our own where pydantic's would not help the caller.
_WORDS = {"extra_forbidden": "is not a field of this request", "missing": "is required"}


def read_exactly(limit: int) -> bytes:
    """The request's whole body.

    Raises:
        TooLarge: it is longer than ``limit`` bytes.
        BadRequest: it ended before the length it announced.
        Unavailable: too many bodies are being read at once.
    """
    announced = request.content_length
    if announced is not None and announced > limit:
        raise TooLarge(f"The body has {announced} bytes; this address takes at most {limit}.")
    with reading.briefly():
        return _read(limit, announced)


def _read(limit: int, announced: int | None) -> bytes:
    parts: list[bytes] = []
    size = 0
    while chunk := request.stream.read(_CHUNK):
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"The body is longer than the {limit} bytes this address takes.")
        parts.append(chunk)
    if announced is not None and size < announced:
        raise BadRequest("The body ended before the length it announced.", code="truncated-body")
    return b"".join(parts)


def read_json(limit: int) -> bytes:
    """The body of a request that says it is JSON.

    Raises:
        UnsupportedMedia: it says something else.
        TooLarge, BadRequest, Unavailable: see :func:`read_exactly`.
    """
    if request.mimetype != "application/json":
        raise UnsupportedMedia("Send the body as JSON, with Content-Type: application/json.")
    if request.content_encoding:
        raise UnsupportedMedia("Send the body without Content-Encoding.")
    return read_exactly(limit)


def parsed(model: Any, raw: bytes) -> Any:
    """The body as the route's model reads it.

    Raises:
        BadRequest, Invalid.
    """
    try:
        value = strictjson.loads(raw)
    except strictjson.Malformed as error:
        raise BadRequest(f"The body is not valid JSON: {error}.", code="malformed-json") from None
    try:
        return model.read(value)
    except ValidationError as error:
        raise refusal(problems_of(error)) from None


def refuse_body() -> None:
    """For routes that take none: an empty body or ``{}`` passes.

    Raises:
        Invalid: something was sent that would be ignored.
    """
    if request.method in ("GET", "HEAD") or not (request.content_length or "Transfer-Encoding" in request.headers):
        return
    if read_exactly(_CHUNK).strip() not in (b"", b"{}"):
        raise Invalid("This address takes no body.", problems=[Problem("", "leave the body empty")])


def validated(model: type[M], value: Any) -> M:
    """``value`` as the model.

    Raises:
        Invalid: with a pointer to each fault.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise refusal(problems_of(error)) from None


def problems_of(error: ValidationError, at: str = "") -> list[Problem]:
    """A pointer and words for each fault; the pointers begin with ``at``."""
    return [Problem(at + _pointer(item["loc"]), _words(item)) for item in _errors(error)]


def refusal(problems: Sequence[Problem]) -> Invalid:
    return Invalid("The body does not fit what this address takes.", problems=problems)


def read_query(model: type[M] | None) -> M | None:
    """The query's parameters as the route's model; a route without one takes no parameters.

    Raises:
        Invalid: naming each parameter that does not fit.
    """
    if len(request.query_string) > _MAX_QUERY:
        raise BadRequest("The query is too long.")
    if model is None:
        if request.args:
            problems = [ParameterProblem(name[:64], "is not a parameter of this address") for name in request.args]
            raise Invalid("The query does not fit what this address takes.", problems=problems[:_MAX_PROBLEMS])
        return None
    values: dict[str, Any] = {}
    for name, given in request.args.lists():
        field = model.model_fields.get(name)
        many = field is not None and get_origin(field.annotation) is list
        if len(given) > 1 and not many:
            raise Invalid("The query does not fit.", problems=[ParameterProblem(name[:64], "is given more than once")])
        if any("\x00" in value or "\ufffd" in value for value in given):
            raise Invalid("The query does not fit.", problems=[ParameterProblem(name[:64], "is not UTF-8 text")])
        values[name] = given if many else given[0]
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [ParameterProblem(".".join(map(str, item["loc"]))[:64], _words(item)) for item in _errors(error)]
        raise Invalid("The query does not fit what this address takes.", problems=problems) from None


def _errors(error: ValidationError) -> list[Any]:
    return error.errors(include_url=False, include_input=False, include_context=False)[:_MAX_PROBLEMS]


def _pointer(steps: tuple[int | str, ...]) -> str:
    kept = [
        str(step) for step in steps if step != "[key]"
    ]  # pydantic's mark for "the key itself", no part of the document
    return "".join("/" + step.replace("~", "~0").replace("/", "~1")[:80] for step in kept[:32])


def _words(item: Mapping[str, Any]) -> str:
    known = _WORDS.get(item["type"])
    return known or str(item["msg"]).removeprefix("Value error, ")[:300]
