"""``plugin.toml``: what a plugin version says about itself. Read as data; an unknown key is an error at every level.

``docs/plugins.md`` is the reference for authors; a test compares its tables with :data:`KEYS`.
"""

from __future__ import annotations

import keyword
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from cloche.clock import parse_duration
from cloche.domain.egress import MAX_DECLARED, BadRule, parameter, parse_endpoint
from cloche.domain.limits import CEILINGS, FLOORS, Limits, capped, parse_size, violations
from cloche.domain.runtimes import RUNC, RUNSC, RUNTIMES
from cloche.domain.secrets import MAX_NAMED, NAME
from cloche.isolation.gvisor import OWN_IMAGE_REFUSED
from cloche.isolation.plugin_image import IMAGE_ID, command_problem
from cloche.registry import preload
from cloche.registry.payload import SchemaError, check_schema
from cloche.registry.retry import KEYS as RETRY_KEYS
from cloche.registry.retry import parse_retry
from cloche.registry.tables import ManifestError, Section

__all__ = ["API", "KEYS", "Manifest", "ManifestError", "parse"]

API = 1  # of the guest: hooks, Job
ISOLATIONS = ("container", "namespace")  # the first is the default, and the stronger
MAX_MANIFEST = 256 << 10  # bytes of one plugin.toml
NO_PARAMS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

KEYS: dict[str, tuple[str, ...]] = {
    "plugin": ("name", "version", "api", "summary", "entry"),
    "inputs": ("min", "max", "accept"),
    "limits": ("cpu", "memory", "pids", "time", "output", "output_files", "tmp", "shm", "nofile", "log", "result"),
    "sandbox": ("isolation", "runtime", "preload"),
    "network": ("allow",),
    "image": ("id", "command"),
    "requires": ("python", "secrets"),
    "retry": RETRY_KEYS,
}
"""Every table with its keys. ``params`` is a table too: a JSON Schema, so its keys are the schema's."""

_NAME = re.compile(r"^[a-z][a-z0-9_]{0,62}\Z")
# Semantic versions that PEP 440 reads too, so that a job's specifier means the same to both.
_VERSION = re.compile(r"^(0|[1-9]\d{0,8})(\.(0|[1-9]\d{0,8})){2}(-(alpha|beta|rc)\.(0|[1-9]\d{0,3}))?\Z")
_MEDIA = re.compile(r"^(\*|[a-z0-9][a-z0-9.+-]*)/(\*|[a-z0-9][a-z0-9.+-]*)\Z")
_SUFFIX = re.compile(r"^\.[a-z0-9]{1,16}\Z")
_SIZES = ("memory", "output", "tmp", "shm", "log", "result")
_COUNTS = ("pids", "output_files", "nofile")


@dataclass(frozen=True)
class Manifest:
    """One plugin version. ``limits`` hold bytes, milliseconds and CPUs and are already under the platform's ceilings.

    ``inputs_max`` None: no bound of the plugin's own. ``retry``: the fields of a RetryPolicy that it names.
    ``names_time``: whether the manifest set a time limit itself. ``image`` and
    ``command``: of a plugin that brings an image of its own, else None.
    """

    name: str
    version: str
    api: int
    summary: str
    entry: str
    params: Mapping[str, Any]
    inputs_min: int
    inputs_max: int | None
    accept: tuple[str, ...]
    limits: Limits
    isolation: str = "container"
    runtime: str = RUNC
    preload: tuple[str, ...] = ()
    network_allow: tuple[str, ...] = ()
    requires_python: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    retry: Mapping[str, Any] = field(default_factory=dict)
    names_time: bool = False
    image: str | None = None
    command: tuple[str, ...] | None = None


def parse(text: str) -> Manifest:
    """Read a manifest.

    Raises:
        ManifestError: it is not TOML, or a key is unknown, missing or wrong. The message names the key and what to do.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_MANIFEST:
        raise ManifestError("", f"the manifest is larger than {MAX_MANIFEST} bytes")
    try:
        top = Section(tomllib.loads(text), known=(*KEYS, "params"))
    except tomllib.TOMLDecodeError as error:
        raise ManifestError("", f"not well-formed TOML: {error}") from None
    except RecursionError:
        raise ManifestError("", "nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits is well-formed, and more than Python reads
        raise ManifestError("", str(error)[:200]) from None
    plugin = top.section("plugin", known=KEYS["plugin"])
    limits = top.section("limits", known=KEYS["limits"])
    requires = top.section("requires", known=KEYS["requires"])
    sandbox = top.section("sandbox", known=KEYS["sandbox"])
    network = top.section("network", known=KEYS["network"])
    params, runtime = _params(top), _runtime(sandbox)
    minimum, maximum, accept = _inputs(top)
    found = {
        **_identity(plugin),
        "params": params,
        "inputs_min": minimum,
        "inputs_max": maximum,
        "accept": accept,
        "limits": _limits(limits),
        "isolation": _isolation(sandbox),
        "names_time": "time" in limits,
        "network_allow": _network(network, params),
        "runtime": runtime,
        "requires_python": _pins(requires),
        "secrets": _secrets(requires),
        **_own_image(top, plugin, requires, runtime),
        "retry": parse_retry(top.section("retry", known=KEYS["retry"])),
    }
    return Manifest(**found, preload=preload.read(sandbox, found))


def _identity(plugin: Section) -> dict[str, Any]:
    name = plugin.required("name", str, '"thumbnail"')
    if not _NAME.match(name):
        raise ManifestError("plugin.name", "must be 1 to 63 of a-z, 0-9 and _, beginning with a letter")
    version = plugin.required("version", str, '"1.0.0"')
    if not _VERSION.match(version) or len(version) > 64:
        raise ManifestError("plugin.version", "must be MAJOR.MINOR.PATCH, or that with -alpha.N, -beta.N or -rc.N")
    api = plugin.required("api", int, str(API))
    if api != API:
        raise ManifestError("plugin.api", f"is {api}, and this platform speaks {API}")
    summary = plugin.required("summary", str, '"Scale pictures down."').strip()
    if not 0 < len(summary) <= 200 or not summary.isprintable():
        raise ManifestError("plugin.summary", "must be one line of 1 to 200 characters")
    entry = plugin.value("entry", str, "plugin")
    if not entry.isidentifier() or keyword.iskeyword(entry) or entry == "cloche_guest":
        raise ManifestError("plugin.entry", "must be the name of a module in the bundle, such as 'plugin'")
    return {"name": name, "version": version, "api": api, "summary": summary, "entry": entry}


def _params(top: Section) -> Mapping[str, Any]:
    schema = top.value("params", dict, None)
    if schema is None:
        return NO_PARAMS
    try:
        check_schema(schema)
    except SchemaError as error:
        raise ManifestError(f"params{error.where}", error.detail) from None
    return dict(schema)


def _inputs(top: Section) -> tuple[int, int | None, tuple[str, ...]]:
    """``(min, max, accept)``. Without the table a plugin takes no files at all."""
    if "inputs" not in top:
        return 0, 0, ()
    inputs = top.section("inputs", known=KEYS["inputs"])
    minimum = inputs.count("min", 0, low=0, high=10_000) or 0
    maximum = inputs.count("max", None, low=0, high=10_000)
    if maximum is not None and maximum < minimum:
        raise ManifestError("inputs.max", f"is {maximum}, below inputs.min, which is {minimum}")
    accept = tuple(pattern.lower() for pattern in inputs.texts("accept"))
    for position, pattern in enumerate(accept):
        if not (_MEDIA.match(pattern) or _SUFFIX.match(pattern)):
            raise ManifestError(
                f"inputs.accept[{position}]", "must be a media type such as 'image/*' or a suffix such as '.csv'"
            )
    return minimum, maximum, accept


def _isolation(sandbox: Section) -> str:
    asked = sandbox.value("isolation", str, ISOLATIONS[0])
    if asked not in ISOLATIONS:
        raise ManifestError(
            "sandbox.isolation", f"is '{asked[:40]}'; write {' or '.join(repr(one) for one in ISOLATIONS)}"
        )
    return asked


def _limits(section: Section) -> Limits:
    asked: dict[str, Any] = {}
    for name in KEYS["limits"]:
        if name not in section:
            continue
        target = "time_ms" if name == "time" else name
        asked[target] = _limit(section, name)
    limits = capped(Limits(**asked))
    for sentence in violations(limits):  # only floors can be left: what was above a ceiling is at it now
        target, _, rest = sentence.partition(" ")
        raise ManifestError(section.key("time" if target == "time_ms" else target), rest)
    return limits


def _limit(section: Section, name: str) -> float | int:
    """One asked limit, in bytes, milliseconds, CPUs or as a count."""
    if name in _COUNTS:
        return int(section.value(name, int))
    if name == "cpu":
        return _cpus(section)
    if isinstance(section.value(name, object), float) and name != "time":
        raise ManifestError(section.key(name), "must be text such as '64MB' or a whole number of bytes")
    try:
        found = section.value(name, object)
        if name in _SIZES:
            return parse_size(found)
        return parse_duration(found)
    except (ValueError, TypeError) as error:
        raise ManifestError(section.key(name), str(error)) from None


def _cpus(section: Section) -> float:
    found = section.value("cpu", object)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not found > 0:
        raise ManifestError(section.key("cpu"), f"must be a number of CPUs between {FLOORS.cpu} and {CEILINGS.cpu}")
    return float(min(found, CEILINGS.cpu))


def _pins(requires: Section) -> tuple[str, ...]:
    """``[requires] python``: exact versions only, since the lock beside it names exact files."""
    pins = requires.texts("python")
    seen = set()
    for position, text in enumerate(pins):
        key = f"requires.python[{position}]"
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise ManifestError(key, f"'{text[:60]}' is not a requirement: {str(error).splitlines()[0]}") from None
        exact = [spec for spec in requirement.specifier if spec.operator == "==" and not spec.version.endswith("*")]
        if len(requirement.specifier) != 1 or not exact or requirement.url or requirement.marker or requirement.extras:
            raise ManifestError(key, "must pin one version and nothing else, such as 'pillow==13.0.0'")
        name = canonicalize_name(requirement.name)
        if name in seen:
            raise ManifestError(key, f"{name} is named twice")
        seen.add(name)
    return pins


def _own_image(top: Section, plugin: Section, requires: Section, runtime: str) -> dict[str, Any]:
    """``[image]``: then there is no Python of the plugin's, and what only Python plugins have is refused."""
    if "image" not in top:
        return {}
    section = top.section("image", known=KEYS["image"])
    image = section.required("id", str, '"sha256:<64 hex digits>"')
    if not IMAGE_ID.fullmatch(image):
        raise ManifestError(
            "image.id", "must be the image's config digest: sha256: and 64 hex digits; a name or tag is not enough"
        )
    command = tuple(section.required("command", list, '["/bin/sh", "/cloche/plugin/run.sh"]'))
    if problem := command_problem(command):
        raise ManifestError("image.command", problem)
    for other, name in ((plugin, "entry"), (requires, "python")):
        if name in other:
            raise ManifestError(other.key(name), "is for Python plugins; leave it out beside [image]")
    if runtime == RUNSC:
        raise ManifestError("sandbox.runtime", f"{OWN_IMAGE_REFUSED}; write 'runc', or leave [image] out")
    return {"image": image, "command": command}


def _network(network: Section, params: Mapping[str, Any]) -> tuple[str, ...]:
    """``[network] allow``: ``host:port`` in its one notation, or ``param:NAME`` of a text parameter."""
    entries = network.texts("allow")
    if len(entries) > MAX_DECLARED:
        raise ManifestError("network.allow", f"has more than {MAX_DECLARED} entries")
    found: dict[str, None] = {}
    for position, text in enumerate(entries):
        key = f"network.allow[{position}]"
        try:
            name = parameter(text)
            found[text if name is not None else str(parse_endpoint(text))] = None
        except BadRule as error:
            raise ManifestError(key, str(error)) from None
        schema = (params.get("properties") or {}).get(name) if name is not None else None
        if name is not None and not (isinstance(schema, Mapping) and schema.get("type") == "string"):
            raise ManifestError(key, f"[params] needs a property '{name}' of type 'string'")
    return tuple(found)


def _runtime(sandbox: Section) -> str:
    asked = sandbox.value("runtime", str, RUNC)
    if asked not in RUNTIMES:
        raise ManifestError("sandbox.runtime", f"'{asked[:40]}' is none: write 'runc', or 'runsc' for gVisor")
    return asked


def _secrets(requires: Section) -> tuple[str, ...]:
    """``[requires] secrets``: names, each once. Whether a version gets them is for its tenant's administrators to say."""
    names = requires.texts("secrets")
    if len(names) > MAX_NAMED:
        raise ManifestError("requires.secrets", f"names more than {MAX_NAMED} secrets")
    for position, name in enumerate(names):
        if not NAME.fullmatch(name):
            raise ManifestError(
                f"requires.secrets[{position}]", "must be 1 to 64 of A-Z, 0-9 and _, beginning with a letter"
            )
        if name in names[:position]:
            raise ManifestError(f"requires.secrets[{position}]", f"{name} is named twice")
    return names
