"""The supervisor's log: its own words and its children's lines, for people on a terminal or as JSON lines."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

from cloche.cli.output import printable

_COLORS = (36, 33, 35, 32, 34, 96, 95, 93)  # SGR foregrounds that can be read on dark and light grounds
_LEVELS = {"debug": 2, "warning": 33, "error": 31, "critical": 31}
_HIDDEN = frozenset({"event", "level", "timestamp", "component", "module"})


class Sink(Protocol):
    """Where lines go. Both methods may be called from any thread and never raise for what a line contains."""

    def line(self, process: str, text: str) -> None:
        """A line that a child wrote."""
        ...

    def say(self, text: str, *, level: str = "info") -> None:
        """Something the supervisor itself has to say."""
        ...


def _parsed(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class _Output:
    """A stream that may refuse a line (its disk is full, its reader is gone): a log is not worth the processes it tells of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._lost = 0

    def write(self, text: str, note: Callable[[str], str]) -> None:
        """``note``: a line of the stream's form that says this; written once lines can be written again."""
        with self._lock:
            before = note(f"{self._lost} lines of this log could not be written") if self._lost else ""
            try:
                self._stream.write(before + text)
                self._stream.flush()
                self._lost = 0
            except OSError:
                self._lost += 1


class JsonLines:
    """One JSON object a line: a child's own objects gain ``process``, its other lines become the ``event`` of one."""

    def __init__(self, stream: TextIO) -> None:
        self._output = _Output(stream)

    def line(self, process: str, text: str) -> None:
        self._write(_parsed(text) or _event(text, "info"), process)

    def say(self, text: str, *, level: str = "info") -> None:
        self._write(_event(text, level), "up")

    def _write(self, fields: Mapping[str, Any], process: str) -> None:
        def form(shown: Mapping[str, Any], whose: str) -> str:
            return json.dumps({**shown, "process": whose}) + "\n"

        self._output.write(form(fields, process), lambda text: form(_event(text, "warning"), "up"))


class Console:
    """Text for people: time, the process's name, what happened, in color where the stream is a terminal."""

    def __init__(self, stream: TextIO, *, color: bool, names: tuple[str, ...]) -> None:
        self._output = _Output(stream)
        self._color = color
        self._width = max([len(name) for name in names] + [len("up")])
        self._codes = {name: _COLORS[index % len(_COLORS)] for index, name in enumerate(names)}

    def line(self, process: str, text: str) -> None:
        fields = _parsed(text)
        self._write(process, fields if fields is not None else _event(text, "info"))

    def say(self, text: str, *, level: str = "info") -> None:
        self._write("up", _event(text, level))

    def _write(self, process: str, fields: Mapping[str, Any]) -> None:
        self._output.write(self._form(process, fields), lambda text: self._form("up", _event(text, "warning")))

    def _form(self, process: str, fields: Mapping[str, Any]) -> str:
        level = str(fields.get("level", "info"))
        rest = " ".join(
            f"{key}={_short(value)}" for key, value in fields.items() if key not in _HIDDEN and key != "exception"
        )
        head = printable(str(fields.get("event", "")).replace("\n", " "))
        body = self._paint(head, _LEVELS.get(level)) + (self._paint(f"  {rest}", 2) if rest else "")
        name = self._paint(f"{process:<{self._width}}", self._codes.get(process, 1))
        lines = [f"{_clock(fields.get('timestamp'))} {name} │ {body}"]
        if exception := fields.get("exception"):
            lines += [f"{'':8} {name} │   {printable(part)}" for part in str(exception).splitlines()]
        return "\n".join(lines) + "\n"

    def _paint(self, text: str, code: int | None) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._color and code is not None else text


def _event(text: str, level: str) -> dict[str, Any]:
    return {"event": text, "level": level, "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text.replace("\n", "\\n"))[:300]


def _clock(stamp: Any) -> str:
    """Local time of day of an RFC 3339 time."""
    try:
        return datetime.fromisoformat(str(stamp)).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return datetime.now().astimezone().strftime("%H:%M:%S")
