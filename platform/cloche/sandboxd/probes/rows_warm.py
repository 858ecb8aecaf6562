"""Probes once more, in sandboxes that were made and waited before their jobs came: the verdicts have to be the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cloche.sandboxd.probes import scenes
from cloche.sandboxd.probes.bench import Bench
from cloche.sandboxd.probes.probe import Probe

GROUP = "warm start"
_AGAIN = (
    "own_uids",
    "kernel_limits",
    "fill_out",
    "fill_tmp",
    "memory",
    "fork_bomb",
    "ignores_signals",
    "daemons",
    "odd_files",
    "exit_without_result",
    "frame_on_stdout",
    "frame_garbage",
    "forged_exit",
    "stdin",
    "leftover_files",
    "leftover_shm",
    "leftover_socket",
    "leftover_environment",
    "leftover_processes",
    "leftover_uid",
)


def rows(probes: Sequence[Probe]) -> tuple[Probe, ...]:
    """One row for all walls together, and one for each scene that a warm start could change."""
    named = {probe.id: probe for probe in probes}
    return (_walls([probe for probe in probes if probe.observe is None]), *(_again(named[id]) for id in _AGAIN))


def _walls(probes: Sequence[Probe]) -> Probe:
    observe = scenes.walls([probe.id for probe in probes])

    def held(facts: Any) -> bool:
        return all("not_applicable" in facts[probe.id] or probe.held(facts[probe.id]) for probe in probes)

    tries = f"every one of the {len(probes)} walls of the groups above that are tried from within"
    return Probe("warm_walls", GROUP, tries, "as above, each", held, lambda bench: observe(bench.warmed()))


def _again(probe: Probe) -> Probe:
    scene = probe.observe
    if scene is None:
        raise ValueError(f"{probe.id} has no scene of its own")

    def observe(bench: Bench) -> Any:
        warmed = bench.warmed()
        return warmed.once(scene)

    return replace(probe, id=f"warm_{probe.id}", group=GROUP, observe=observe)
