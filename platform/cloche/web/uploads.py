"""An uploaded file as a stream: the raw body, or the part ``file`` of a multipart body, never whole in memory."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import IO

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Event, Field, File, MultipartDecoder, NeedData

from cloche.errors import BadRequest, Invalid, Problem, TooLarge, UnsupportedMedia
from cloche.web import reading
from cloche.web.problems import LengthRequired, ParameterProblem

_CHUNK = 262_144
_MAX_HEAD = 65_536  # bytes of part headers and of the boundary's surroundings


@dataclass(frozen=True)
class Upload:
    """``stream`` raises BadRequest when the client breaks off, so that a half file is never stored."""

    name: str
    media_type: str
    stream: IO[bytes]


def incoming(name: str | None, limit: int) -> Upload:
    """The file in the current request; ``name`` (from the query) goes with a raw body. ``limit`` in bytes.

    Raises:
        TooLarge, LengthRequired, UnsupportedMedia, BadRequest, Invalid.
    """
    announced = request.content_length
    if announced is None and "Transfer-Encoding" not in request.headers:
        announced = 0
    if announced is not None and announced > limit + _MAX_HEAD:
        raise TooLarge(f"The upload has {announced} bytes; this server takes at most {limit}.")
    if request.content_encoding:
        raise UnsupportedMedia("Send the file without Content-Encoding.")
    reading.hold()
    if request.mimetype == "multipart/form-data":
        if name is not None:
            raise Invalid(
                "The file's name comes with its part.", problems=[ParameterProblem("name", "goes with a raw body only")]
            )
        return _from_form()
    if name is None:
        missing = ParameterProblem("name", "is required with a raw body, such as ?name=table.csv")
        raise Invalid("The file has no name.", problems=[missing])
    if announced is None:
        # Without a length a broken connection looks like the end of the file.
        raise LengthRequired("Send a Content-Length, or the file as multipart/form-data.")
    if announced > limit:
        raise TooLarge(f"The upload has {announced} bytes; this server takes at most {limit}.")
    # What curl names when nobody said what the bytes are tells nothing.
    named = "" if request.mimetype == "application/x-www-form-urlencoded" else request.mimetype
    return Upload(name, named, io.BufferedReader(_Body(announced), _CHUNK))


class _Body(io.RawIOBase):
    """The request's body; ending early is an error."""

    def __init__(self, announced: int) -> None:
        self._left = announced

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        chunk = request.stream.read(min(len(buffer), self._left)) if self._left else b""
        if self._left and not chunk:
            raise BadRequest("The upload ended before the length it announced.", code="truncated-body")
        self._left -= len(chunk)
        buffer[: len(chunk)] = chunk
        return len(chunk)


def _from_form() -> Upload:
    boundary = request.mimetype_params.get("boundary", "")
    if not boundary or len(boundary) > 200:
        raise BadRequest("The multipart body names no boundary.", code="malformed-multipart")
    part = _Part(MultipartDecoder(boundary.encode("latin-1", "replace"), max_form_memory_size=_CHUNK * 4 + _MAX_HEAD))
    head = part.open()
    if not head.filename:
        raise Invalid(
            "The file has no name.", problems=[Problem("/file", "needs a filename in its Content-Disposition")]
        )
    media_type = (head.headers.get("Content-Type") or "").partition(";")[0].strip()
    return Upload(head.filename, media_type, io.BufferedReader(part, _CHUNK))


class _Part(io.RawIOBase):
    """The part ``file``, which has to be the only one; reaching its end reads the body to its end."""

    def __init__(self, decoder: MultipartDecoder) -> None:
        self._decoder = decoder
        self._ended = False
        self._pending = b""
        self._open = True

    def readable(self) -> bool:
        return True

    def open(self) -> File:
        """Read up to the part's headers."""
        event = self._next()
        while not isinstance(event, (File, Field, Epilogue)):
            event = self._next()
        if not isinstance(event, File) or event.name != "file":
            raise Invalid(
                "The form does not fit.", problems=[Problem("/file", "send one part, 'file', with a filename")]
            )
        return event

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._pending and self._open:
            event = self._next()
            if isinstance(event, Data):
                self._pending = event.data
                if not event.more_data:
                    self._open = False
                    self._finish()
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def _finish(self) -> None:
        event = self._next()
        if isinstance(event, (Field, File)):
            raise Invalid(
                "The form does not fit.", problems=[Problem(f"/{event.name}"[:80], "only the part 'file' is taken")]
            )

    def _next(self) -> Event:
        while True:
            try:
                event = self._decoder.next_event()
                if not isinstance(event, NeedData):
                    return event
                chunk = request.stream.read(_CHUNK)
                self._ended = not chunk
                self._decoder.receive_data(chunk or None)
            except (ValueError, RequestEntityTooLarge):
                if self._ended:
                    raise BadRequest(
                        "The multipart body ended before its closing boundary.", code="truncated-body"
                    ) from None
                raise BadRequest("The multipart body is malformed.", code="malformed-multipart") from None
