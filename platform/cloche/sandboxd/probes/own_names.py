"""Names that lead where a probe says, and elsewhere when it says so: the real proxy, started in a mount namespace where ``/etc/hosts`` is our file.

The resolver reads that file at each look-up. Nothing of it is to be seen outside the proxy's process.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_CLONE_NEWNS = 0x20000
_MS_REC_SLAVE, _MS_BIND = 16384 | 1 << 19, 4096
_NSCD = Path("/run/nscd")  # a cache of the host's own names, asked before any file
_FILES = ("hosts", "nsswitch.conf")


class OwnNames:
    """The names as the proxy finds them. One thread."""

    def __init__(self, folder: Path, answers: Mapping[str, str]) -> None:
        self._folder = folder
        self._answers = dict(answers)
        folder.mkdir(mode=0o755)
        (folder / "nsswitch.conf").write_text("hosts: files\n", "ascii")
        (folder / "empty").mkdir(mode=0o755)
        self.change()
        for name in _FILES:
            (folder / name).chmod(0o644)  # the proxy is nobody of ours when it asks

    def change(self, **answers: str) -> None:
        """From now on each of these labels below ``.test`` leads to this address."""
        self._answers |= {f"{label}.test": address for label, address in answers.items()}
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self._answers.items())]
        (self._folder / "hosts").write_text("\n".join(lines) + "\n", "ascii")  # the same file: it is mounted

    def command(self) -> list[str]:
        """What starts the proxy with them."""
        return [sys.executable, "-m", __name__, str(self._folder)]


def main(folder: Path) -> None:
    """Entry of the process: becomes the proxy.

    Raises:
        OSError: not root, or a file cannot be mounted.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: Path, target: Path, flags: int) -> None:
        _checked(libc.mount(bytes(source), bytes(target), None, ctypes.c_ulong(flags), None))

    _checked(libc.unshare(_CLONE_NEWNS))
    mount(Path("none"), Path("/"), _MS_REC_SLAVE)
    for name in _FILES:
        if Path("/etc", name).exists():
            mount(folder / name, Path("/etc", name).resolve(), _MS_BIND)
    if _NSCD.is_dir():
        mount(folder / "empty", _NSCD, _MS_BIND)
    os.execv(sys.executable, [sys.executable, "-m", "cloche", "egress"])  # noqa: S606 - itself


def _checked(answer: int) -> None:
    if answer != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
