"""Media types by file name, and patterns over names."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache

DEFAULT_TYPE = "application/octet-stream"

# A table of our own: the standard library's default one is read from files of the host, and would differ between hosts.
_TYPES = mimetypes.MimeTypes(filenames=())
for _suffix, _type in {
    ".avif": "image/avif",
    ".geojson": "application/geo+json",
    ".gz": "application/gzip",
    ".heic": "image/heic",
    ".jsonl": "application/x-ndjson",
    ".log": "text/plain",
    ".md": "text/markdown",
    ".ndjson": "application/x-ndjson",
    ".parquet": "application/vnd.apache.parquet",
    ".rst": "text/x-rst",
    ".toml": "application/toml",
    ".tsv": "text/tab-separated-values",
    ".webp": "image/webp",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".zip": "application/zip",
}.items():
    _TYPES.add_type(_type, _suffix)


def media_type(name: str) -> str:
    """The media type that a file's name suggests, the same on every host; ``application/octet-stream`` when none."""
    guessed, encoding = _TYPES.guess_type(f"x/{name.rpartition('/')[2]}".lower())
    if encoding == "gzip":
        return "application/gzip"
    return DEFAULT_TYPE if guessed is None or encoding else guessed


def matches(accept: Sequence[str], name: str) -> bool:
    """Whether a file called ``name`` is what a plugin accepts. Patterns are media types (``image/*``) or suffixes
    (``.csv``); none accepts all."""
    kind, lower = media_type(name), name.lower()
    if not accept:
        return True
    wanted = [pattern.lower() for pattern in accept]
    return any(lower.endswith(p) if p.startswith(".") else fnmatchcase(kind, p) for p in wanted)


def glob_match(pattern: str, path: str) -> bool:
    """Whether a relative path matches an output's pattern.

    Without a ``/`` the pattern is for the file's name, in any folder. With one it is for the whole path, ``*`` and
    ``?`` stay within a component and ``**`` stands for any number of them. Never slower than components × pattern
    parts, whatever the pattern.
    """
    if "/" not in pattern:
        return pattern == "**" or fnmatchcase(path.rpartition("/")[2], pattern)
    wanted, parts = pattern.strip("/").split("/"), path.split("/")

    @cache
    def fits(w: int, p: int) -> bool:
        if w == len(wanted):
            return p == len(parts)
        if wanted[w] == "**":
            return fits(w + 1, p) or (p < len(parts) and fits(w, p + 1))
        return p < len(parts) and fnmatchcase(parts[p], wanted[w]) and fits(w + 1, p + 1)

    return fits(0, 0)
