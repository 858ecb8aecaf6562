from __future__ import annotations

import pytest

from cloche.staging.accept import glob_match, matches, media_type


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.PNG", "image/png"),
        ("dir/a.csv", "text/csv"),
        ("notes.md", "text/markdown"),
        ("x.webp", "image/webp"),
        ("a.tar.gz", "application/gzip"),
        ("a.csv.gz", "application/gzip"),
        ("noext", "application/octet-stream"),
        ("data:text/html,x", "application/octet-stream"),
        ("http://h/x.png?y", "application/octet-stream"),
    ],
)
def test_media_type_by_name(name: str, expected: str) -> None:
    assert media_type(name) == expected


def test_accept() -> None:
    assert matches((), "anything")
    assert matches(("image/*",), "a.jpg")
    assert not matches(("image/*",), "a.csv")
    assert matches(("text/csv", ".TSV"), "b.tsv")
    assert not matches(("image/png",), "png")


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.png", "a.png", True),
        ("*.png", "deep/er/a.png", True),
        ("*.png", "a.jpg", False),
        ("out/*.png", "out/a.png", True),
        ("out/*.png", "out/x/a.png", False),
        ("out/**", "out/x/a.png", True),
        ("out/**/*.png", "out/a.png", True),
        ("**", "any/thing", True),
        ("a/b", "x/a/b", False),
        ("[ab]/?", "a/x", True),
    ],
)
def test_output_patterns(pattern: str, path: str, expected: bool) -> None:
    assert glob_match(pattern, path) is expected


def test_a_pattern_of_stars_costs_nothing() -> None:
    assert not glob_match("/".join(["**"] * 200 + ["x"]), "/".join(["a"] * 30))
    assert not glob_match("*a" * 100 + "b", "a" * 255)
