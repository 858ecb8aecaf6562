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
    "job": (f"{_COMMANDS}.jobs:job", "Submit, watch, list, cancel, retry and remove jobs."),
    "dead-letter": (f"{_COMMANDS}.dead_letters:dead_letter", "See, replay and purge failed jobs."),
    "batch": (f"{_COMMANDS}.batches:batch", "Submit many jobs at once; watch and cancel them together."),
    "queue": (f"{_COMMANDS}.queues:queue", "See, create, limit, pause, measure and remove queues."),
    "file": (f"{_COMMANDS}.files:file", "Upload and download files."),
    "stats": (f"{_COMMANDS}.statistics:stats", "Say in numbers what comes, waits and ends."),
    "quota": (f"{_COMMANDS}.quotas:quota", "See and set what tenants and users may use at most."),
    "usage": (f"{_COMMANDS}.quotas:usage", "Say what jobs have used, day by day."),
    "plugin": (f"{_COMMANDS}.plugins:plugin", "See which job types there are."),
    "user": (f"{_COMMANDS}.users:user", "See, create, disable and remove users; give them roles."),
    "role": (f"{_COMMANDS}.roles:role", "See, create, change and remove roles."),
    "tenant": (f"{_COMMANDS}.tenants:tenant", "See, create, suspend, empty and remove tenants."),
    "token": (f"{_COMMANDS}.tokens:token", "Make, list and revoke access tokens."),
    "session": (f"{_COMMANDS}.sessions:session", "See and end one's sessions in browsers."),
    "password": (f"{_COMMANDS}.passwords:password", "Change a password, make a reset for somebody, or use one."),
    "audit": (f"{_COMMANDS}.audit:audit", "Verify the audit trail, and keep it."),
    "secret": (f"{_COMMANDS}.secrets:secret", "Set secrets that jobs get, and grant them to plugin versions."),
    "callback": (f"{_COMMANDS}.callbacks:callback", "See what the callbacks of jobs were told."),
    "callback-secret": (f"{_COMMANDS}.callbacks:secret", "See and renew the secret that callbacks are signed with."),
    "egress-policy": (f"{_COMMANDS}.egress:policy", "See and set which hosts jobs may reach."),
    "doctor": (f"{_COMMANDS}.doctor:doctor", "Say what this machine can and cannot do."),
    "web": (f"{_COMMANDS}.processes:web", "Run the web process alone."),
    "worker": (f"{_COMMANDS}.processes:worker", "Run one worker alone; list, count and drain those that run."),
    "sandboxd": (f"{_COMMANDS}.processes:sandboxd", "Run the sandbox daemon alone (root)."),
    "egress": (f"{_COMMANDS}.egress:egress", "Run the egress proxy alone."),
    "scheduler": (f"{_COMMANDS}.processes:scheduler", "Run the scheduler alone."),
    "key": (f"{_COMMANDS}.keys:key", "See and rotate the keys of sensitive jobs and of secrets."),
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
