import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cloche_guest import Job, hookimpl
from cloche_guest.protocol import encode

EATER = "kept = [bytearray(1 << 20) for _ in range(4096)]"


@hookimpl
def run(job: Job) -> object:
    return KINDS[job.payload["kind"]](job)


def fine(job):
    (job.out / "note").write_text("fine")
    return job.payload["kind"]


def sleep(job):
    time.sleep(600)


def spin(job):
    while True:
        pass


def deaf(job):
    for number in set(range(1, 65)) - {32, 33, signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    sleep(job)


def memory(job):
    return len([bytearray(1 << 20) for _ in range(4096)])


def memory_of_a_child(job):
    return subprocess.run([sys.executable, "-c", EATER]).returncode


def forks(job):
    while os.fork():
        pass
    sleep(job)


def fork_bomb(job):
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.01)


def fill(job):
    with (job.out / "big").open("wb") as file:
        while True:
            file.write(b"x" * 65_536)


def sparse(job):
    for name in "ab":
        with (job.out / name).open("wb") as file:
            file.truncate(2 << 20)


def many_files(job):
    for number in range(100_000):
        (job.out / str(number)).touch()


def some_files(job):
    for number in range(55):
        (job.out / str(number)).touch()


def two_files(job):
    for name in "ab":
        (job.out / name).write_bytes(name.encode() * 6_000)


def locks(job):
    with open("/tmp/locks", "w") as file:
        for place in range(5_000):
            fcntl.lockf(file, fcntl.LOCK_EX, 1, 2 * place)
        sleep(job)


def no_files(job):
    os.chdir(job.out)
    os.mkfifo("fifo")
    os.symlink("/etc/passwd", "link")
    Path("a\nb").touch()
    for _ in range(40):
        os.mkdir("d")
        os.chdir("d")


def scratch(job):
    Path("/tmp/big").write_bytes(b"x" * (3 << 20))


def log(job):
    for number in range(20_000):
        print("flood", number, "x" * 100)
        job.log("line")


def long_line(job):
    os.write(1, b"x" * 1000)
    for _ in range(1000):
        os.write(2, b"x" * 65_536)


def progress(job):
    for number in range(50_000):
        job.progress(number, 50_000, "on")


def large_result(job):
    return "x" * 2_000


def nan(job):
    return float("nan")


def leave(job):
    sys.exit(0)


def leave_hard(job):
    os._exit(0)


def code(job):
    os._exit(7)


def segfault(job):
    os.kill(os.getpid(), signal.SIGSEGV)


def kill_everything(job):
    if os.fork() == 0:
        os.kill(-1, signal.SIGKILL)
    sleep(job)


def error(job):
    raise ValueError("asked to fail")


def daemons(job):
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                sleep(job)
            os._exit(0)


def descriptors(job):
    kept = []
    while True:
        kept.append(os.open("/dev/null", os.O_RDONLY))


def close_all(job):
    os.closerange(0, 1_000)
    sleep(job)


def garbage(job):
    forge(b"\xff" * 4_096)
    sleep(job)


def half_frame(job):
    forge(b"\0\0\1\0{")
    sleep(job)


def slow_frame(job):
    data = encode({"type": "log", "stream": "stdout", "text": "x" * 10_000})
    for byte in data:
        forge(bytes([byte]))
        time.sleep(0.01)


def frame_flood(job):
    data = encode({"type": "progress", "current": 1, "total": None, "message": None}) * 100
    while True:
        forge(data)


def log_flood(job):
    data = encode({"type": "log", "stream": "stdout", "text": "x" * 60_000})
    while True:
        forge(data)


def forge(data):
    """Once to everything that may be the channel; at level `namespace` both of its ends are one socket."""
    done = set()
    for number in range(3, 30):
        try:
            place = os.fstat(number).st_ino
            if place not in done:
                os.write(number, data)
                done.add(place)
        except OSError:
            continue


KINDS = {name: value for name, value in globals().items() if callable(value) and value is not run}
