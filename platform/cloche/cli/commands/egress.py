"""``cloche egress``: the proxy's process. ``cloche egress-policy``: get, set."""

from __future__ import annotations

from typing import Any

import click

from cloche.cli import output
from cloche.cli.client import Api, client_options
from cloche.cli.settings import load_settings, settings_options


@click.command()
@settings_options
def egress(home: str | None, config: str | None) -> int:
    """Run the egress proxy alone: the one way out for jobs. Needs no privilege, and gives away what it has."""
    settings = load_settings("egress", home, config)
    from cloche.egress.main import run

    return run(settings)


@click.group("egress-policy")
def policy() -> None:
    """See and set which hosts jobs of the tenant may reach."""


@policy.command("get")
@output.output_option
@client_options
def get_policy(url: str, token: str | None, form: str) -> None:
    """Show the tenant's policy, and what the platform allows at most."""
    with Api(url, token) as api:
        _show(form, api.get("/egress-policy"))


@policy.command("set")
@click.argument("patterns", nargs=-1, metavar="[HOST:PORT]...")
@output.output_option
@client_options
def set_policy(url: str, token: str | None, form: str, patterns: tuple[str, ...]) -> None:
    """Allow exactly these: `example.org:443`, `*.example.org:443`, `*:443`. Without any, jobs reach nothing."""
    with Api(url, token) as api:
        version = api.get("/egress-policy")["version"]
        headers = {"If-Match": f'"v{version}"'}
        _show(form, api.put("/egress-policy", {"allow": list(patterns)}, headers=headers))


def _show(form: str, data: dict[str, Any]) -> None:
    def joined(name: str) -> str:
        return ", ".join(data[name]) or "nothing"

    lines = [("allowed", joined("allow")), ("platform allows", joined("platform_allow")), ("version", data["version"])]
    output.details(form, data, lines, "\n".join(data["allow"]))
