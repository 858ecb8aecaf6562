"""Watches the web process: says when the address can be used, what is missing, and when that changes."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable

from cloche.cli.output import printable

_EVERY_S = 0.2
_STEADY_S = 3.0  # while all is well
_TIMEOUT_S = 5.0
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # asked for, and where it is reached then: nothing is bound here # nosec B104


def address(host: str, port: int) -> str:
    """The URL of a server that listens on ``host``, as one opens it on this machine."""
    host = _ANY.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Announcer:
    """Asks ``/readyz`` in a thread. ``listening`` is called once, ``waiting`` with each new reason, ``ready`` whenever jobs can run again."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        listening: Callable[[], None],
        waiting: Callable[[str], None],
        ready: Callable[[], None],
    ) -> None:
        self._where = (_ANY.get(host, host), port)
        self._listening, self._waiting, self._ready = listening, waiting, ready
        self._stopped = threading.Event()
        self._quiet = False
        self._thread = threading.Thread(target=self._watch, name="announcer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def hush(self) -> None:
        """Say nothing more: what goes away now is meant to. Safe in a signal handler, for it takes no lock."""
        self._quiet = True

    def stop(self) -> None:
        """Return once the thread has ended; safe more than once."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        heard, ready, last = False, False, ""
        while not self._stopped.is_set():
            answer = self._ask()
            if self._quiet:
                return
            if answer is not None and not heard:
                heard = True
                self._listening()
            status, reason = answer or (0, "the web process does not answer")
            if status == 200 and not ready:
                ready, last = True, ""
                self._ready()
            elif status != 200 and heard and reason != last:
                ready, last = False, reason
                self._waiting(reason)
            self._stopped.wait(_STEADY_S if ready else _EVERY_S)

    def _ask(self) -> tuple[int, str] | None:
        connection = http.client.HTTPConnection(*self._where, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", "/readyz", headers={"Host": f"localhost:{self._where[1]}"})
            answer = connection.getresponse()
            return answer.status, _reason(answer.read(65_536))
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def _reason(body: bytes) -> str:
    try:
        found = json.loads(body)
    except ValueError:
        return "not ready"
    reasons = found.get("reasons") if isinstance(found, dict) else None
    if not isinstance(reasons, list) or not reasons:
        return "not ready"
    return printable("; ".join(str(reason) for reason in reasons))
