import os
import signal
import socket
import subprocess
import sys
import threading
import time

from cloche_guest import Job, hookimpl


@hookimpl
def run(job: Job) -> object:
    return KINDS[job.payload["kind"]](job)


def plain(job):
    return job.attempt


def output(job):
    for number in range(3):
        (job.out / f"{number}.txt").write_text(str(number) * 100)


def inputs(job):
    return sum(path.stat().st_size for path in job.inputs)


def log(job):
    for number in range(200):
        print("line", number)


def progress(job):
    for number in range(20):
        job.progress(number + 1, 20, "step")


def result(job):
    return "x" * 200_000


def error(job):
    raise ValueError("asked to fail")


def leave(job):
    os._exit(7)


def killed(job):
    os.kill(os.getpid(), signal.SIGKILL)


def children(job):
    """Three that nobody waits for, one of them in a session of its own."""
    for more in ({}, {}, {"start_new_session": True}):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], **more)


def threads(job):
    for _ in range(8):
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


def descriptors(job):
    """Files, anonymous files and sockets that nobody closes, some of them connected to each other, some sent through each other."""
    kept = [os.memfd_create("kept") for _ in range(20)] + [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    pairs = [socket.socketpair() for _ in range(10)]
    for left, right in pairs:
        socket.send_fds(left, [b"x"], [right.fileno(), *kept[:4]])
    listening = socket.create_server(("127.0.0.1", 0))
    socket.create_connection(listening.getsockname()).detach()
    for socks in pairs:
        for sock in socks:
            sock.detach()
    listening.detach()


def scratch(job):
    for folder in ("/tmp", "/dev/shm"):  # the sandbox's own
        with open(f"{folder}/left", "wb") as file:
            file.write(b"x" * 500_000)


def egress(job):
    host, _, port = job.payload["where"].rpartition(":")
    with job.connect(host, int(port)) as stream:
        stream.sendall(b"hello")
        stream.shutdown(socket.SHUT_WR)
        return stream.recv(10).decode()


def memory(job):
    return len([bytearray(1 << 20) for _ in range(4096)])


def sleep(job):
    time.sleep(600)


KINDS = {
    kind.__name__: kind
    for kind in (plain, output, inputs, log, progress, result, error, leave, killed, children, threads, descriptors)
    + (scratch, egress, memory, sleep)
}
