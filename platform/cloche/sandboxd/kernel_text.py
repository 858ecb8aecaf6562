"""Text that the kernel writes about processes and mounts. Plugins choose some of the names in it, and may be hostile."""

from __future__ import annotations

from pathlib import Path

_ESCAPED = (0o40, 0o11, 0o12, 0o134)


def read(path: Path | str) -> str:
    """
    Raises:
        OSError: there is no such file, or the process has ended.
    """
    data = Path(path).read_bytes()  # not as text: Python would make a line's end of each carriage return
    return data.decode("utf-8", "surrogateescape")


def split(text: str) -> list[str]:
    """Its lines. The kernel escapes the line feed in names, and nothing else that ends a line for ``str.splitlines`` or an open text file:
    carriage return, vertical tab, form feed, U+2028 and more. A name with one of them must not make two lines of one."""
    return text.removesuffix("\n").split("\n") if text else []


def lines(path: Path | str) -> list[str]:
    """
    Raises:
        OSError: see ``read``.
    """
    return split(read(path))


def plain(name: str) -> str:
    """A name of mountinfo as it is: space, tab, newline and backslash are written there as octal numbers."""
    for number in _ESCAPED:
        name = name.replace(f"\\{number:03o}", chr(number))
    return name
