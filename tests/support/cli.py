"""Runs the command line in this process, as its entry point does."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from cloche.cli.root import main


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


class Cli:
    """Call it with a command line's words."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self._url = url

    def __call__(self, *words: str) -> Ran:
        with self._monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["cloche", *words])
            patch.setenv("CLOCHE_URL", self._url)
            patch.setenv("CLOCHE_TOKEN", "cloche_pat_test")
            with pytest.raises(SystemExit) as stopped:
                main()
        out, err = self._capsys.readouterr()
        return Ran(int(stopped.value.code or 0), out, err)
