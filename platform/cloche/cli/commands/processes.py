"""``cloche web|worker|sandboxd|scheduler``: processes of a host (``egress`` lies beside its policy), startable alone."""

from __future__ import annotations

import click

from cloche.cli.lazy import LazyGroup
from cloche.cli.settings import load_settings, settings_options


@click.command()
@settings_options
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on.")
def web(home: str | None, config: str | None, host: str | None, port: int | None) -> int:
    """Run the web process alone: REST API and dashboard. Needs no privilege."""
    settings = load_settings("web", home, config, server={"host": host, "port": port})
    from cloche.wsgi import serve

    return serve(settings)


_WORKERS = "cloche.cli.commands.workers"
# Client commands; imported when they run, so that a worker's process does not carry a client along.
_OF_WORKERS = {
    "list": (f"{_WORKERS}:list_workers", "List workers, what they hold and what their hosts have left."),
    "stats": (f"{_WORKERS}:stats", "Say how busy workers are, and what each has finished."),
    "drain": (f"{_WORKERS}:drain", "Have a worker finish what it runs, and leave."),
}


@click.group(cls=LazyGroup, entries=_OF_WORKERS, invoke_without_command=True)
@settings_options
@click.option(
    "--id", "worker_id", help="Its id (UUIDv7); a supervisor chooses it so that it can speak for a dead worker."
)
@click.option("--slots", type=click.IntRange(1, 256), help="How many jobs it runs at once.")
@click.pass_context
def worker(
    context: click.Context, home: str | None, config: str | None, worker_id: str | None, slots: int | None
) -> int | None:
    """Run one worker alone (needs sandboxd on this host, and no privilege), or see and drain those that run."""
    if context.invoked_subcommand is not None:
        if any(option is not None for option in (home, config, worker_id, slots)):
            raise click.UsageError(f"these options are for running a worker, not for `{context.invoked_subcommand}`")
        return None
    settings = load_settings("worker", home, config, worker={"slots": slots})
    from cloche.worker.main import run

    return run(settings, worker_id)


@click.command()
@settings_options
def sandboxd(home: str | None, config: str | None) -> int:
    """Run the sandbox daemon alone. The one process that needs root, and the one that talks to Docker."""
    settings = load_settings("sandboxd", home, config)
    from cloche.sandboxd.main import run

    return run(settings)


@click.command()
@settings_options
def scheduler(home: str | None, config: str | None) -> int:
    """Run the scheduler alone: relay, sweeper, sealer. Needs no privilege."""
    settings = load_settings("scheduler", home, config)
    from cloche.worker.scheduler import run

    return run(settings)
