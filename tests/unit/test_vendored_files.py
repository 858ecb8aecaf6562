"""The vendored files are the ones that VENDORED.md lists, unchanged."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import cloche.web

VENDOR = Path(cloche.web.__file__).parent / "static" / "vendor"
LINE = re.compile(r"^\| `([^`]+)` \| (\S+) \| (\S+) \| (\S+) \| `([0-9a-f]{64})` \|$", re.MULTILINE)


def listed() -> dict[str, str]:
    return {path: sha256 for path, _, _, _, sha256 in LINE.findall((VENDOR / "VENDORED.md").read_text("utf-8"))}


def present() -> dict[str, str]:
    files = (path for path in VENDOR.rglob("*") if path.is_file() and path.name != "VENDORED.md")
    return {str(path.relative_to(VENDOR)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_file_is_listed_with_its_hash():
    assert present() == listed()


def test_every_package_comes_with_its_licence():
    folders = {path.partition("/")[0] for path in listed()}
    assert folders
    assert all(f"{folder}/LICENSE" in listed() for folder in folders)
