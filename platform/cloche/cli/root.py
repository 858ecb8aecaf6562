"""The command tree's top, and how an error becomes a message and an exit code."""

from __future__ import annotations

import sys

import click

from cloche import __version__
from cloche.cli import exits
from cloche.cli.lazy import LazyGroup
from cloche.errors import ClocheError

_COMMANDS = "cloche.cli.commands"
ENTRIES = {
    "up": (f"{_COMMANDS}.up:up", "Start everything on this machine, and keep it running."),
    "job": (f"{_COMMANDS}.jobs:job", "Submit, watch, list and cancel jobs."),
    "file": (f"{_COMMANDS}.files:file", "Upload and download files."),
    "plugin": (f"{_COMMANDS}.plugins:plugin", "See which job types there are."),
    "token": (f"{_COMMANDS}.tokens:token", "Make access tokens."),
    "audit": (f"{_COMMANDS}.audit:audit", "Verify the audit trail."),
    "egress-policy": (f"{_COMMANDS}.egress:policy", "See and set which hosts jobs may reach."),
    "doctor": (f"{_COMMANDS}.doctor:doctor", "Say what this machine can and cannot do."),
    "web": (f"{_COMMANDS}.processes:web", "Run the web process alone."),
    "worker": (f"{_COMMANDS}.processes:worker", "Run one worker alone."),
    "sandboxd": (f"{_COMMANDS}.processes:sandboxd", "Run the sandbox daemon alone (root)."),
    "egress": (f"{_COMMANDS}.egress:egress", "Run the egress proxy alone."),
    "scheduler": (f"{_COMMANDS}.processes:scheduler", "Run the scheduler alone."),
    "db": (f"{_COMMANDS}.database:db", "Bring the database's schema up to date."),
    "image": (f"{_COMMANDS}.image:image", "Build the sandbox image; check a plugin's own."),
}


@click.command(
    cls=LazyGroup, entries=ENTRIES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="cloche")
def cli() -> None:
    """Cloche runs other people's code on your files, each job sealed in its own container.

    Client commands read CLOCHE_URL and CLOCHE_TOKEN; the processes read the settings in docs/settings.md.
    """


def main() -> None:
    """Run the command line; every deliberate error is one clear line on stderr."""
    try:
        code = cli(standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130  # 128 + SIGINT, as shells report it
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone, which is its right; nothing is left to say
        code = exits.OK
    except ClocheError as error:
        click.echo(f"cloche: {error}", err=True)
        code = exits.FAILED
    sys.exit(code if isinstance(code, int) else exits.OK)
