"""The submit form as typed, as a job's body, and each refusal beside the field it is about. Pure."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cloche.errors import Problem
from cloche.web import strictjson

ARROW = "=>"


@dataclass(frozen=True)
class Typed:
    """The form's fields as the person left them, whatever they hold."""

    payload: str = "{}"
    name: str = ""
    priority: str = "5"
    queue: str = ""
    sensitive: str = ""
    remote_inputs: str = ""
    outputs: str = ""
    nonce: str = ""

    @classmethod
    def read(cls, form: Mapping[str, str]) -> Typed:
        # Browsers send line feeds as CR LF.
        return replace(
            cls(), **{name: form[name].replace("\r\n", "\n") for name in cls.__annotations__ if name in form}
        )


class Refused(Exception):
    """Fields that cannot become a body: ``problems`` by field name."""

    def __init__(self, problems: Mapping[str, list[str]]) -> None:
        super().__init__("the form cannot be read")
        self.problems = problems


def body(plugin: str, version: str, typed: Typed, file_ids: Sequence[str]) -> dict[str, Any]:
    """What ``POST /jobs`` would take.

    Raises:
        Refused: the payload is not JSON, the priority not a digit, or a line has no arrow.
    """
    problems: dict[str, list[str]] = defaultdict(list)
    made: dict[str, Any] = {"type": plugin, "version": f"=={version}"}
    try:
        made["payload"] = strictjson.loads(
            typed.payload.encode("utf-8", "surrogatepass") if typed.payload.strip() else b"{}"
        )
    except strictjson.Malformed as error:
        problems["payload"].append(f"This is not valid JSON: {error}.")
    if typed.priority.isascii() and typed.priority.isdigit() and len(typed.priority) == 1:
        made["priority"] = int(typed.priority)
    else:
        problems["priority"].append("The priority is a digit from 0 to 9.")
    if typed.queue.strip():
        made["queue"] = typed.queue.strip()
    if typed.sensitive:
        made["sensitive"] = True
    if typed.name.strip():
        made["name"] = typed.name.strip()
    inputs = [{"from": f"artifact:{file_id}"} for file_id in file_ids]
    for line in _lines(typed.remote_inputs):
        source, arrow, to = (part.strip() for part in line.partition(ARROW))
        inputs.append({"from": source, "to": to} if arrow else {"from": source})
    outputs = []
    for line in _lines(typed.outputs):
        match, arrow, to = (part.strip() for part in line.partition(ARROW))
        if not (match and arrow and to):
            problems["outputs"].append(f"“{line[:60]}” says not where to: write *.png {ARROW} remote:folder.")
        outputs.append({"match": match, "to": to})
    if problems:
        raise Refused(problems)
    return made | {"inputs": inputs, "outputs": outputs}


def key(typed: Typed, made: Mapping[str, Any]) -> str:
    """An idempotency key: the same form sent twice makes one job, the form changed and sent again makes another."""
    canonical = json.dumps([typed.nonce, made], sort_keys=True, ensure_ascii=True)
    return "form-" + hashlib.sha256(canonical.encode()).hexdigest()


def placed(problems: Iterable[Problem], files: int) -> dict[str, list[str]]:
    """Problems by the form's fields. ``files`` is how many of the body's inputs were uploaded ones; remotes follow them."""
    found: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        head, _, rest = problem.pointer.removeprefix("/").partition("/")
        name = _field(head, rest, files)
        inner = f"/{rest}: " if name == "payload" and rest else ""
        found[name].append(f"{inner}{problem.detail}")
    return dict(found)


def _field(head: str, rest: str, files: int) -> str:
    if head == "inputs":
        number = rest.partition("/")[0]
        return "remote_inputs" if number.isdigit() and int(number) >= files else "files"
    names = {
        "payload": "payload",
        "name": "name",
        "priority": "priority",
        "queue": "queue",
        "outputs": "outputs",
        "type": "plugin",
        "version": "plugin",
    }
    return names.get(head, "form")


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
