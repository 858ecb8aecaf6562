"""The REST client behind the commands: one place that knows addresses, credentials, and what an error answer means."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote

import click
import httpx

from cloche import __version__
from cloche.cli import exits, output

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_URL = "http://127.0.0.1:8080"
_CHUNK = 1 << 18
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)


class ApiFailure(click.ClickException):
    """An answer that says no, or no answer at all. Shown on stderr; carries the exit code that fits."""

    def __init__(self, message: str, exit_code: int = exits.FAILED, status: int | None = None) -> None:
        super().__init__(output.printable(message))
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it on the class, and reads it from the instance
        self.status = status


def client_options(command: F) -> F:
    """Adds ``--url`` and ``--token`` to a command."""
    url = click.option("--url", envvar="CLOCHE_URL", default=DEFAULT_URL, show_default=True, help="Address of Cloche.")
    token = click.option("--token", envvar="CLOCHE_TOKEN", help="Access token; better given as CLOCHE_TOKEN.")
    return url(token(command))


class Api:
    """Calls to ``/api/v1``. Use as a context manager.

    Raises (all methods):
        ApiFailure: the answer is an error, or there is none.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        basic: tuple[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        headers = {"User-Agent": f"cloche/{__version__}", "Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.Client(
            base_url=f"{self.url}/api/v1",
            headers=headers,
            auth=httpx.BasicAuth(*basic) if basic else None,
            timeout=_TIMEOUT,
            trust_env=False,
            transport=transport,
        )

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        return self._call("GET", path, params={key: value for key, value in params.items() if value is not None}).json()

    def post(self, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None) -> Any:
        answer = self._call("POST", path, json=body, headers=headers)
        return answer.json() if answer.content else None

    def delete(self, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None) -> Any:
        """The answer's JSON, or None where it has no body."""
        answer = self._call("DELETE", path, json=body, headers=headers)
        return answer.json() if answer.content else None

    def put(self, path: str, body: Any, *, headers: Mapping[str, str] | None = None) -> Any:
        return self._call("PUT", path, json=body, headers=headers).json()

    def patch(self, path: str, body: Any, *, headers: Mapping[str, str] | None = None) -> Any:
        return self._call("PATCH", path, json=body, headers=headers).json()

    def text(self, path: str, **params: Any) -> str:
        params = {key: value for key, value in params.items() if value is not None}
        return self._call("GET", path, params=params, headers={"Accept": "text/plain"}).text

    def wait(self, job_id: str, seconds: float) -> Any:
        """The job, at its end or after ``seconds`` (the server answers earlier than that when it is busy)."""
        return self._call(
            "GET",
            f"/jobs/{job_id}",
            params={"wait": f"{max(0, round(seconds))}s"},
            timeout=httpx.Timeout(seconds + 30, connect=5),
        ).json()

    def upload(self, path: Path) -> Any:
        """Stream a local file to the artifact store; the stored file as JSON."""
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        headers = {"Content-Type": media_type, "Content-Length": str(path.stat().st_size)}
        with path.open("rb") as stream:
            options = {"params": {"name": path.name}, "headers": headers, "timeout": httpx.Timeout(600, connect=5)}
            answer = self._call("POST", "/files", content=_chunks(stream), **options)
        return answer.json()

    def download(self, file_id: str, target: IO[bytes]) -> str:
        """Stream a stored file into ``target``; its SHA-256 in hex."""
        digest = hashlib.sha256()
        try:
            with self._http.stream("GET", f"/files/{file_id}/content") as answer:
                if answer.is_error:
                    answer.read()
                    raise _failure(answer)
                for chunk in answer.iter_bytes(_CHUNK):
                    digest.update(chunk)
                    target.write(chunk)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        return digest.hexdigest()

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from None
        if answer.is_error:
            raise _failure(answer)
        return answer

    def _unreachable(self, error: Exception) -> ApiFailure:
        return ApiFailure(f"no answer from {self.url}: {error}. Does `cloche up` run there? Set CLOCHE_URL or --url.")


def segment(text: str) -> str:
    """An id or a name as one part of a path, whatever it holds."""
    return quote(text, safe="")


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk


def _failure(answer: httpx.Response) -> ApiFailure:
    """The problem document (RFC 9457) of an error answer, as one message."""
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        return ApiFailure(
            f"{answer.status_code} {answer.reason_phrase}", exits.of_http(answer.status_code), answer.status_code
        )
    lines = [str(problem.get("detail") or problem.get("title") or answer.reason_phrase) + f" ({answer.status_code})"]
    faults = problem.get("problems") or problem.get("errors") or []
    lines += [f"  {item.get('pointer') or '/'}: {item.get('detail')}" for item in faults if isinstance(item, dict)]
    if answer.status_code == 401:
        lines.append("  Give a token with CLOCHE_TOKEN or --token; `cloche token create` makes one.")
    if problem.get("request_id"):
        lines.append(f"  request {problem['request_id']}")
    return ApiFailure("\n".join(lines), exits.of_http(answer.status_code), answer.status_code)
