from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cloche.domain.limits import CEILINGS, Limits
from cloche.registry.manifest import KEYS, MAX_MANIFEST, ManifestError, parse
from cloche.registry.payload import SchemaError, apply_defaults, check_schema, validate_payload
from tests.support.plugins import manifest_text

SCHEMA = {
    "type": "object",
    "properties": {
        "width": {"type": "integer", "minimum": 1, "maximum": 8192, "default": 256},
        "a/b~c": {"type": "string", "pattern": "^(x+)+$"},
        "tags": {"type": "array", "items": {"type": "string"}, "default": []},
    },
    "required": ["a/b~c"],
    "additionalProperties": False,
}


CELLS = "[requires]\npython = ['numpy==2.0.0']\n[sandbox]\nisolation = 'namespace'\n"


def refused(more: str, key: str, hint: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(manifest_text(more=more))
    assert caught.value.key == key
    assert hint in caught.value.detail


def test_a_whole_manifest():
    manifest = parse(
        manifest_text(
            more="""
entry = "main"
[params]
type = "object"
properties = { width = { type = "integer", minimum = 1, default = 256 } }
[inputs]
min = 1
max = 3
accept = ["image/*", ".CSV"]
[limits]
cpu = 0.5
memory = "128MB"
pids = 20
time = "90s"
output = "512GB"
log = 4096
[sandbox]
isolation = "container"
runtime = "runc"
preload = []
[network]
allow = []
[requires]
python = ["pillow==13.0.0"]
secrets = []
[retry]
max_retries = 2
"""
        )
    )
    assert (manifest.name, manifest.version, manifest.entry) == ("sample", "1.0.0", "main")
    assert (manifest.inputs_min, manifest.inputs_max, manifest.accept) == (1, 3, ("image/*", ".csv"))
    assert manifest.limits == Limits(
        cpu=0.5, memory=128 << 20, pids=20, time_ms=90_000, output=CEILINGS.output, log=4096
    )
    assert manifest.names_time
    assert manifest.requires_python == ("pillow==13.0.0",)
    assert manifest.retry == {"max_retries": 2}


def test_a_small_manifest_takes_no_files_and_no_parameters():
    manifest = parse(manifest_text())
    assert (manifest.inputs_min, manifest.inputs_max) == (0, 0)
    assert manifest.limits == Limits()
    assert not manifest.names_time
    assert manifest.retry == {}
    assert [p.pointer for p in validate_payload(manifest.params, {"x": 1})] == ["/payload/x"]


def test_a_whole_retry_policy():
    policy = """
[retry]
max_retries = 7
backoff = "linear"
initial_delay = "500ms"
max_delay = 30
retry_on = ["timed_out", "plugin_failed"]
"""
    assert parse(manifest_text(more=policy)).retry == {
        "max_retries": 7,
        "backoff": "linear",
        "initial_delay_ms": 500,
        "max_delay_ms": 30_000,
        "retry_on": ["timed_out", "plugin_failed"],
    }


@pytest.mark.parametrize(
    ("more", "key", "hint"),
    [
        ("[limit]\ncpu = 1", "limit", "did you mean 'limits'?"),
        ("sumary = 'x'", "plugin.sumary", "did you mean 'summary'?"),
        ("[limits]\nmem = '1MB'", "limits.mem", "did you mean 'memory'?"),
        ("[inputs]\nminimum = 1", "inputs.minimum", "did you mean 'min'?"),
        ("[sandbox]\nnetwork = true", "sandbox.network", "known here: isolation, preload, runtime"),
        ("[network]\nallowed = []", "network.allowed", "did you mean 'allow'?"),
        ("[requires]\npip = []", "requires.pip", "known here: python, secrets"),
        ("[retry]\nretries = 1", "retry.retries", "did you mean"),
    ],
)
def test_an_unknown_key_is_refused_at_every_level(more: str, key: str, hint: str):
    refused(more, key, hint)


@pytest.mark.parametrize(
    ("more", "key", "hint"),
    [
        ("entry = 'os.path'", "plugin.entry", "module in the bundle"),
        ("entry = 'class'", "plugin.entry", "module in the bundle"),
        ("[inputs]\nmin = 2\nmax = 1", "inputs.max", "below inputs.min"),
        ("[inputs]\nmin = true", "inputs.min", "whole number"),
        ("[inputs]\nmin = -1", "inputs.min", "between 0"),
        ("[inputs]\naccept = ['png']", "inputs.accept[0]", "media type"),
        ("[inputs]\naccept = 'image/*'", "inputs.accept", "must be a list"),
        ("[limits]\nmemory = '1GBit'", "limits.memory", "is not a size"),
        ("[limits]\nmemory = 1.5", "limits.memory", "whole number of bytes"),
        ("[limits]\nmemory = '1MB'", "limits.memory", "must lie between"),
        ("[limits]\ntime = 'soon'", "limits.time", "is not a duration"),
        ("[limits]\ntime = '1ms'", "limits.time", "must lie between"),
        ("[limits]\ncpu = 0", "limits.cpu", "number of CPUs"),
        ("[limits]\ncpu = nan", "limits.cpu", "number of CPUs"),
        ("[limits]\npids = 1.5", "limits.pids", "whole number"),
        ("[limits]\npids = true", "limits.pids", "whole number"),
        ("[sandbox]\nisolation = 'none'", "sandbox.isolation", "write 'container' or 'namespace'"),
        ("[sandbox]\nruntime = 'crun'", "sandbox.runtime", "write 'runc', or 'runsc' for gVisor"),
        ("[sandbox]\npreload = ['numpy']", "sandbox.preload", "leave it empty"),
        (
            "[sandbox]\nruntime = 'runsc'\nisolation = 'namespace'\npreload = ['numpy']",
            "sandbox.preload",
            "leave it empty",
        ),
        ("[sandbox]\nisolation = 'namespace'\npreload = ['numpy']", "sandbox.preload", "and there are none"),
        (f"{CELLS}preload = ['numpy', 'json']", "sandbox.preload", "'json' is of the standard library"),
        (f"{CELLS}preload = ['plugin']", "sandbox.preload", "'plugin' is the plugin itself"),
        (f"{CELLS}preload = ['numpy.linalg']", "sandbox.preload", "as they are imported"),
        (f"{CELLS}preload = ['numpy', 'numpy']", "sandbox.preload", "names numpy twice"),
        (f"{CELLS}preload = ['pluggy']", "sandbox.preload", "pluggy, which is ours"),
        (f"{CELLS}preload = {[f'm{n}' for n in range(9)]}", "sandbox.preload", "at most 8 modules"),
        (f"{CELLS}preload = [1]", "sandbox.preload[0]", "must be text"),
        (f"{CELLS}preload = 'numpy'", "sandbox.preload", "must be a list"),
        ("[network]\nallow = ['example.com']", "network.allow[0]", "needs a port"),
        ("[network]\nallow = ['a.example:1', '*:443']", "network.allow[1]", "is no host name"),
        ("[network]\nallow = ['2130706433:80']", "network.allow[0]", "odd notation"),
        ("[network]\nallow = ['param:url']", "network.allow[0]", "property 'url' of type 'string'"),
        ("[network]\nallow = ['param:']", "network.allow[0]", "name of a parameter"),
        (f"[network]\nallow = {[f'h{n}.example:1' for n in range(33)]}", "network.allow", "more than 32"),
        ("[requires]\nsecrets = ['key']", "requires.secrets[0]", "A-Z"),
        ("[requires]\nsecrets = ['KEY\\n']", "requires.secrets[0]", "A-Z"),
        ("[requires]\nsecrets = ['../KEY']", "requires.secrets[0]", "A-Z"),
        ("[requires]\nsecrets = ['KEY', 'KEY']", "requires.secrets[1]", "twice"),
        ("[requires]\nsecrets = 'KEY'", "requires.secrets", "list"),
        (f"[requires]\nsecrets = {[f'K{n}' for n in range(17)]}", "requires.secrets", "more than 16"),
        ("[requires]\npython = ['pillow']", "requires.python[0]", "pin one version"),
        ("[requires]\npython = ['pillow>=1']", "requires.python[0]", "pin one version"),
        ("[requires]\npython = ['pillow==13.*']", "requires.python[0]", "pin one version"),
        ("[requires]\npython = ['pillow @ file:///x.whl']", "requires.python[0]", "pin one version"),
        ("[requires]\npython = ['--index-url=x']", "requires.python[0]", "is not a requirement"),
        ("[requires]\npython = ['a==1', 'A==1']", "requires.python[1]", "twice"),
        ("[requires]\npython = [1]", "requires.python[0]", "must be text"),
        ("[retry]\nmax_retries = 1000", "retry.max_retries", "between 0 and 100"),
        ("[retry]\nbackoff = 'often'", "retry.backoff", "fixed, linear, exponential"),
        ("[retry]\nbackoff = 1", "retry.backoff", "must be text"),
        ("[retry]\ninitial_delay = 0", "retry.initial_delay", "at least 1ms"),
        ("[retry]\ninitial_delay = []", "retry.initial_delay", "expected string"),
        ("[retry]\nmax_delay = '8d'", "retry.max_delay", "longer than 7 days"),
        ("[retry]\ninitial_delay = '2s'\nmax_delay = '1s'", "retry.initial_delay", "longer than max_delay"),
        ("[retry]\nretry_on = []", "retry.retry_on", "max_retries = 0"),
        ("[retry]\nretry_on = ['lease_lapsed']", "retry.retry_on[0]", "failure of the platform"),
        ("[retry]\nretry_on = ['timed_out', 'tired']", "retry.retry_on[1]", "no reason that a job"),
        ("[params]\ntype = 'array'", "params/type", "must be 'object'"),
        ("[params]\ntype = 'object'\nproperties.a.type = 'whole'", "params/properties/a/type", "is not valid"),
        (
            "[params]\ntype = 'object'\nproperties.a.default = 1979-05-27",
            "params/properties/a/default",
            "write it as text",
        ),
        ("[params]\ntype = 'object'\nproperties.a.maximum = inf", "params/properties/a/maximum", "finite"),
        (
            "[params]\ntype = 'object'\nproperties.a = {type = 'integer', default = 'x'}",
            "params/properties/a/default",
            "integer",
        ),
        ("[params]\ntype = 'object'\nproperties.a.pattern = '('", "params/properties/a/pattern", "regex"),
    ],
)
def test_a_wrong_value_names_its_key_and_what_to_do(more: str, key: str, hint: str):
    refused(more, key, hint)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[plugin", ""),
        ("x = " + "[" * 5_000, ""),
        ("#" * (MAX_MANIFEST + 1), ""),
        ("[plugin]\nname='a'", "plugin.version"),
        (manifest_text(name="Sample"), "plugin.name"),
        (manifest_text(name="../x"), "plugin.name"),
        (manifest_text(version="1.0"), "plugin.version"),
        (manifest_text(version="01.0.0"), "plugin.version"),
        (manifest_text(version="1.0.0+local"), "plugin.version"),
        (manifest_text().replace("api = 1", "api = 2"), "plugin.api"),
        (manifest_text().replace("A sample.", "two\\nlines"), "plugin.summary"),
        ("plugin = 3", "plugin"),
    ],
)
def test_a_malformed_manifest(text: str, key: str):
    with pytest.raises(ManifestError) as caught:
        parse(text)
    assert caught.value.key == key


@pytest.mark.parametrize(
    "reference", ["http://example.com/x", "file:///etc/passwd", "other.json", "https://json.example/s#/a"]
)
def test_a_schema_may_refer_only_to_itself(reference: str):
    refused(
        f"[params]\ntype = 'object'\nproperties.a.'$ref' = '{reference}'",
        "params/properties/a/$ref",
        "nothing is fetched",
    )


def test_references_within_a_schema_work():
    schema = {
        "type": "object",
        "properties": {"size": {"$ref": "#/$defs/size", "default": 3}},
        "$defs": {"size": {"type": "integer", "minimum": 1}},
    }
    check_schema(schema)
    assert validate_payload(schema, {"size": 0})[0].pointer == "/payload/size"


def test_defaults_go_into_a_copy():
    payload = {"a/b~c": "x"}
    filled = apply_defaults(SCHEMA, payload)
    assert filled == {"a/b~c": "x", "width": 256, "tags": []}
    filled["tags"].append("changed")
    assert apply_defaults(SCHEMA, payload)["tags"] == []
    assert payload == {"a/b~c": "x"}
    assert validate_payload(SCHEMA, filled) == []


def test_problems_point_at_what_is_wrong():
    problems = {p.pointer: p.detail for p in validate_payload(SCHEMA, {"width": 9_000, "tags": [1], "other": 1})}
    assert problems == {
        "/payload/width": "9000 is greater than the maximum of 8192",
        "/payload/tags/0": '1 is not of type "string"',
        "/payload/other": "is not a parameter of this plugin",
        "/payload/a~1b~0c": "is required",
    }


@pytest.mark.parametrize("payload", [[], None, "text", 3])
def test_a_payload_is_an_object(payload: object):
    assert [p.pointer for p in validate_payload(SCHEMA, payload)] == ["/payload"]


def test_unusual_payloads_are_problems_not_crashes():
    deep: dict = {}
    for _ in range(10_000):
        deep = {"a": deep}
    assert "nested" in validate_payload(SCHEMA, deep)[0].detail
    assert validate_payload(SCHEMA, {"a/b~c": "x", "width": float("nan")})[0].detail == "must be a finite number"
    huge = validate_payload(SCHEMA, {"a/b~c": "x", "width": 10**400})[0].detail
    assert huge.endswith("is greater than the maximum of 8192")
    assert len(huge) < 400
    assert validate_payload(SCHEMA, {"a/b~c": "\ud800"})


def test_a_pattern_cannot_stall_the_process():
    hostile = "x" * 5_000 + "!"  # (x+)+ takes exponential time in a backtracking matcher: this would not return
    assert validate_payload(SCHEMA, {"a/b~c": hostile})[0].pointer == "/payload/a~1b~0c"


def test_the_number_of_problems_is_bounded():
    assert len(validate_payload(SCHEMA, {f"k{n}": n for n in range(1_000)})) == 20


def test_the_authoring_guide_lists_every_key():
    guide = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text("utf-8")
    guide = guide.partition("\n## plugin.toml")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `([a-z]+\.[a-z_]+)` \|", guide, re.MULTILINE))
    assert documented == {f"{table}.{key}" for table, keys in KEYS.items() for key in keys}


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"wrong": 1}
    for _ in range(depth):
        value = {"a": value}
    return value


def _doubling(count: int) -> dict[str, Any]:
    """Definitions that each name the next one twice."""
    two = {f"n{n}": {"anyOf": [{"$ref": f"#/$defs/n{n + 1}"}] * 2} for n in range(count)}
    return {
        "type": "object",
        "$defs": {**two, f"n{count}": {"type": "string"}},
        "properties": {"x": {"$ref": "#/$defs/n0"}},
    }


@pytest.mark.parametrize("kind", ["anyOf", "oneOf", "allOf"])
def test_a_schema_that_names_itself_twice_is_not_walked_without_end(kind: str) -> None:
    two = {kind: [{"$ref": "#/$defs/n"}, {"$ref": "#/$defs/n"}]}
    one = {"type": "object", "properties": {"a": two}, "additionalProperties": False}
    schema = {"type": "object", "$defs": {"n": one}, "properties": {"x": {"$ref": "#/$defs/n"}}}
    check_schema(schema)
    (deep,) = validate_payload(schema, {"x": _nested(60)})
    assert "too deeply nested" in deep.detail
    assert validate_payload(schema, {"x": {}}) == []
    (untold,) = validate_payload(schema, {"x": _nested(11)})
    assert "does not fit" in untold.detail


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        ("x = " + "9" * 20_000, "digits"),
        ("x = " + "[" * 50_000, "nested too deeply"),
        ("x = ", "not well-formed"),
    ],
)
def test_what_toml_cannot_read_is_a_fault_of_the_bundle_alone(more: str, hint: str) -> None:
    """Any other error would keep every process from starting that looks at the plugins' folder."""
    refused(more, "", hint)


def test_a_long_chain_of_references_is_counted_without_recursion() -> None:
    """A caller's payload, or a bundle that is only looked at, may not end a process by Python's own limit of recursion."""
    links: dict[str, Any] = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(2_000)}
    links["a2000"] = {"type": "object", "properties": {"x": {"$ref": "#/$defs/a0"}}}
    schema = {"type": "object", "$defs": links, "properties": {"x": {"$ref": "#/$defs/a0"}}}
    check_schema(schema)
    assert validate_payload(schema, {"x": {"x": {}}}) == []
    (deep,) = validate_payload(schema, {"x": _nested(60)})
    assert "too deeply nested" in deep.detail


def test_counting_the_work_is_itself_bounded() -> None:
    wide = {"type": "object", "properties": {f"p{n}": {"$ref": "#"} for n in range(6_000)}}
    check_schema(wide)
    assert validate_payload(wide, {"p1": {}}) == []
    (deep,) = validate_payload(wide, {"p1": _nested(60)})
    assert "too deeply nested" in deep.detail


def test_definitions_that_unfold_without_end_are_refused() -> None:
    with pytest.raises(SchemaError, match="unfolds to too much"):
        check_schema(_doubling(40))
    check_schema(_doubling(4))
    assert validate_payload(_doubling(4), {"x": "text"}) == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "$ref": "#"},
        {
            "type": "object",
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}},
            "$ref": "#/$defs/a",
        },
        {"type": "object", "properties": {"x": {"$ref": "#/$defs/none"}}},
        {"type": "object", "properties": {"x": {"$id": "urn:other", "$ref": "#/$defs/none"}}},
    ],
)
def test_references_that_lead_nowhere_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        check_schema(schema)


def test_trees_and_large_lists_are_still_allowed() -> None:
    leaf = {
        "type": "object",
        "properties": {"field": {"type": "string"}},
        "required": ["field"],
        "additionalProperties": False,
    }
    both = {name: {"type": "array", "items": {"$ref": "#/$defs/e"}} for name in ("and", "or")}
    schema = {
        "type": "object",
        "$defs": {
            "e": {
                "anyOf": [
                    leaf,
                    {"type": "object", "properties": both, "minProperties": 1, "additionalProperties": False},
                ]
            }
        },
        "properties": {"where": {"$ref": "#/$defs/e"}, "list": {"type": "array", "items": {"type": "integer"}}},
    }
    check_schema(schema)
    where: dict[str, Any] = {"field": "a"}
    for depth in range(6):
        where = {("and", "or")[depth % 2]: [where, where]}
    assert validate_payload(schema, {"where": where, "list": [1] * 100_000}) == []
    (fault,) = validate_payload(schema, {"list": [1] * 1_000 + ["x"]})
    assert fault.pointer == "/payload/list/1000"


@pytest.mark.parametrize("pattern", ["^(a+)+$", "(a|a)*b", "(.*)*(x|y)*z", "^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_no_pattern_stalls_the_check(pattern: str) -> None:
    """Linear whatever the pattern: with a backtracking matcher each of these would take longer than the machine lasts."""
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": pattern}}}
    check_schema(schema)
    assert len(validate_payload(schema, {"x": "a" * 100_000 + "!"})) == 1


def test_modules_to_preload():
    assert parse(manifest_text(more=f"{CELLS}preload = ['numpy', '_cffi_backend']")).preload == (
        "numpy",
        "_cffi_backend",
    )
    assert parse(manifest_text(more=CELLS)).preload == ()
