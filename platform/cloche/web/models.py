"""Bodies and queries that the API takes. A field that is not here is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, WithJsonSchema

from cloche.clock import from_rfc3339, parse_duration
from cloche.domain.egress import MAX_PATTERNS
from cloche.domain.limits import parse_size
from cloche.domain.states import State
from cloche.web.routing import Body, Query

MAX_LIMIT = 100
MAX_WAIT_MS = 60_000


def _duration(value: Any) -> Any:
    if not isinstance(value, (str, int, float)):
        raise ValueError("a duration is seconds or text such as '5s'")
    parse_duration(value)
    return value


def _size(value: Any) -> Any:
    if not isinstance(value, (str, int)):
        raise ValueError("a size is bytes or text such as '256MB'")
    parse_size(value)
    return value


def _moment(value: str) -> str:
    from_rfc3339(value)
    return value


def _wait(value: str) -> str:
    if parse_duration(value if not value.isdigit() else int(value)) > MAX_WAIT_MS:
        raise ValueError(f"the longest wait is {MAX_WAIT_MS // 1000}s")
    return value


Duration = Annotated[
    Any,
    AfterValidator(_duration),
    WithJsonSchema(
        {"type": ["string", "number"], "description": "'30s', '5m', 'PT5M', or seconds.", "examples": ["30s"]}
    ),
]
Size = Annotated[
    Any,
    AfterValidator(_size),
    WithJsonSchema({"type": ["string", "integer"], "description": "'256MB', '1GB', or bytes.", "examples": ["256MB"]}),
]
Moment = Annotated[str, AfterValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})]
Name = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]
Text200 = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Location = Annotated[str, StringConstraints(min_length=1, max_length=1_100)]


class SignIn(Body):
    username: Annotated[str, StringConstraints(max_length=256)]
    password: Annotated[str, StringConstraints(max_length=1_024)]


class NewUser(Body):
    username: Annotated[str, StringConstraints(max_length=256)]
    password: Annotated[str, StringConstraints(max_length=2_048)]
    roles: Annotated[list[Name], Field(min_length=1, max_length=16)]


class NewToken(Body):
    name: Name
    scopes: (
        Annotated[list[Name], Field(max_length=64, description="Permissions; all of one's own when absent.")] | None
    ) = None
    expires_in: Duration | None = Field(None, description="How long it is valid; for ever when absent.")


class Input(Body):
    source: Location = Field(
        alias="from", description="`artifact:<id>`, or `<remote>:path` with globs in the last part."
    )
    to: Location | None = Field(None, description="Its name under /job/in.")


class Output(Body):
    match: Location = Field(description="A glob over paths under /job/out.")
    to: Location | None = Field(None, description="`<remote>:folder`; the artifact store when absent.")


class Retry(Body):
    max_retries: Annotated[int, Field(ge=0, le=100)] | None = None
    backoff: Literal["exponential"] | None = None
    initial_delay: Duration | None = None
    max_delay: Duration | None = None


class JobLimits(Body):
    """A job may only tighten what its plugin asks for."""

    cpu: Annotated[float, Field(gt=0, le=64)] | None = None
    memory: Size | None = None
    pids: Annotated[int, Field(ge=1, le=65_536)] | None = None
    output: Size | None = None


class NewJob(Body):
    type: Name = Field(description="The job type: a plugin's name.")
    version: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = Field(
        None, description="A PEP 440 specifier such as `==1.*`; the highest version when absent."
    )
    name: Text200 | None = None
    payload: dict[str, Any] | None = Field(None, description="The plugin's parameters, checked against its schema.")
    priority: Annotated[int, Field(ge=0, le=9)] = Field(5, description="9 goes first.")
    queue: Literal["default"] | None = None
    labels: Annotated[dict[str, str], Field(max_length=32)] | None = None
    inputs: Annotated[list[Input], Field(max_length=1_000)] | None = None
    outputs: Annotated[list[Output], Field(max_length=100)] | None = None
    retry: Retry | None = None
    timeout: Duration | None = None
    limits: JobLimits | None = None


class NewRemote(Body):
    name: Name
    type: Name
    options: dict[str, str | int | bool]


class ChangedRemote(Body):
    options: dict[str, str | int | bool | None]


class Page(Query):
    cursor: Annotated[str, StringConstraints(max_length=200)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = 50


class JobFilter(Page):
    status: State | None = None
    type: Name | None = None
    version: Name | None = None
    queue: Literal["default"] | None = None
    label: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,63}(=[A-Za-z0-9._/-]{0,63})?$")] | None = (
        Field(None, description="`name` or `name=value`.")
    )
    priority: Annotated[int, Field(ge=0, le=9)] | None = None
    submitted_by: Name | None = Field(None, description="A user name.")
    since: Moment | None = None
    until: Moment | None = None


class Wait(Query):
    wait: Annotated[str, AfterValidator(_wait)] | None = Field(
        None, description="Answer when the job has ended, or after this time: `30s`, at most 60s."
    )


class LogQuery(Query):
    attempt: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class EgressPolicy(Body):
    allow: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=300)]],
        Field(max_length=MAX_PATTERNS, description="`host:port`; the host may be `*` or `*.domain`, the port `*`."),
    ]


class EventQuery(Query):
    last_event_id: Annotated[str, StringConstraints(max_length=40)] | None = Field(
        None, description="Where to go on, for clients that cannot send `Last-Event-ID`."
    )


class UploadQuery(Query):
    name: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = Field(
        None, description="The file's name, when its bytes are the body."
    )


class ContentQuery(Query):
    inline: Literal["0", "1"] = Field("0", description="`1` shows pictures and text instead of downloading them.")


class PluginQuery(Query):
    version: Name | None = None


class AuditQuery(Page):
    actor: Name | None = None
    action: Name | None = None
    object: Annotated[str, StringConstraints(max_length=255)] | None = None
    outcome: Literal["allowed", "denied", "failed"] | None = None
    request_id: Name | None = None
    token_id: Name | None = None
    since: Moment | None = None
    until: Moment | None = None
