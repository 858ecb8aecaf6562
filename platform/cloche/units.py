"""Sizes as people write them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"^(\d{1,12})\s?(B|KB|MB|GB|KiB|MiB|GiB)?\Z")
# 1 MB is 1 MiB here, as it is for Docker's and systemd's own limits.
_FACTOR = {None: 1, "B": 1, "KB": 1 << 10, "KiB": 1 << 10, "MB": 1 << 20, "MiB": 1 << 20, "GB": 1 << 30, "GiB": 1 << 30}


def parse_size(value: str | int) -> int:
    """Bytes of ``"256MB"`` or a number of bytes.

    Raises:
        ValueError: neither.
    """
    if isinstance(value, bool):
        raise ValueError("a size is bytes or text such as '256MB'")
    if isinstance(value, int):
        if value < 0:
            raise ValueError("a size is not negative")
        return value
    match = _SIZE.match(value)
    if not match:
        raise ValueError(f"'{value[:40]}' is not a size: write '64MB', '2GB' or a number of bytes")
    return int(match[1]) * _FACTOR[match[2]]
