"""The imports of a slot's preloader, each in a process of its own: what is refused, and in which words. No sandbox, no engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cloche_guest import preload_names

RUN = """
import json, os, sys
from pathlib import Path
from cloche_guest import cell_preload
cell_preload.WHEELS = Path(sys.argv[1])
# A preloader has a /tmp of its own; the host's is everybody's, and others write there meanwhile.
listed = os.listdir
os.listdir = lambda path=".": listed(Path(sys.argv[1], "tmp") if path == "/tmp" else path)
before = list(sys.path)
problem = cell_preload._import_all(sys.argv[2:])
print("\\n" + json.dumps([problem, [name for name in sys.argv[2:] if name in sys.modules], before == sys.path]))
"""


def imported(folder: Path, source: str, *names: str) -> tuple[str | None, list[str], bool]:
    (folder / "tiny").mkdir()
    (folder / "tiny" / "__init__.py").write_text(source)
    (folder / "bare").mkdir()
    (folder / "tmp").mkdir()
    command = [sys.executable, "-c", RUN, str(folder), *(names or ("tiny",))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    problem, found, same = json.loads(done.stdout.splitlines()[-1])
    return problem, found, same


def test_a_package_that_only_defines(tmp_path: Path) -> None:
    assert imported(tmp_path, "import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()\nx = 1") == (
        None,
        ["tiny"],
        True,
    )


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import os\nkept = os.open('/dev/null', os.O_RDONLY)", "it leaves open descriptors other than it found it"),
        (
            "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)",
            "it leaves signal handling other than it found it",
        ),
        (
            "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])",
            "it leaves signal handling other than it found it",
        ),
        (
            "import os\nos.umask(0o77)\nos.chdir('/usr')",
            "it leaves the umask and the working folder other than it found them",
        ),
        ("import signal\nsignal.setitimer(signal.ITIMER_REAL, 100)", "it leaves timers other than it found it"),
        (
            "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
            "it leaves limits other than it found it",
        ),
        ("import mmap\nkept = mmap.mmap(-1, 4096)", "it leaves shared memory other than it found it"),
        (
            "from pathlib import Path\n(Path(__file__).parents[1] / 'tmp' / 'kept').touch()",
            "it leaves files in /tmp other than it found it",
        ),
        ("import os\nos.nice(1)", "it leaves its priority other than it found it"),
        ("raise SystemExit(2)", "cannot import 'tiny': SystemExit: 2"),
        ("raise ValueError('a\\n\\x1b[31m\\u202e')", "cannot import 'tiny': ValueError: a  [31m "),
        ("raise ValueError('a' * 1000)", "cannot import 'tiny': ValueError: " + "a" * 266),
    ],
)
def test_what_it_leaves_or_raises(tmp_path: Path, source: str, why: str) -> None:
    problem, _, _ = imported(tmp_path, source)
    assert problem == why


@pytest.mark.parametrize("name", ["json", "bare"])
def test_only_modules_of_the_packages(tmp_path: Path, name: str) -> None:
    assert imported(tmp_path, "", name)[0] == f"'{name}' is no module of the plugin's packages"


def test_what_is_not_there(tmp_path: Path) -> None:
    assert (
        imported(tmp_path, "", "tiny", "other")[0]
        == "cannot import 'other': ModuleNotFoundError: No module named 'other'"
    )


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("numpy", "is a list"),
        (None, "is a list"),
        ({"numpy": 1}, "is a list"),
        (["numpy", 1], "as they are imported"),
        (["numpy.linalg"], "as they are imported"),
        (["../numpy"], "as they are imported"),
        (["numpy\n"], "as they are imported"),
        (["ñ"], "as they are imported"),
        ([""], "as they are imported"),
        (["a" * 65], "as they are imported"),
        ([f"m{number}" for number in range(9)], "at most 8"),
        (["a", "b", "a"], "names a twice"),
        (["pluggy"], "is ours"),
        (["cloche_guest"], "is ours"),
    ],
)
def test_names_that_are_none(names: object, says: str) -> None:
    assert says in str(preload_names.problem(names))


HEARD = """
import json, os, socket, sys
from cloche_guest import cell_preload
made = cell_preload.Preloader.__new__(cell_preload.Preloader)
made.stream, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
host, _host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
cell_preload._LAST_BREATH_MS = 1
made.pid = os.fork()
if made.pid == 0:
    made.stream.close()
    socket.send_fds(theirs, [sys.argv[1].encode()], [0, 1, 2])
    theirs.recv(1)
    os._exit(0)
theirs.close()
made.pidfd = os.pidfd_open(made.pid)
before = len(os.listdir("/proc/self/fd"))
print(json.dumps([made.outcome(host), len(os.listdir("/proc/self/fd")) - before]))
made.stream.close()
"""


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        ('{"problem": null}', None),
        ('{"problem": ["a"]}', "['a']"),
        ("[" * 4_000, "it lost its connection to the runner"),
        ('{"a":' * 800, "it lost its connection to the runner"),
        ("{", "it lost its connection to the runner"),
        ("[]", "it lost its connection to the runner"),
    ],
)
def test_whatever_it_says_its_runner_lives_and_keeps_nothing_it_sent(message: str, outcome: str | None) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEARD, message], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == [outcome, 0]


def test_names() -> None:
    assert preload_names.problem([]) is None
    assert preload_names.problem(("numpy", "_cffi_backend")) is None
