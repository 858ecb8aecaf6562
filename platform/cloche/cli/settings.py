"""Settings of the process commands: the environment and files, with the command line's options over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from cloche.config import Settings

F = TypeVar("F", bound=Callable[..., Any])


def settings_options(command: F) -> F:
    """Adds ``--home`` and ``--config`` to a command."""
    home = click.option(
        "--home", type=click.Path(file_okay=False), help="The home directory; else CLOCHE_HOME, else ~/.cloche."
    )
    config = click.option(
        "--config", type=click.Path(dir_okay=False), help="A settings file (TOML or YAML); else CLOCHE_CONFIG."
    )
    return home(config(command))


def load_settings(component: str, home: str | None, config: str | None, **groups: Mapping[str, Any]) -> Settings:
    """Read the settings once and set up logging for ``component``; options that are None change nothing.

    Raises:
        SettingsError: a setting is missing, unknown or malformed.
    """
    from cloche import config as settings_source
    from cloche import failpoints, logs

    overrides: dict[str, Any] = {"home": home, "config": config}
    for group, values in groups.items():
        overrides[group] = {name: value for name, value in values.items() if value is not None}
    settings = settings_source.load(**{name: value for name, value in overrides.items() if value})
    logs.setup(settings.logging.level, settings.logging.format, component)
    failpoints.arm(settings.failpoints, settings.home, settings.server.host)
    return settings
