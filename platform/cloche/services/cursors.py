"""Cursors of pages: where a page ended, as text that means nothing to whoever hands it back."""

from __future__ import annotations

import base64

from cloche.clock import is_uuid7
from cloche.errors import Invalid, Problem


def encode_cursor(row_id: str) -> str:
    return _encode(row_id)


def decode_cursor(cursor: str) -> str:
    """
    Raises:
        Invalid: it is none that :func:`encode_cursor` made.
    """
    row_id = _decode(cursor)
    if not is_uuid7(row_id):
        raise _refused()
    return row_id


def encode_moment(at: int, row_id: str) -> str:
    """Of a list that is ordered by a time, in milliseconds, and by the id within it."""
    return _encode(f"{at}.{row_id}")


def decode_moment(cursor: str) -> tuple[int, str]:
    """
    Raises:
        Invalid: it is none that :func:`encode_moment` made.
    """
    at, _, row_id = _decode(cursor).partition(".")
    if not is_uuid7(row_id):
        raise _refused()
    return _number(at), row_id


def encode_number(number: int) -> str:
    return _encode(str(number))


def decode_number(cursor: str) -> int:
    """
    Raises:
        Invalid: it is none that :func:`encode_number` made.
    """
    return _number(_decode(cursor))


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise _refused()
    return int(text)


def _encode(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode(cursor: str) -> str:
    try:
        return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except ValueError:
        return ""


def _refused() -> Invalid:
    return Invalid("the cursor is not one of ours", problems=[Problem("/cursor", "use next_cursor as it came")])
