"""What a form's refusal says beside which field. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from cloche.errors import Invalid, Problem, RequestError
from cloche.web.dashboard.show import sentence

Problems = dict[str, list[str]]
FORM = "form"  # what is about no single field stands above them
_MOST = 20


def beside(
    refused: RequestError,
    fields: Collection[str],
    *,
    about: Mapping[str, Sequence[str]] | None = None,
    codes: Mapping[str, str] | None = None,
) -> Problems:
    """Each problem under the form's field that its pointer begins with, or under :data:`FORM`.

    Args:
        fields: names of the form's fields, which are those of the API's body.
        about: what was typed for fields that are lists: the problem of an entry begins with it.
        codes: which field a refusal is about that has a code and no pointers.
    """
    found: Problems = defaultdict(list)
    for problem in refused.problems[:_MOST]:
        name, _, rest = problem.pointer.removeprefix("/").partition("/")
        entries, number = (about or {}).get(name, ()), rest.partition("/")[0]
        entry = f"{entries[int(number)][:80]}: " if number.isdigit() and int(number) < len(entries) else ""
        found[name if name in fields else FORM].append(entry + sentence(problem.detail))
    if not found:
        found[(codes or {}).get(refused.code, FORM)].append(refused.detail)
    return dict(found)


def lines(text: str) -> list[str]:
    """What a text field holds, one entry a line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def version_of(form: Mapping[str, str]) -> int:
    """The version of what a form changes, which it was made with.

    Raises:
        Invalid: the form is none of ours.
    """
    text = form.get("version", "")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Invalid("the form is not one of this page", problems=[Problem("/version", "load the page anew")])
    return int(text)
