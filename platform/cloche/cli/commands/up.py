"""``cloche up``: start everything on this machine, and keep it running."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

import click

from cloche.cli.settings import load_settings, settings_options

_SAME_REQUEST_S = 1.0


@click.command()
@settings_options
@click.option("--host", help="Address the web server listens on; 127.0.0.1 when absent.")
@click.option("--port", type=click.IntRange(0, 65535), help="Its port; 8080 when absent, 0 takes a free one.")
@click.option("--workers", type=click.IntRange(0, 64), help="How many worker processes.")
def up(home: str | None, config: str | None, host: str | None, port: int | None, workers: int | None) -> int:
    """Start Valkey, sandboxd, web, workers and scheduler; restart what dies; stop all on Ctrl-C. Needs root.

    The first start makes tenant `default` and user `admin`, with the password in CLOCHE_ADMIN_PASSWORD or one that is printed once.
    """
    settings = load_settings("up", home, config, server={"host": host, "port": port}, worker={"count": workers})
    from cloche.cli.up.stack import Stack

    os.umask(0o077)
    stack = Stack(settings, sys.stdout, sys.stderr)
    last = float("-inf")

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        # One request to stop can arrive more than once (`timeout` signals the process and its group): only a later one is impatience.
        nonlocal last
        if time.monotonic() - last > _SAME_REQUEST_S:
            last = time.monotonic()
            stack.stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    stack.run()
    return 0
