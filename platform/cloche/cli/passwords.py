"""Passwords on the command line: asked for on a terminal, or read from standard input; never an option, which others could see."""

from __future__ import annotations

import sys

import click

password_option = click.option(
    "--password-stdin", is_flag=True, help="Read the password from the first line of stdin instead of asking."
)


def read_password(from_stdin: bool, what: str = "Password", *, confirm: bool = False) -> str:
    """
    Raises:
        click.UsageError: standard input holds none, or there is no terminal to ask on.
    """
    if from_stdin:
        line = sys.stdin.readline().rstrip("\r\n")
        if not line:
            raise click.UsageError("--password-stdin: stdin holds no password")
        return line
    if not sys.stdin.isatty():
        raise click.UsageError("no terminal to ask for the password on: use --password-stdin")
    return str(click.prompt(what, hide_input=True, confirmation_prompt=confirm, err=True))
