"""Rows of a table: what was measured, and its numbers."""

from __future__ import annotations

import statistics
from typing import Any

Row = dict[str, Any]


def figures(what: str, seconds: list[float]) -> Row:
    """Median and 95th percentile in milliseconds."""
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, round(len(ordered) * 0.95))]
    return {
        "what": what,
        "median_ms": round(statistics.median(ordered) * 1000, 1),
        "p95_ms": round(p95 * 1000, 1),
        "n": len(ordered),
    }
