"""What other software needs to be measured beside ours: a virtual environment of its own, outside the project."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Figures = dict[str, Any]  # of one peer; with "not measured" alone where it could not be


class NotInstalled(Exception):
    """The index that pip is configured with does not give it; says why."""


def environment(home: Path, *needs: str) -> Path:
    """Its Python, with these packages.

    Raises:
        NotInstalled: they cannot be had.
    """
    python = home / "venv" / "bin" / "python"
    try:
        subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True, capture_output=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *needs], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        why = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise NotInstalled(f"cannot be installed: {why[:200]}") from None
    return python


def version(python: Path, package: str) -> str:
    """Of a package in that environment."""
    told = [python, "-c", f"from importlib.metadata import version; print(version('{package}'))"]
    return subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip()


def unmeasured(names: Iterable[str], why: str) -> dict[str, Figures]:
    """All of them, each with the reason why it was not measured."""
    return {name: {"not measured": why} for name in names}
