"""Text that jobs control, sizes, exit codes, and the command tree's own promises."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from cloche.cli import exits, output
from cloche.cli.root import ENTRIES, cli

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "ok\ttab\nline \x1b]0;title\x07 \x9b31m \x7f \u202e\u2066 \u2028 é 日本"


def test_printable_leaves_text_and_writes_out_what_steers() -> None:
    shown = output.printable(HOSTILE)
    assert shown == "ok\ttab\nline \\x1b]0;title\\x07 \\x9b31m \\x7f \\u202e\\u2066 \\u2028 é 日本"


def test_printable_leaves_nothing_invisible() -> None:
    hidden = "\u200b\u200d\u2060\ufeff\xad\u3164\u2800\U000e0041\ue000\ufe0f"
    assert output.printable(hidden) == ("\\u200b\\u200d\\u2060\\ufeff\\xad\\u3164\\u2800\\U000e0041\\ue000\\ufe0f")
    assert (
        output.printable("fine \u2714\ufe0f \u2764\ufe0f \U0001f600 naïve")
        == "fine \u2714\ufe0f \u2764\ufe0f \U0001f600 naïve"
    )
    assert json.loads(output.to_json(hidden)) == hidden


def test_json_and_yaml_stay_the_same_data_without_raw_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    text = output.to_json({"x": HOSTILE})
    assert json.loads(text) == {"x": HOSTILE}
    output.show("yaml", {"x": HOSTILE}, rows=[], columns=(), name=str)
    written = capsys.readouterr().out
    assert yaml.safe_load(written) == {"x": HOSTILE}
    for form in (text, written):
        assert not set(form) & set("\x1b\x07\x9b\x7f\u202e\u2066\u2028")


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, ""), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KB"), (5 << 20, "5.0 MB"), (3 << 30, "3.0 GB")],
)
def test_size(count: int | None, text: str) -> None:
    assert output.size(count) == text


def test_exit_codes() -> None:
    assert [exits.of_job(state) for state in ("completed", "failed", "canceled", "processing")] == [0, 1, 3, 3]
    assert [exits.of_http(status) for status in (401, 403, 404, 409, 500)] == [4, 4, 5, 1, 1]


def test_help_is_shown_without_loading_what_only_commands_need() -> None:
    heavy = ("httpx", "pydantic", "rich", "sqlalchemy", "yaml", "redis", "flask", "structlog")
    program = f"""
import sys
sys.argv = ["cloche", "--help"]
from cloche.cli.root import main
try:
    main()
except SystemExit:
    pass
print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"
    assert "Commands:" in ran.stdout


def test_an_unknown_command_is_exit_2() -> None:
    ran = subprocess.run([sys.executable, "-m", "cloche", "nonsense"], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "nonsense" in ran.stderr


def test_an_unknown_setting_is_one_line() -> None:
    command = [sys.executable, "-m", "cloche", "db", "upgrade"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env={"CLOCHE_SEVRER_PORT": "1"})
    assert ran.returncode == 1
    assert ran.stderr.startswith("cloche: CLOCHE_SEVRER_PORT is not a setting")
    assert len(ran.stderr.splitlines()) == 1


def _commands() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    context = click.Context(cli)
    for name in ENTRIES:
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            for inner in command.list_commands(context):
                item = command.get_command(context, inner)
                assert item is not None
                found[f"{name} {inner}"] = item
        if not isinstance(command, click.Group) or command.invoke_without_command:
            found[name] = command
    return found


def test_every_command_shows_its_help_and_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    for name, command in _commands().items():
        ran = CliRunner().invoke(command, ["--help"])
        assert ran.exit_code == 0, name
        assert f"`cloche {name}" in page, f"docs/cli.md does not mention cloche {name}"
        _, _, section = re.split(rf"\n### `cloche {name}(`| [A-Z\[])", page, maxsplit=1)
        section = section.split("\n### ", 1)[0]
        shared = page.split("## Options of all", 1)[1].split("\n## Exit codes", 1)[0]
        for parameter in command.params:
            for option in (
                text for text in parameter.opts if text.startswith("--") or (len(text) == 2 and text[0] == "-")
            ):
                assert option in section or option in shared, f"docs/cli.md: cloche {name} lacks {option}"


def test_the_documentation_names_no_command_that_is_not_there() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    documented = {
        line.removeprefix("### `cloche ").split("`")[0] for line in page.splitlines() if line.startswith("### `cloche ")
    }
    words = {
        " ".join(word for word in text.split() if word.islower() and word.replace("-", "").isalpha())
        for text in documented
    }
    assert words == set(_commands())


def test_the_program_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["scripts"]["cloche"] == "cloche.__main__:main"
