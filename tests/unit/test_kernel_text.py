"""Lines of the kernel's files, with names in them that plugins, images and operators choose."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloche.sandboxd import cgroups, entered, kernel_text, syscalls

ODD = "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
MOUNTS = f"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n21 20 8:1 /x{ODD} /y{ODD}\\040\\134z rw - ext4 /dev/sda1 rw\n"
ROOT = Path(__file__).resolve().parents[2]
NOT_THE_KERNELS = {  # what tools print that run outside of any sandbox, code that runs in one, and numbers alone
    "cgroups.py", "disk.py", "doctor_gvisor.py", "image_parts.py", "proof.py", "runtime.py", "runtimes.py",
}  # fmt: skip


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for text, lines in (("", []), ("\n", [""]), ("a\nb\n", ["a", "b"]), (f"a{ODD}b\nc", [f"a{ODD}b", "c"])):
        file.write_bytes(text.encode())
        assert kernel_text.lines(file) == lines
    file.write_bytes(b"\xff\n")
    assert kernel_text.lines(file) == ["\udcff"], "no bytes are refused"


def test_names_are_as_they_are() -> None:
    assert kernel_text.plain("/a\\040b\\011c\\012d\\134e\\134040é") == "/a b\tc\nd\\e\\040é"


def test_mounts_with_such_names() -> None:
    _, found = entered.parse(MOUNTS)
    assert found.source == ("8:1", f"/x{ODD}")
    assert found.target == f"/y{ODD} \\z"


def test_mounts_below_a_folder_of_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of letters beyond ASCII: what is not found there is never unmounted."""
    names = [f"/home/{ODD}é", f"/home/{ODD}é/in\\040side", "/home/other"]
    text = "".join(f"{20 + n} 1 8:1 / {name} rw - ext4 /dev/sda1 rw\n" for n, name in enumerate(names))
    monkeypatch.setattr(kernel_text, "read", lambda path: text)
    assert syscalls.mounts_below(Path(f"/home/{ODD}é")) == [Path(f"/home/{ODD}é/in side"), Path(f"/home/{ODD}é")]


def test_a_cgroup_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "cgroup").write_bytes(f"0::/a{ODD}b\n".encode())
    assert cgroups.of_process(7, Path("/cg"), tmp_path).unified == Path(f"/cg/a{ODD}b")


def test_nothing_of_the_kernels_is_split_otherwise() -> None:
    folder = ROOT / "platform" / "cloche" / "sandboxd"
    sources = [*folder.glob("*.py"), *folder.glob("cells/*.py")]
    assert len(sources) > 30
    found = {path.name for path in sources if ".splitlines(" in path.read_text()}
    assert found <= NOT_THE_KERNELS
