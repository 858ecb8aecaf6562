"""Whether gVisor can be used on this host: registered, of which version, and proven as sandboxd proves it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Any

from cloche.config import Settings
from cloche.domain.runtimes import AS_ASKED, RUNC, RUNSC
from cloche.errors import EnvironmentProblem, PlatformFailure
from cloche.sandboxd import image_parts
from cloche.sandboxd.doctor_host import Check
from cloche.sandboxd.engine import Engine, EngineRefused
from cloche.sandboxd.groups import Groups
from cloche.sandboxd.leftovers import Leftovers
from cloche.sandboxd.places import home_digest
from cloche.sandboxd.proof import REGISTER, Proof
from cloche.sandboxd.runtimes import NotProven, Runtimes
from cloche.sandboxd.uids import UidPool

_NAME = "gvisor"
_VERSION_SECONDS = 10


def check(settings: Settings, engine: Engine, info: Mapping[str, Any]) -> Check:
    """Makes three containers for some two seconds where gVisor is registered, and leaves none."""
    sandbox = settings.sandbox
    found = (info.get("Runtimes") or {}).get(sandbox.runsc_name)
    bad = "fail" if sandbox.runtime == RUNSC else "warn"
    if sandbox.runtime == RUNC:
        return Check(_NAME, "ok", "not used: CLOCHE_SANDBOX_RUNTIME is runc; plugins that ask for it are refused")
    if found is None:
        advice = f"Plugins that ask for runtime runsc cannot run here: install gVisor and {REGISTER}."
        return Check(_NAME, bad, f"no runtime {sandbox.runsc_name} is registered with the engine", advice)
    if os.geteuid() != 0:
        return Check(
            _NAME, "warn", f"{sandbox.runsc_name} is registered; not proven without root", "Ask again with sudo."
        )
    image = engine.image(sandbox.image)
    if image is None:
        advice = "Start sandboxd once, or run `cloche image build`; then ask again."
        return Check(_NAME, "warn", f"{sandbox.runsc_name} is registered; not proven without a sandbox image", advice)
    version = _version(str(found.get("path", "")))
    problem = _proof(settings, engine, str(image["Id"]))
    if problem is not None:
        return Check(_NAME, bad, f"{version}: {problem}", "Until then, jobs of plugins that ask for runsc are refused.")
    return Check(_NAME, "ok", f"{version}: own kernel, filter, memory and process limits proven")


def _proof(settings: Settings, engine: Engine, image: str) -> str | None:
    sandbox = settings.sandbox
    name = home_digest(settings.home)  # should this be killed, the home's next sandboxd removes what it made
    uids = UidPool(sandbox.uid_base, sandbox.uid_count, start=os.getpid())
    try:
        seccomp = (image_parts.image_folder() / "seccomp.json").read_text("utf-8")
        groups = Groups(name)
        # Tried once more at most: what the engine does not let go of, the home's next sandboxd removes.
        leftovers = Leftovers(engine, groups, _no_folder, uids)
        proof = Proof(home=name, uids=uids, seccomp=seccomp, leftovers=leftovers)
        try:
            proof.prove(Runtimes(engine, groups, AS_ASKED, sandbox.runsc_name, proof.prove), image)
        finally:
            leftovers.retry()
    except (NotProven, EngineRefused, EnvironmentProblem) as error:
        return str(error)
    except PlatformFailure as error:
        return error.message
    finally:
        uids.clean()
    return None


def _no_folder(_: str) -> None:
    """A guest of the proof has none."""


def _version(path: str) -> str:
    """What the program says of itself, or its path."""
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=_VERSION_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return path or RUNSC
    line = done.stdout.splitlines()[0] if done.stdout else path
    return "".join(letter for letter in line[:80] if letter.isprintable())
