"""Hostile probes: what a plugin reaches for and must not get. Each runs as a real job in a real sandbox."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import sandbox as support

pytestmark = pytest.mark.docker
MIB = 1 << 20
Run = Callable[..., support.Outcome]

# Prepended to each probe: `tried(f)` is the error's name, or "DONE" when the call went through.
HEAD = """
import ctypes, errno, platform
libc = ctypes.CDLL(None, use_errno=True)
def tried(call, *args):
    try:
        call(*args)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return 'DONE'
def syscall(number, *args):
    ctypes.set_errno(0)
    if libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in args]) == -1:
        raise OSError(ctypes.get_errno(), '')
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with support.temporary_home() as folder, support.running_sandboxd(folder):
        yield folder


@pytest.fixture(scope="module")
def run(home: Path) -> Iterator[Run]:
    backend = support.client(home)

    def probe(body: str, payload: Any = None, inputs: dict[str, bytes] | None = None, **limits: Any) -> support.Outcome:
        bundle = support.write_bundle(home, HEAD + support.plugin(body))
        small = {"memory": 64 * MIB, "output": 2 * MIB, "tmp": 2 * MIB, "shm": MIB, "pids": 32, **limits}
        return support.run_job(backend, support.spec(bundle, **small), payload, inputs)

    yield probe
    backend.close()


def test_there_is_no_network(run: Run) -> None:
    value = run("""
        def connect(address):
            with socket.create_connection(address, timeout=5):
                pass
        names = [line.split(':')[0].strip() for line in Path('/proc/self/net/dev').read_text().splitlines()[2:]]
        hosts = [('1.1.1.1', 53), ('172.17.0.1', 22), ('169.254.169.254', 80), ('10.0.0.1', 80), ('2606:4700::1', 53)]
        lookup = tried(socket.getaddrinfo, 'example.org', 80)
        return {'names': names, 'connects': [tried(connect, host) for host in hosts], 'lookup': lookup}
    """).value
    assert value["names"] == ["lo"]
    assert set(value["connects"]) == {"ENETUNREACH"}
    assert value["lookup"] != "DONE"


def test_the_hosts_files_are_not_there(run: Run, home: Path) -> None:
    paths = [
        "/etc/shadow",
        "/root/.ssh",
        "/home",
        "/work",
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/boot",
        "/dev/sda",
        "/dev/vda",
    ]
    value = run(
        "return {p: tried(os.stat, p) for p in job.payload['paths']}", {"paths": [*paths, str(home), "/.dockerenv/x"]}
    ).value
    assert set(value.values()) <= {"ENOENT", "ENOTDIR"}, value


def test_nothing_outside_out_and_tmp_can_be_written(run: Run) -> None:
    value = run(
        """
        def write(folder):
            Path(folder, 'x').write_text('x')
        top = [str(p) for p in Path('/').iterdir() if p.is_dir() and p.name not in ('proc', 'sys', 'tmp')]
        places = top + ['/cloche/plugin', '/opt/cloche/cloche_guest', '/usr/local/lib', '/run/cloche', '/job', '/job/in', '/dev', '/etc']
        return {
            'writes': {p: tried(write, p) for p in places},
            'input': [tried(job.inputs[0].write_text, 'x'), tried(os.unlink, job.inputs[0]), tried(os.chmod, job.inputs[0], 0o777)],
            'good': [tried(write, '/tmp'), tried(write, job.out), tried(write, '/dev/shm')],
            'read': job.inputs[0].read_text(),
        }
        """,
        inputs={"a.txt": b"mine"},
    ).value
    assert set(value["writes"].values()) <= {"EROFS", "EACCES", "EPERM"}, value
    assert set(value["input"]) <= {"EROFS", "EACCES", "EPERM"}
    assert set(value["good"]) == {"DONE"}
    assert value["read"] == "mine"


def test_the_kernels_own_files_cannot_be_written(run: Run) -> None:
    paths = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger",
        "/proc/sys/vm/overcommit_memory",
        "/proc/kcore",
        "/proc/kmem",
        "/dev/mem",
        "/sys/kernel/uevent_helper",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/pids/cgroup.procs",
        "/proc/1/oom_score_adj_",
    ]
    value = run(
        "return {p: tried(lambda: os.close(os.open(p, os.O_WRONLY))) for p in job.payload['paths']}", {"paths": paths}
    ).value
    assert "DONE" not in value.values(), value


def test_other_processes_cannot_be_seen_or_touched(run: Run) -> None:
    value = run("""
        pids = sorted(int(p) for p in os.listdir('/proc') if p.isdigit())
        os.kill(1, 9)
        return {'pids': pids, 'kill': [tried(os.kill, pid, 9) for pid in (2, 300, 4000)], 'root': tried(os.listdir, '/proc/1/root')}
    """).value
    assert len(value["pids"]) == 2  # process 1 and the agent
    assert set(value["kill"]) == {"ESRCH"}
    assert value["root"] == "EACCES"


# (name, x86_64, aarch64): numbers of system calls that must fail with EPERM whatever their arguments
CALLS = [
    ("mount", 165, 40),
    ("umount2", 166, 39),
    ("pivot_root", 155, 41),
    ("chroot", 161, 51),
    ("unshare", 272, 97),
    ("setns", 308, 268),
    ("ptrace", 101, 117),
    ("process_vm_readv", 310, 270),
    ("process_vm_writev", 311, 271),
    ("pidfd_getfd", 438, 438),
    ("kcmp", 312, 272),
    ("io_uring_setup", 425, 425),
    ("io_uring_enter", 426, 426),
    ("bpf", 321, 280),
    ("perf_event_open", 298, 241),
    ("userfaultfd", 323, 282),
    ("vmsplice", 278, 75),
    ("add_key", 248, 217),
    ("request_key", 249, 218),
    ("keyctl", 250, 219),
    ("open_by_handle_at", 304, 265),
    ("name_to_handle_at", 303, 264),
    ("open_tree", 428, 428),
    ("move_mount", 429, 429),
    ("fsopen", 430, 430),
    ("mount_setattr", 442, 442),
    ("init_module", 175, 105),
    ("finit_module", 313, 273),
    ("kexec_load", 246, 104),
    ("reboot", 169, 142),
    ("swapon", 167, 224),
    ("acct", 163, 89),
    ("quotactl", 179, 60),
    ("syslog", 103, 116),
    ("settimeofday", 164, 170),
    ("clock_settime", 227, 112),
    ("sethostname", 170, 161),
    ("mbind", 237, 235),
    ("fanotify_init", 300, 262),
    ("memfd_secret", 447, 447),
    ("seccomp", 317, 277),
]


def test_system_calls_that_are_refused(run: Run) -> None:
    value = run(
        "column = 1 if platform.machine() == 'x86_64' else 2\n"
        "return {row[0]: tried(syscall, row[column], 0, 0, 0, 0, 0) for row in job.payload['calls']}",
        {"calls": CALLS},
    ).value
    assert value == {name: "EPERM" for name, _, _ in CALLS}


def test_no_new_namespaces_by_clone(run: Run) -> None:
    value = run("""
        clone, clone3 = (56, 435) if platform.machine() == 'x86_64' else (220, 435)
        flags = [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x10020000]
        return {'clone': [tried(syscall, clone, flag | 17, 0, 0, 0, 0) for flag in flags], 'clone3': tried(syscall, clone3, 0, 0)}
    """).value
    assert set(value["clone"]) == {"EPERM"}
    assert value["clone3"] == "ENOSYS"


def test_sockets_of_other_families(run: Run) -> None:
    value = run("""
        families = [n for n in range(46) if n not in (1, 2, 10)] + [1 << 31, 255]
        def make(family, kind=socket.SOCK_DGRAM, protocol=0):
            number = 41 if platform.machine() == 'x86_64' else 198
            syscall(number, family, kind, protocol)
        raw = [tried(make, 2, socket.SOCK_RAW, 1), tried(make, 10, socket.SOCK_RAW, 58)]
        return {'others': sorted({tried(make, n) for n in families}), 'own': [tried(make, n) for n in (1, 2, 10)], 'raw': raw}
    """).value
    assert value["others"] == ["EPERM"]
    assert value["own"] == ["DONE", "DONE", "DONE"]
    assert value["raw"] == ["EPERM", "EPERM"]


def test_nobody_becomes_root(run: Run) -> None:
    value = run("""
        import stat
        ids = [tried(os.setuid, 0), tried(os.setgid, 0), tried(os.setresuid, 0, 0, 0), tried(os.setgroups, [0])]
        suid = [str(p) for p in Path('/').rglob('*') if not str(p).startswith(('/proc', '/sys')) and not p.is_symlink()
                and p.is_file() and p.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)]
        return {'ids': ids, 'uid': os.getuid(), 'suid': suid, 'no_new_privs': libc.prctl(39, 0, 0, 0, 0)}
    """).value
    assert set(value["ids"]) == {"EPERM"}
    assert value["uid"] >= 210_000
    assert value["suid"] == []
    assert value["no_new_privs"] == 1


def test_no_devices(run: Run) -> None:
    value = run("""
        import stat
        node = job.out / 'sda'
        devices = sorted(p.name for p in Path('/dev').iterdir() if stat.S_ISCHR(p.lstat().st_mode) or stat.S_ISBLK(p.lstat().st_mode))
        return {'mknod': tried(os.mknod, node, stat.S_IFBLK | 0o666, os.makedev(8, 0)), 'devices': devices}
    """).value
    assert value["mknod"] == "EPERM"
    assert set(value["devices"]) <= {"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"}


def test_files_it_writes_cannot_be_executed(run: Run) -> None:
    value = run("""
        import subprocess
        found = []
        for folder in ('/tmp', str(job.out), '/dev/shm'):
            script = Path(folder, 'x.sh')
            script.write_text('#!/bin/sh\\necho hi\\n')
            script.chmod(0o755)
            found.append(tried(lambda: subprocess.run([str(script)])))
        return found
    """).value
    assert value == ["EACCES"] * 3


def test_links_in_out_are_not_followed_inside_either(run: Run) -> None:
    value = run("os.symlink('/etc/passwd', job.out / 'l')\nreturn tried((job.out / 'l').read_text)").value
    assert value == "ELOOP"


def test_its_surroundings_tell_nothing(run: Run) -> None:
    value = run("""
        fds = {}
        for fd in os.listdir('/proc/self/fd'):
            try:
                fds[fd] = os.readlink(f'/proc/self/fd/{fd}')
            except OSError:
                continue
        return {'env': dict(os.environ), 'fds': fds, 'stdin': sys.stdin.read(), 'argv': sys.argv}
    """).value
    names = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "HOSTNAME"}
    assert value["env"].keys() <= names
    kinds = {target.split(":")[0] for target in value["fds"].values()}
    assert kinds <= {"/dev/null", "pipe", "/proc/8/fd", "/proc/7/fd"} or all(
        kind in ("/dev/null", "pipe") or kind.startswith("/proc/") for kind in kinds
    ), value["fds"]
    assert value["stdin"] == ""


def test_one_jobs_leftovers_are_not_the_nexts(run: Run) -> None:
    body = """
        found = [os.listdir(p) for p in ('/tmp', str(job.out), '/dev/shm', '/job/in', '/dev/mqueue')]
        for place in ('/tmp', str(job.out), '/dev/shm'):
            Path(place, 'left').write_text('left')
        return found
    """
    assert run(body).value == [[], [], [], [], []]
    assert run(body).value == [[], [], [], [], []]


def test_ordinary_work_is_not_hindered(run: Run) -> None:
    value = run("""
        import asyncio, concurrent.futures, hashlib, multiprocessing, sqlite3, ssl, subprocess, tempfile, threading
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            threads = sum(pool.map(abs, range(10)))
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('fork')) as pool:
            processes = sum(pool.map(abs, range(10)))
        shell = subprocess.run(['/bin/sh', '-c', 'echo $((6*7))'], capture_output=True, text=True).stdout.strip()
        python = subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True, text=True).stdout.strip()
        base = sqlite3.connect(tempfile.mktemp())
        base.execute('create table t (a)')
        base.commit()
        async def nap():
            process = await asyncio.create_subprocess_exec('/bin/sh', '-c', 'exit 3')
            return await process.wait()
        with socket.create_server(('127.0.0.1', 0)) as server, socket.create_connection(server.getsockname()) as client:
            server.accept()[0].sendall(b'hi')
            loopback = client.recv(2).decode()
        return [threads, processes, shell, python, asyncio.run(nap()), loopback, hashlib.sha256(b'').hexdigest()[:4]]
    """).value
    assert value == [45, 45, "42", "1", 3, "hi", "e3b0"]
