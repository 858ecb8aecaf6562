"""Servers of the tests' own come up although somebody takes their port first."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import pytest

from tests.support import ports

SERVER = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    sys.stdin.read()
"""


@pytest.fixture
def start():
    """Starts a server on a port; all have ended afterwards. ``start.count``: how many there were."""
    made = []

    def one(port):
        made.append(subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stdin=subprocess.PIPE))
        one.count = len(made)
        return made[-1]

    yield one
    for process in made:
        process.kill()
        process.communicate()


def test_another_port_is_tried_where_the_first_one_was_taken_meanwhile(start, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken, free = stranger.getsockname()[1], ports.free_port()
        offered = iter([taken, taken, free])
        monkeypatch.setattr(ports, "free_port", lambda: next(offered))
        process, port = ports.listening(start)
        assert (port, start.count) == (free, 3)
        assert ports.listens(process.pid, free)
        assert not ports.listens(process.pid, taken)


def test_a_port_that_was_asked_for_is_waited_for(start):
    stranger = socket.create_server(("127.0.0.1", 0))
    kept = stranger.getsockname()[1]
    tried = threading.Event()

    def noted(port):
        if getattr(start, "count", 0):
            tried.set()
        return start(port)

    def goes():
        assert tried.wait(30)
        stranger.close()

    thread = threading.Thread(target=goes)
    thread.start()
    process, port = ports.listening(noted, kept)
    thread.join()
    assert port == kept
    assert ports.listens(process.pid, kept)


def test_a_server_that_never_comes_up_is_told_with_its_last_words(tmp_path):
    log = tmp_path / "log"
    log.write_text("no memory")

    def broken(_port):
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])

    with pytest.raises(AssertionError, match=r"ended with 3:\nno memory"):
        ports.listening(broken, log=log)
