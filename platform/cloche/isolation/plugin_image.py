"""Plugins that bring an image of their own: what their manifest may say, and what that makes of the container. Pure.

Process 1 is Cloche's guest in every image. It comes with a runtime of Cloche's (an interpreter, its libraries and its dynamic loader) that is
mounted read-only; the loader is started by its own path, told its libraries, and given an environment of which the image decides nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cloche.domain.limits import Limits
from cloche_guest import job_secrets
from cloche_guest.protocol import MAX_FRAME

IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")
MAX_ARGUMENTS = 32
MAX_ARGUMENT = 1_024  # bytes of UTF-8
RUNTIME = "/cloche/runtime"
LOADER = "ld.so"  # in the runtime: the dynamic loader and
LIBRARIES = "libs"  # the folder of every library, under names that do not depend on the host
PYTHON = "usr/local/bin/python3"
JOB_FOLDER = "/job"
_JOB_INODES = 64 + job_secrets.INODES
_SPARE = 256 << 10  # bytes: what job.json has beyond the frame that brought it, the folders of 10,000 inputs
# For process 1 and the agent alone. The C locale, and a time zone that is no file, keep the C library from reading the image's files.
ENVIRONMENT = {
    "PATH": "/nowhere",
    "HOME": "/tmp",  # noqa: S108
    "LC_ALL": "C",
    "TZ": "UTC0",
    "TZDIR": f"{RUNTIME}/nowhere",
}
# For the command, where the image says nothing else.
COMMAND_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",  # noqa: S108
    "USER": "job",
    "LOGNAME": "job",
    "LANG": "C.UTF-8",
}


def command_problem(command: Any) -> str | None:
    """Why a command is refused, or None. It is a list: an absolute program path, then its arguments; no shell reads it."""
    if not isinstance(command, (list, tuple)) or not 1 <= len(command) <= MAX_ARGUMENTS:
        return f"must be a list of 1 to {MAX_ARGUMENTS} texts: a program and its arguments"
    for position, part in enumerate(command):
        if not isinstance(part, str):
            return f"has at position {position} something that is not text"
        if any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 or 0xD800 <= ord(letter) < 0xE000 for letter in part):
            return f"has a control character at position {position}"
        if len(part.encode("utf-8")) > MAX_ARGUMENT:
            return f"has more than {MAX_ARGUMENT} bytes at position {position}"
    program = command[0]
    if not program.startswith("/") or any(step in ("", ".", "..") for step in program[1:].split("/")):
        return "must begin with the absolute path of a program, such as /bin/sh"
    return None


def job_files(limits: Limits) -> int:
    """Bytes of ``/job`` itself, where job.json, result.json and the secrets are: in memory, and therefore part of the container's memory limit."""
    whole_pages = -(-limits.result // 4_096) * 4_096
    return MAX_FRAME + whole_pages + job_secrets.SIZE + _SPARE


def tmpfs(limits: Limits, uid: int) -> dict[str, str]:
    """The engine's option for ``/job``; in/ and out/ are mounted below it."""
    size = f"size={job_files(limits)},nr_inodes={_JOB_INODES}"
    return {JOB_FOLDER: f"rw,noexec,nosuid,nodev,{size},uid={uid},gid={uid},mode=0700"}


def interpreter(root: str) -> list[str]:
    """How the runtime that lies at ``root`` starts its interpreter: by its own loader, with no library but its own, no site packages."""
    loader = [f"{root}/{LOADER}", "--inhibit-cache", "--library-path", f"{root}/{LIBRARIES}"]
    return [*loader, f"{root}/{PYTHON}", "-I", "-S", "-B", "-X", "utf8"]


def container(command: Sequence[str], image_environment: Mapping[str, str]) -> dict[str, Any]:
    """Entrypoint, environment and working folder. The engine adds an image's variables to a container's; each is taken away by its name."""
    unset = [name for name in image_environment if name not in ENVIRONMENT]
    order = {"command": list(command), "environment": {**COMMAND_ENVIRONMENT, **image_environment}}
    return {
        "Entrypoint": [*interpreter(RUNTIME), f"{RUNTIME}/opt/cloche", json.dumps(order)],
        "Cmd": [],
        "Env": [*(f"{name}={value}" for name, value in ENVIRONMENT.items()), *unset],
        "WorkingDir": "/",
    }
