"""How values look on a page: sizes, durations, states, and text that came out of a sandbox. Pure; registered as Jinja filters."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from markupsafe import Markup, escape

from cloche.clock import from_rfc3339, to_rfc3339
from cloche.domain.states import REASON_TEXT, Reason
from cloche.letters import HIDDEN

_C0 = (
    *("NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "TAB", "LF", "VT", "FF", "CR", "SO", "SI"),
    *("DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC", "FS", "GS", "RS", "US"),
)
_NAMES = {**{chr(code): name for code, name in enumerate(_C0)}, "\x7f": "DEL"}
_PREVIEW_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_PREVIEW_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
PRETTY_MAX = 200_000  # characters of a result shown on the page; the rest is a download

STATUS_WORD = {
    "scheduled": "Scheduled",
    "blocked": "Blocked",
    "pending": "Waiting",
    "processing": "Running",
    "completed": "Completed",
    "failed": "Failed",
    "canceled": "Canceled",
}
TRACE_WORD = {
    "accepted": "Accepted",
    "claimed": "Taken by a worker",
    "staged_in": "Inputs brought in",
    "sandbox_started": "Sandbox started",
    "started": "Plugin started",
    "log_truncated": "Log cut at its limit",
    "egress_connection": "Connection to the outside",
    "egress_closed": "Way out closed",
    "finished": "Plugin finished",
    "staged_out": "Outputs taken out",
    "completed": "Completed",
    "failed": "Failed",
    "retry_scheduled": "Another attempt planned",
    "attempt_abandoned": "Attempt given up by the platform",
    "cancel_requested": "Cancel asked for",
    "canceled": "Canceled",
    "due": "Its time has come",
    "dependencies_met": "The jobs it waited for have ended",
    "retried": "Retried by hand",
    "callback_delivered": "Callback delivered",
    "callback_failed": "Callback given up",
}


def visible(text: object) -> Markup:
    """The text escaped, with each control, direction and invisible character shown as a marked symbol.

    A plugin chooses its log lines and file names: an escape sequence must not restyle a page, nor ``U+202E`` turn ``gnp.exe`` around.
    Line feeds and tabs stay, and ``CR LF`` is one line feed.
    """
    parts: list[Markup] = []
    plain = str(text).replace("\r\n", "\n")
    end = 0
    for match in HIDDEN.finditer(plain):
        code = f"U+{ord(match[0]):04X}"
        parts += [
            escape(plain[end : match.start()]),
            Markup('<span class="ctl" title="{}">{}</span>').format(code, _NAMES.get(match[0], code)),
        ]
        end = match.end()
    parts.append(escape(plain[end:]))
    return Markup("").join(parts)


def size(count: int | None) -> str:
    """``1536`` → ``1.5 KB`` (1 KB is 1,024 bytes, as for limits)."""
    if count is None:
        return "–"
    if count < 1024:
        return "1 byte" if count == 1 else f"{count} bytes"
    value = float(count)
    for unit in ("KB", "MB", "GB", "TB"):
        value /= 1024
        if value < 1023.95 or unit == "TB":
            break
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def duration(ms: float | None) -> str:
    """Milliseconds in the largest units that matter: ``0.8 ms``, ``240 ms``, ``1.24 s``, ``3 min 5 s``, ``2 h 4 min``."""
    if ms is None:
        return "–"
    if ms < 1:
        return "< 1 ms"
    if ms < 1_000:
        return f"{ms:.0f} ms"
    if ms < 10_000:
        return f"{ms / 1000:.2f} s"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    seconds = round(ms / 1000)
    if seconds < 3_600:
        return f"{seconds // 60} min {seconds % 60} s"
    if seconds < 86_400:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def between(start: str | None, end: str | None) -> int | None:
    """Milliseconds from one RFC 3339 time to another; None when either is missing."""
    if not start or not end:
        return None
    return max(0, from_rfc3339(end) - from_rfc3339(start))


def moment(text: str | None) -> Markup:
    """A ``<time>`` in UTC, which the page's script turns into the reader's own time."""
    if not text:
        return Markup("–")
    shown = f"{text[:10]} {text[11:19]} UTC"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(text, shown, shown)


def pretty(value: object) -> str:
    """JSON with two spaces of indentation, cut at :data:`PRETTY_MAX` characters."""
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False)
    return text if len(text) <= PRETTY_MAX else text[:PRETTY_MAX] + "\n… cut here; the API has the whole of it"


def short(text: str | None, keep: int = 12) -> str:
    """The first characters of a digest or id."""
    return (text or "").removeprefix("sha256:")[:keep]


def tail(text: str | None, keep: int = 8) -> str:
    """The last characters of an id; UUIDv7s of one minute differ only there."""
    return (text or "")[-keep:]


def previewable(name: str, media_type: str | None = None) -> bool:
    """Whether the API serves the file inline as a picture (never SVG or HTML)."""
    return media_type in _PREVIEW_TYPES if media_type else name.lower().endswith(_PREVIEW_SUFFIXES)


def words(value: str) -> str:
    """``out_of_memory`` → ``out of memory``."""
    return value.replace("_", " ")


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "…", "?")) else ".")


def reason_text(reason: str) -> str:
    """A job's reason in words; one that is not known here as it is."""
    try:
        return REASON_TEXT[Reason(reason)]
    except ValueError:
        return words(reason)


def status_word(status: str) -> str:
    return STATUS_WORD.get(status, words(status))


def trace_word(event_type: str) -> str:
    return TRACE_WORD.get(event_type, words(event_type).capitalize())


def at_ms(ms: int) -> Markup:
    """Milliseconds as :func:`moment` shows them."""
    return moment(to_rfc3339(ms))


FILTERS: dict[str, Callable[..., Any]] = {
    "at_ms": at_ms,
    "visible": visible,
    "size": size,
    "duration": duration,
    "moment": moment,
    "pretty": pretty,
    "short": short,
    "tail": tail,
    "words": words,
    "sentence": sentence,
    "reason_text": reason_text,
    "status_word": status_word,
    "trace_word": trace_word,
}
