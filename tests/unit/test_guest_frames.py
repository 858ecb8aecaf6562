"""The agent's thread that reads frames: by what code the process ends when there are no more to be had."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloche_guest.link import Link
from cloche_guest.main import Agent

NOBODY: Any = SimpleNamespace()  # in place of the relay, which has no part in it


class Ended(BaseException):
    """In place of the end of the process."""


def host_is_gone(reader: int, writer: int) -> list[int]:
    os.close(writer)
    return [reader]


def descriptor_is_closed(reader: int, writer: int) -> list[int]:
    os.close(reader)
    return [writer]


def descriptor_is_a_folder(reader: int, writer: int) -> list[int]:
    other = os.open("/", os.O_RDONLY)
    os.dup2(other, reader)
    return [reader, writer, other]


def bytes_are_missing(reader: int, writer: int) -> list[int]:
    os.write(writer, b"\xff" * 64)
    return [reader, writer]


@pytest.mark.parametrize(
    ("wreck", "code"),
    [(host_is_gone, 0), (descriptor_is_closed, 1), (descriptor_is_a_folder, 1), (bytes_are_missing, 1)],
)
def test_no_more_frames(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wreck: Callable[[int, int], list[int]], code: int
) -> None:
    """0 says that the plugin chose to end without a result. It is not said of one that wrecked what frames come through."""
    codes: list[int] = []

    def end(with_code: int) -> None:
        codes.append(with_code)
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    reader, writer = os.pipe()
    agent = Agent(Link(reader, writer), NOBODY, tmp_path, tmp_path)
    left = wreck(reader, writer)
    try:
        with pytest.raises(Ended):
            agent._read()
    finally:
        for fd in left:
            os.close(fd)
    assert codes == [code]
