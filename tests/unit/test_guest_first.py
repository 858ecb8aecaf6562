"""Process 1 of a sandbox, in a pid namespace of its own: the agent may run ahead of it, and its signals do nothing."""

from __future__ import annotations

import subprocess
import sys

from cloche_guest.protocol import EXIT_LINE

RUN = """
import os, signal, time
from cloche_guest import first

fork = os.fork

def late():
    agent = fork()
    if agent:
        time.sleep(0.5)  # as on a machine with no processor to spare
    return agent

os.fork = late
usual = {number: signal.getsignal(number) for number in signal.valid_signals()}
first.split()
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
changed = [number for number, what in usual.items() if signal.getsignal(number) != what]
for number in signal.valid_signals():
    os.kill(1, number)
print(sorted(blocked), changed, flush=True)
time.sleep(1)  # process 1 has seen them all
os._exit(7)
"""


def test_signals_that_the_agent_sends_before_process_1_goes_on_are_dropped() -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        [*unshare, sys.executable, "-c", RUN],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout == "[] []\n", "the agent has every signal as a program of its own would"
    assert done.stderr == f"\n{EXIT_LINE}7\n"
