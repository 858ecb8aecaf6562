"""Runs probes on a bench and gives the verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from cloche.errors import ClocheError
from cloche.sandboxd.probes import scenes
from cloche.sandboxd.probes.bench import Bench, ProbeBroken
from cloche.sandboxd.probes.probe import Finding, Observe, Probe, Verdict
from cloche.sandboxd.probes.table import PROBES

_SHOWN = 600  # characters of what was found


class Runner:
    """Judges probes, each by its own row. Those without a scene of their own share one sandbox, run when the first of them is asked for."""

    def __init__(self, bench: Bench, probes: Sequence[Probe] = PROBES) -> None:
        self._bench = bench
        self._walls: Observe = scenes.walls([probe.id for probe in probes if probe.observe is None])

    def judge(self, probe: Probe) -> Finding:
        """Never raises for what a probe does: what could not be carried to its end has failed.

        Raises:
            KeyboardInterrupt: and the like.
        """
        try:
            facts = self._bench.once(probe.observe or self._walls)
            if probe.observe is None:
                facts = facts[probe.id]
        except (ProbeBroken, ClocheError, OSError, KeyError) as error:
            return Finding(probe, Verdict.FAILED, f"{type(error).__name__}: {error}"[:_SHOWN])
        if isinstance(facts, dict) and "not_applicable" in facts:
            return Finding(probe, Verdict.NOT_APPLICABLE, str(facts["not_applicable"]))
        return _judged(probe, facts)


def _judged(probe: Probe, facts: Any) -> Finding:
    try:
        held = probe.held(facts)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
    ):  # facts of another shape: the probe itself was stopped
        held = False
    found = "" if held else json.dumps(facts, default=str, ensure_ascii=True)[:_SHOWN]
    return Finding(probe, Verdict.HELD if held else Verdict.FAILED, found)


def run_all(bench: Bench, probes: Sequence[Probe] = PROBES) -> Iterator[Finding]:
    """Every verdict, as it is found."""
    runner = Runner(bench, probes)
    for probe in probes:
        yield runner.judge(probe)
