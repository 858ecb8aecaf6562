"""What a browser calls itself, in two words. Pure."""

from __future__ import annotations

_PROGRAMS = (
    ("Edg", "Edge"),
    ("OPR", "Opera"),
    ("Firefox", "Firefox"),
    ("HeadlessChrome", "Chrome"),
    ("Chrome", "Chrome"),
    ("Safari", "Safari"),
    ("curl", "curl"),
    ("python", "Python"),
)
_SYSTEMS = (
    ("Android", "Android"),
    ("iPhone", "an iPhone"),
    ("iPad", "an iPad"),
    ("Windows", "Windows"),
    ("Mac OS", "a Mac"),
    ("Linux", "Linux"),
)


def device(agent: str | None) -> str:
    """``Firefox on Linux``. It is a guess from what the browser said, which anybody can say."""
    text = agent or ""
    program = next((word for mark, word in _PROGRAMS if mark.casefold() in text.casefold()), "Something")
    system = next((word for mark, word in _SYSTEMS if mark in text), None)
    return f"{program} on {system}" if system else program
