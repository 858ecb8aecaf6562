"""The REST API as the demo uses it: plain httpx, so that one can see each call."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
from screen import DemoFailed

TERMINAL = ("completed", "failed", "canceled")
_JOB_DEADLINE_S = 120.0


class Rest:
    """One caller, known by a token (or by none). ``raw`` gives the answer as it is, the others insist on success."""

    def __init__(self, url: str, token: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=f"{url}/api/v1", headers=headers, timeout=90.0, trust_env=False)

    def raw(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._http.request(method, path, **options)

    def get(self, path: str, **params: str) -> Any:
        return self._insist("GET", path, params=params)

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        return self._insist("POST", path, json=body, **options)

    def upload(self, path: Path, name: str | None = None) -> Any:
        """Store a file, under ``name`` or its own."""
        with path.open("rb") as stream:
            return self._insist("POST", "/files", files={"file": (name or path.name, stream)})

    def content(self, file_id: str) -> bytes:
        """A stored file's bytes."""
        answer = self.raw("GET", f"/files/{file_id}/content")
        if answer.is_error:
            raise DemoFailed(f"GET /files/{file_id}/content answered {answer.status_code}")
        return answer.content

    def finished(self, job_id: str) -> Any:
        """The job at its end; waits with long polls."""
        deadline = time.monotonic() + _JOB_DEADLINE_S
        while time.monotonic() < deadline:
            job = self.get(f"/jobs/{job_id}", wait="20s")
            if job["status"] in TERMINAL:
                return job
        raise DemoFailed(f"job {job_id} has not ended after {_JOB_DEADLINE_S:.0f} s")

    def close(self) -> None:
        self._http.close()

    def _insist(self, method: str, path: str, **options: Any) -> Any:
        answer = self.raw(method, path, **options)
        if answer.is_error:
            raise DemoFailed(f"{method} {path} answered {answer.status_code}: {answer.text[:1000]}")
        return answer.json()
