"""What a probe and its verdict are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloche.sandboxd.probes.bench import Bench

Judge = Callable[[Any], bool]
Observe = Callable[["Bench"], Any]


class Verdict(StrEnum):
    """``held``: what was expected came true. ``failed``: it did not. ``not_applicable``: this host has not what the probe needs."""

    HELD = "held"
    FAILED = "failed"
    NOT_APPLICABLE = "not_applicable"


@dataclass(frozen=True)
class Probe:
    """One row of the table. ``expects`` was written before the probe was first run; ``held`` says whether it came true.

    ``observe`` drives sandboxes of the probe's own and answers with plain facts. Without it the probe is a function of the same name in
    ``sandbox/probes``, run in a child of one sandbox that all such probes share; the facts are what it returned.
    """

    id: str
    group: str
    tries: str
    expects: str
    held: Judge
    observe: Observe | None = None


@dataclass(frozen=True)
class Differs:
    """What is judged otherwise under another runtime or at another level: ``expects``, ``held`` and ``observe`` (when it needs another) as in
    :class:`Probe`, and ``why`` they differ."""

    expects: str
    held: Judge
    why: str
    observe: Observe | None = None

    def adapted(self, probe: Probe) -> Probe:
        """The probe as it is judged there."""
        return replace(probe, expects=self.expects, held=self.held, observe=self.observe or probe.observe)


@dataclass(frozen=True)
class Finding:
    """A probe's verdict; ``found`` says what was seen when it did not hold, or why it does not apply."""

    probe: Probe
    verdict: Verdict
    found: str = ""


def only(*names: str) -> Judge:
    """Every answer in the facts (a text, a list, or the values of an object) is one of these errors."""
    allowed = set(names)

    def held(facts: Any) -> bool:
        values = facts.values() if isinstance(facts, dict) else facts if isinstance(facts, list) else [facts]
        return len(values) > 0 and all(isinstance(value, str) and value in allowed for value in values)

    return held


def equals(value: Any) -> Judge:
    return lambda facts: facts == value


refused = only("EPERM")
denied = only("EPERM", "EACCES", "EROFS", "ENOENT", "ENOTDIR")
