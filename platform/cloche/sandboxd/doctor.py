"""What this host can and cannot do for sandboxes, with advice for each shortcoming."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cloche.config import Settings
from cloche.errors import ClocheError, EnvironmentProblem, PlatformFailure
from cloche.sandboxd import doctor_cells, doctor_gvisor, doctor_host, image_parts, syscalls
from cloche.sandboxd.doctor_host import Check as Check
from cloche.sandboxd.engine import Engine
from cloche.sandboxd.image import check_rules

OLDEST_ENGINE = (20, 10)
_ST_NOSYMFOLLOW = 0x2000


def checks(settings: Settings) -> list[Check]:
    """Every check, in the order in which they depend on each other. Leaves the host as it was."""
    found = [_root(), doctor_host.cgroup(), _files(), doctor_host.room(settings.home), _mount_flags()]
    found += [doctor_host.propagation(), doctor_host.loops(), doctor_host.clock()]
    engine = Engine(settings.sandbox.docker_socket)
    try:
        found.append(_guarded("engine", lambda: _engine(engine)))
        if found[-1].status != "fail":
            info = engine.info()
            found += [
                _seccomp(info),
                _limits(info),
                doctor_host.swap(info),
                doctor_host.runtimes(info),
                doctor_host.apparmor(info),
            ]
            found += [
                doctor_host.user_namespaces(info),
                _guarded("cells", lambda: doctor_cells.check(settings)),
                _guarded("image", lambda: _image(engine, settings.sandbox.image)),
                _guarded("gvisor", lambda: doctor_gvisor.check(settings, engine, info)),
            ]
    finally:
        engine.close()
    return found


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (ClocheError, OSError) as error:
        detail = error.message if isinstance(error, PlatformFailure) else str(error)
        advice = "Install and start Docker: `apt-get install docker.io`, then `systemctl start docker`, or run `dockerd` as root."
        return Check(name, "fail", detail, advice if name == "engine" else "See the message.")


def _root() -> Check:
    if os.geteuid() == 0:
        return Check("root", "ok", "running as root")
    return Check("root", "fail", f"running as user {os.geteuid()}", "Start sandboxd (or `cloche up`) with sudo.")


def _files() -> Check:
    try:
        return Check("files", "ok", f"sandbox files in {image_parts.image_folder()}")
    except EnvironmentProblem as error:
        return Check("files", "fail", str(error), "Install Cloche again.")


def _mount_flags() -> Check:
    """Whether a tmpfs takes every flag of ``out/``; older kernels forget nosymfollow without a word."""
    if os.geteuid() != 0:
        return Check("mounts", "warn", "not checked without root")
    with tempfile.TemporaryDirectory(prefix="cloche-doctor-") as folder:
        place = Path(folder)
        try:
            syscalls.mount_tmpfs(place, "size=64k,nr_inodes=8")
        except OSError as error:
            return Check(
                "mounts",
                "fail",
                f"a tmpfs cannot be mounted: {error.strerror}",
                "Run outside a container, or give it the right to mount.",
            )
        try:
            flags = os.statvfs(place).f_flag
        finally:
            syscalls.unmount(place)
    wanted = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
    if flags & wanted != wanted:
        return Check("mounts", "fail", "nosuid, nodev and noexec do not hold on a tmpfs", "This kernel cannot be used.")
    if not flags & _ST_NOSYMFOLLOW:
        return Check(
            "mounts",
            "warn",
            "no nosymfollow (Linux 5.10 and newer have it)",
            "Outputs are still collected without following links.",
        )
    return Check("mounts", "ok", "nosuid, nodev, noexec, nosymfollow")


def _engine(engine: Engine) -> Check:
    version = engine.version()
    text = str(version.get("Version", ""))
    numbers = tuple(int(part) for part in text.split("+")[0].split(".")[:2] if part.isdigit())
    detail = f"Docker Engine {text}, API {version.get('ApiVersion')}"
    if numbers < OLDEST_ENGINE:
        return Check("engine", "fail", detail, "Use Docker Engine 20.10 or newer.")
    return Check("engine", "ok", detail)


def _seccomp(info: Mapping[str, Any]) -> Check:
    if any("name=seccomp" in option for option in info.get("SecurityOptions") or []):
        return Check("seccomp", "ok", "the engine filters system calls")
    return Check("seccomp", "fail", "the engine has no seccomp", "Use a kernel and a runc built with seccomp.")


def _limits(info: Mapping[str, Any]) -> Check:
    names = {"MemoryLimit": "memory", "CpuCfsQuota": "cpu quota", "PidsLimit": "pids"}  # swap has a check of its own
    missing = [word for key, word in names.items() if not info.get(key)]
    if missing:
        advice = "Use cgroup version 2, or boot with cgroup_enable=memory."
        return Check("limits", "fail", f"the engine cannot limit: {', '.join(missing)}", advice)
    return Check("limits", "ok", "memory, cpu and pids can be limited")


def _image(engine: Engine, tag: str) -> Check:
    image = engine.image(tag)
    if image is None:
        return Check("image", "warn", f"{tag} is not there yet", "sandboxd makes it when it starts.")
    check_rules(image)
    labels = (image.get("Config") or {}).get("Labels") or {}
    return Check("image", "ok", f"{image['Id']} with Python {labels.get('org.cloche.python', 'unknown')}")
