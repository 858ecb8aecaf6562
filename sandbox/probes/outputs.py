"""What a job may leave behind in ``out/`` to trip whoever collects it."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from cloche_guest import Job

from .base import act, tried


@act
def odd_files(job: Job) -> Any:
    os.chdir(job.out)
    Path("good").write_text("good")
    os.symlink("/etc/passwd", "link")
    os.symlink("/", "root")
    os.symlink("/proc/self/mem", "magic")
    os.mkfifo("fifo")
    Path("first").write_text("x")
    os.link("first", "second")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    Path("suid").write_text("#!/bin/sh\n")
    os.chmod("suid", 0o6777)
    Path("hidden").write_text("nobody may read this")
    os.chmod("hidden", 0)
    os.mkdir("locked")
    Path("locked/inner").write_text("x")
    os.chmod("locked", 0)
    return {"device": tried(os.mknod, "device", 0o60666, os.makedev(8, 0))}


@act
def odd_names(job: Job) -> Any:
    os.chdir(job.out)
    names = [
        b"\xff\xfe",
        b"a\nb",
        b"\x1b[2J",
        b"a\xe2\x80\xaeb",
        b"back\\slash",
        b"-rf",
        b"--config=x",
        b"a:b",
        b":local:etc",
        b" ",
        b"~",
        b"$(id)",
        b"n" * 255,
        "é".encode(),
    ]
    for name in names:
        Path(os.fsdecode(name)).write_text("x")
    return len(names)


@act
def deep_tree(job: Job) -> Any:
    os.chdir(job.out)
    Path("top").write_text("x")
    made = 0
    try:
        for _number in range(10_000):
            os.mkdir("d")
            os.chdir("d")
            made += 1
        Path("bottom").write_text("x")
    except OSError as error:
        return {"made": made, "error": error.errno}
    return {"made": made, "error": None}


@act
def changing(job: Job) -> Any:
    """Processes that keep swapping a file for a link, and growing and shrinking another, while the host already collects."""
    for _number in range(2):
        if os.fork() == 0:
            os.setsid()
            os.chdir(job.out)
            while True:
                tried(os.symlink, "/etc/passwd", "swap.link")
                tried(os.rename, "swap.link", "swap")
                tried(lambda: Path("swap.file").write_text("mine"))
                tried(os.rename, "swap.file", "swap")
                with open("grows", "wb") as file:
                    file.write(b"x" * 100_000)
                    file.truncate(10)
    while not (job.out / "grows").exists() or not os.path.lexists(job.out / "swap"):
        time.sleep(0.05)
    return "changing"


@act
def many_links(job: Job) -> Any:
    """One file under many names."""
    os.chdir(job.out)
    Path("one").write_bytes(b"x" * 1_000)
    for number in range(40):
        os.link("one", f"n{number}")
    return None
