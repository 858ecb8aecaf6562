"""What a job of the peers does: say that it began, take its time, say that it ended. Runs in the peers' own environments; standard library only.

`MARKS` names the file; a line is `word number pid seconds`, the seconds of the clock that all processes of a machine share.
"""

import os
import sys
import time

JOB_S = 2.0
TICK = 1_000  # jobs from this number on take no time: they show that the queue is in use


def url():
    return os.environ["PEER_REDIS"]


def option(name):
    """A setting that this row asks for, or None."""
    return os.environ.get(f"PEER_{name}")


def seconds(number):
    return JOB_S if number < TICK else 0.0


def mark(word, number):
    with open(os.environ["MARKS"], "a") as file:  # one short write at the end of the file: whole, whoever else writes
        file.write(f"{word} {number} {os.getpid()} {time.monotonic()}\n")


def work(number):
    mark("started", number)
    time.sleep(seconds(number))
    mark("finished", number)


def numbers():
    """The jobs to send, as they are asked for on standard input."""
    for line in sys.stdin:
        yield int(line)
