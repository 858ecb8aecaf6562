"""Bodies and queries that the API takes. A field that is not here is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, WithJsonSchema, model_validator

from cloche.clock import from_rfc3339, is_uuid7, parse_duration
from cloche.domain.callbacks import MAX_URL, Delivery, parse_url
from cloche.domain.dependencies import MAX_UPSTREAMS, REF
from cloche.domain.egress import MAX_PATTERNS
from cloche.domain.limits import parse_size
from cloche.domain.queues import MAX_CONCURRENCY, MAX_SHARES, MAX_WEIGHT, NAME_PATTERN
from cloche.domain.retries import MAX_RETRIES, delay_ms, retried_reason
from cloche.domain.states import EDGES, State
from cloche.domain.versions import MAX_REASON
from cloche.services.ended import MAX_AT_ONCE
from cloche.web.routing import Body, Query

MAX_LIMIT = 100
MAX_WAIT_MS = 60_000
Cursor = Annotated[str, StringConstraints(max_length=200)]


def _duration(value: Any) -> Any:
    if not isinstance(value, (str, int, float)):
        raise ValueError("a duration is seconds or text such as '5s'")
    parse_duration(value)
    return value


def _delay(value: Any) -> Any:
    delay_ms(value)
    return value


def _job_id(value: str) -> str:
    if not is_uuid7(value):
        raise ValueError("is not the id of a job")
    return value


def _upstream(value: Any) -> Any:
    if isinstance(value, str):
        return _job_id(value)
    if (
        isinstance(value, dict)
        and value.keys() == {"ref"}
        and isinstance(value["ref"], str)
        and REF.fullmatch(value["ref"])
    ):
        return value
    raise ValueError('is the id of a job, or {"ref": "…"} with the ref of a job of this batch')


def _failure(value: str) -> str:
    known = EDGES[State.PROCESSING, State.FAILED]
    if value not in {reason.value for reason in known}:
        raise ValueError(f"is no reason that a job fails for; these are: {', '.join(sorted(known))}")
    return value


def _size(value: Any) -> Any:
    if not isinstance(value, (str, int)):
        raise ValueError("a size is bytes or text such as '256MB'")
    parse_size(value)
    return value


def _moment(value: str) -> str:
    from_rfc3339(value)
    return value


def _url(value: str) -> str:
    parse_url(value)
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
Delay = Annotated[Duration, AfterValidator(_delay)]
Retried = Annotated[str, AfterValidator(retried_reason)]
JobId = Annotated[str, AfterValidator(_job_id)]
Ref = Annotated[str, StringConstraints(pattern=f"^{REF.pattern}$")]
Upstream = Annotated[
    Any,
    AfterValidator(_upstream),
    WithJsonSchema(
        {
            "description": "The id of a job, or the ref of one of this batch.",
            "oneOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {"ref": {"type": "string", "pattern": f"^{REF.pattern}$"}},
                    "required": ["ref"],
                    "additionalProperties": False,
                },
            ],
        }
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
Reasoned = Annotated[str, StringConstraints(min_length=1, max_length=MAX_REASON, pattern=r"^[^\x00-\x1f\x7f]+$")]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,63}(=[A-Za-z0-9._/-]{0,63})?$")]
QueueName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Concurrency = Annotated[int, Field(ge=1, le=MAX_CONCURRENCY)]
Failure = Annotated[str, AfterValidator(_failure)]
Location = Annotated[str, StringConstraints(min_length=1, max_length=1_100)]


class Input(Body):
    source: Location = Field(
        alias="from", description="`artifact:<id>`, or `<remote>:path` with globs in the last part."
    )
    to: Location | None = Field(None, description="Its name under /job/in.")


class Output(Body):
    match: Location = Field(description="A glob over paths under /job/out.")
    to: Location | None = Field(None, description="`<remote>:folder`; the artifact store when absent.")


class Retry(Body):
    """How failures of the plugin are retried; what is left out is the plugin's or the operator's."""

    max_retries: Annotated[int, Field(ge=0, le=MAX_RETRIES)] | None = None
    backoff: Literal["fixed", "linear", "exponential"] | None = Field(
        None, description="How the longest wait grows; the actual one is drawn from zero to it."
    )
    initial_delay: Delay | None = None
    max_delay: Delay | None = None
    retry_on: (
        Annotated[list[Retried], Field(min_length=1, max_length=32, description="Only after these failures.")] | None
    ) = None


class JobLimits(Body):
    """A job may only tighten what its plugin asks for."""

    cpu: Annotated[float, Field(gt=0, le=64)] | None = None
    memory: Size | None = None
    pids: Annotated[int, Field(ge=1, le=65_536)] | None = None
    output: Size | None = None


class Callback(Body):
    url: Annotated[str, StringConstraints(min_length=1, max_length=MAX_URL), AfterValidator(_url)] = Field(
        description="Where the job's end is told by a signed POST: `https://…` or `http://…`, without credentials or fragment."
    )
    events: Annotated[list[Literal["completed", "failed", "canceled"]], Field(min_length=1, max_length=3)] | None = (
        Field(None, description="Which ends; all when absent.")
    )


class NewJob(Body):
    type: Name = Field(description="The job type: a plugin's name.")
    version: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = Field(
        None, description="A PEP 440 specifier such as `==1.*`; the highest version when absent."
    )
    name: Text200 | None = None
    payload: dict[str, Any] | None = Field(None, description="The plugin's parameters, checked against its schema.")
    priority: Annotated[int, Field(ge=0, le=9)] = Field(5, description="9 goes first.")
    sensitive: bool = Field(
        False, description="Encrypt at rest what the job holds, and mask it everywhere; on gVisor where it is proven."
    )
    queue: QueueName | None = Field(
        None,
        description="One of `GET /queues`; `default` when absent. Sensitive jobs go to `sensitive`, and they alone.",
    )
    labels: Annotated[dict[str, str], Field(max_length=32)] | None = None
    inputs: Annotated[list[Input], Field(max_length=1_000)] | None = None
    outputs: Annotated[list[Output], Field(max_length=100)] | None = None
    retry: Retry | None = None
    timeout: Duration | None = None
    limits: JobLimits | None = None
    schedule_at: Moment | None = Field(
        None, description="Not before this time, at most 366 days ahead; one that has passed means now."
    )
    expires_at: Moment | None = Field(None, description="Canceled when it has not been started by then.")
    expires_in: Duration | None = Field(None, description="The same, from its acceptance on.")
    depends_on: Annotated[list[JobId], Field(max_length=MAX_UPSTREAMS)] | None = Field(
        None, description="Jobs of the tenant that have to end first."
    )
    depends_on_condition: Literal["all_completed", "all_resolved"] | None = Field(
        None, description="`all_completed` when absent; `all_resolved`: once each has ended, however."
    )
    on_upstream_failure: Literal["cancel", "continue"] | None = Field(
        None, description="When absent `cancel` with `all_completed`, and `continue` with `all_resolved`."
    )
    callback: Callback | None = None


class NewQueue(Body):
    name: QueueName
    description: Text200 | None = None
    max_concurrency: Concurrency | None = Field(
        None, description="Jobs of it that run at once at most, over all workers; no limit when absent."
    )
    paused: bool = Field(False, description="Accept jobs, and start none.")


class ChangedQueue(Body):
    """What is left out stays. With `scope` `tenant` only `paused` can be said."""

    scope: Literal["tenant", "platform"] = Field(
        "tenant",
        description="`tenant`: for one's own tenant's jobs. `platform`: for everybody's; needs `queue:manage`.",
    )
    paused: bool = Field(False, description="Accept jobs, and start none; what runs goes on.")
    description: Text200 | None = None
    max_concurrency: Concurrency | None = Field(None, description="`null`: no limit.")
    weights: Annotated[dict[Name, Annotated[int, Field(ge=1, le=MAX_WEIGHT)]], Field(max_length=MAX_SHARES)] = Field(
        default_factory=dict, description="Of tenants by name: how many turns each gets for one of the others'."
    )


class ChangedVersion(Body):
    """Of a plugin's version, for every tenant."""

    state: Literal["enabled", "deprecated", "disabled", "yanked"] = Field(
        description="`enabled`; `deprecated`: jobs are accepted and told so; `disabled`, `yanked`: no new jobs, and jobs that were accepted run on."
        " Of a yanked version jobs that have ended may be retried, of a disabled one not."
    )
    reason: Reasoned | None = Field(
        None, description="Why; whoever submits a job is told. The state before it loses its own."
    )


class BatchJob(NewJob):
    """A job of a batch: as if it had come alone, but others of the batch can depend on it."""

    ref: Ref | None = Field(None, description="What it is called in this batch; `depends_on` can name it.")
    depends_on: Annotated[list[Upstream], Field(max_length=MAX_UPSTREAMS)] | None = Field(
        None, description="Jobs of the tenant, or of this batch, that have to end first."
    )


class NewRemote(Body):
    name: Name
    type: Name
    options: dict[str, str | int | bool]


class ChangedRemote(Body):
    options: dict[str, str | int | bool | None]


class Page(Query):
    cursor: Cursor | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = 50


class JobFilter(Page):
    status: State | None = None
    type: Name | None = None
    version: Name | None = None
    queue: QueueName | None = None
    label: Label | None = Field(None, description="`name` or `name=value`.")
    priority: Annotated[int, Field(ge=0, le=9)] | None = None
    submitted_by: Name | None = Field(None, description="A user name.")
    since: Moment | None = None
    until: Moment | None = None


class DeadLetterFilter(Body):
    type: Name | None = None
    queue: Name | None = None
    reason: Failure | None = Field(None, description="Why it failed, such as `timed_out` or `quarantined`.")
    label: Label | None = None
    since: Moment | None = Field(None, description="Failed at this time or later.")
    until: Moment | None = Field(None, description="Failed before this time.")


class DeadLetterQuery(Page):
    type: Name | None = None
    queue: Name | None = None
    reason: Failure | None = Field(None, description="Why it failed, such as `timed_out` or `quarantined`.")
    label: Label | None = None
    since: Moment | None = Field(None, description="Failed at this time or later.")
    until: Moment | None = Field(None, description="Failed before this time.")


class DeadLetterChoice(Body):
    """Either ``ids`` or ``filter``; an empty filter means all dead letters of the tenant."""

    ids: Annotated[list[JobId], Field(min_length=1, max_length=MAX_AT_ONCE)] | None = None
    filter: DeadLetterFilter | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_AT_ONCE)] | None = Field(
        None, description="With a filter: at most this many, the oldest failures first."
    )
    dry_run: bool = False

    @model_validator(mode="after")
    def _one_choice(self) -> DeadLetterChoice:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give either ids or filter; an empty filter means all dead letters")
        if self.ids is not None and self.limit is not None:
            raise ValueError("limit goes with filter alone")
        return self


class BatchJobFilter(Page):
    status: State | None = None


class DeliveryFilter(Page):
    status: Delivery | None = Field(None, description="`pending` ones are tried again.")


class Reveal(Query):
    reveal: Literal["true", "false"] = Field(
        "false", description="`true`: what a sensitive job holds, in clear; recorded in the audit trail."
    )


class Wait(Reveal):
    wait: Annotated[str, AfterValidator(_wait)] | None = Field(
        None, description="Answer when the job has ended, or after this time: `30s`, at most 60s."
    )


class EgressPolicy(Body):
    allow: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=300)]],
        Field(max_length=MAX_PATTERNS, description="`host:port`; the host may be `*` or `*.domain`, the port `*`."),
    ]


class UploadQuery(Query):
    name: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = Field(
        None, description="The file's name, when its bytes are the body."
    )


class ContentQuery(Query):
    inline: Literal["0", "1"] = Field("0", description="`1` shows pictures and text instead of downloading them.")


class PluginQuery(Query):
    version: Name | None = None


class AuditFilters(Query):
    actor: Name | None = Field(None, description="A user's name, or that of a part of the platform.")
    action: Name | None = None
    object: Annotated[str, StringConstraints(max_length=255)] | None = None
    outcome: Literal["allowed", "denied", "failed"] | None = None
    ip: Annotated[str, StringConstraints(max_length=64)] | None = Field(None, description="The address it came from.")
    request_id: Name | None = None
    token_id: Name | None = None
    since: Moment | None = None
    until: Moment | None = None


class AuditQuery(AuditFilters, Page):
    pass


class Forgotten(Body):
    kind: Literal["name", "ip"] = "name"
    value: Annotated[str, StringConstraints(min_length=1, max_length=255)]
