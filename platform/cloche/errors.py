"""Every error Cloche raises on purpose, and whose fault it is.

::

    ClocheError
    ├── SettingsError            the operator's: a setting is missing, unknown or malformed
    ├── EnvironmentProblem       the host's: port in use, home unwritable, no engine, not root
    ├── RequestError             the caller's; carries an HTTP status
    │   ├── BadRequest           400  the request cannot be parsed
    │   ├── Unauthenticated      401
    │   ├── Forbidden            403
    │   │   └── QuotaExceeded    403  the tenant or the user has used up what it may use
    │   ├── NotFound             404  also for what exists but is not yours
    │   ├── Conflict             409
    │   ├── TooLarge             413
    │   ├── UnsupportedMedia     415
    │   ├── Invalid              422  carries JSON pointers to what is wrong
    │   └── RateLimited          429
    │       └── QuotaPace        429  more submissions in a minute than the tenant or the user may make
    ├── Unavailable              ours, for now: 503 with Retry-After; nothing was stored
    │   ├── Crowded              the same: too many ask for the same thing at once; nothing is wrong
    │   └── OutcomeUnknown       the same, but what was to be stored may have been
    ├── JobFailure               why an attempt ended without a result
    │   ├── PluginFailure        the plugin's or its input's fault; charged to the job's retries
    │   └── PlatformFailure      ours; never charged to the job's retries
    ├── StaleAttempt             a write by a worker that no longer holds the attempt
    ├── IllegalTransition        a state change that the table does not list
    └── …                        errors of one package, defined where they are raised: registry (ManifestError, BundleError, …),
                                 staging (RemoteFault, Stopped), audit (TamperedTrail), sandboxd (EngineRefused)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


class ClocheError(Exception):
    """Base of every deliberate error."""


class SettingsError(ClocheError):
    """A setting is missing, unknown or malformed. The message says which and what to do."""


class EnvironmentProblem(ClocheError):
    """The machine lacks something Cloche needs. The message says what to do."""


@dataclass(frozen=True)
class Problem:
    """One fault in a request: ``pointer`` is an RFC 6901 JSON pointer into the body (``""`` = the whole)."""

    pointer: str
    detail: str


class RequestError(ClocheError):
    """The caller's fault. ``status`` is the HTTP status, ``code`` a stable slug, ``detail`` says what to do."""

    status = 400
    code = "bad-request"
    title = "Bad request"

    def __init__(self, detail: str, *, code: str | None = None, problems: Sequence[Problem] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or type(self).code
        self.problems = tuple(problems)


class BadRequest(RequestError):
    pass


class Unauthenticated(RequestError):
    status, code, title = 401, "unauthenticated", "Not signed in"


class Forbidden(RequestError):
    status, code, title = 403, "forbidden", "Not allowed"


class QuotaExceeded(Forbidden):
    """``code`` names the quota: ``quota-jobs``, ``quota-storage``, ``quota-cpu``; the detail says whose it is, and until when."""

    title = "Quota used up"


class NotFound(RequestError):
    status, code, title = 404, "not-found", "Not found"


class Conflict(RequestError):
    status, code, title = 409, "conflict", "Conflict"


class TooLarge(RequestError):
    status, code, title = 413, "too-large", "Too large"


class UnsupportedMedia(RequestError):
    status, code, title = 415, "unsupported-media-type", "Unsupported media type"


class Invalid(RequestError):
    status, code, title = 422, "invalid", "Invalid content"


class RateLimited(RequestError):
    status, code, title = 429, "rate-limited", "Too many requests"

    def __init__(self, detail: str, *, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after  # seconds


class QuotaPace(RateLimited):
    code, title = "quota-submissions", "Quota used up"


class Unavailable(ClocheError):
    """Ours and temporary: a store or a service does not answer. ``retry_after`` in seconds."""

    def __init__(self, detail: str, *, retry_after: int = 2) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after


class Crowded(Unavailable):
    """Too many ask for the same thing at once, and this one is sent away so that others are answered. Not worth a line in the log each time."""


class OutcomeUnknown(Unavailable):
    """The database was lost in the moment of a commit: the change was stored whole, or not at all, and nobody can say which.

    Whoever does it again has to look first.
    """

    def __init__(self) -> None:
        super().__init__(
            "the database was lost in the moment of a commit: whether the change was stored is not known; look before doing it again"
        )


@dataclass(eq=False)
class JobFailure(ClocheError):
    """Why an attempt failed. ``reason`` is a value of :class:`cloche.domain.states.Reason`."""

    reason: str
    message: str
    details: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class PluginFailure(JobFailure):
    """The plugin's code, its parameters or its input failed. Charged to the job's ``max_retries``."""


class PlatformFailure(JobFailure):
    """Cloche or something it depends on failed. Retried on a budget of its own, never charged to the job."""


class StaleAttempt(ClocheError):
    """The caller's attempt is not the job's current one, or its lease is gone. Nothing was written."""


class IllegalTransition(ClocheError):
    """The transition table has no such edge."""
