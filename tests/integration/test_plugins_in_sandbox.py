"""The shipped plugins and the hostile examples, in real sandboxes, on the example data."""

from __future__ import annotations

import csv
import shutil
import statistics
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cloche import config
from cloche.clock import now_ms, uuid7
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.client import SandboxdBackend
from cloche.registry.catalog import Bundle, Catalog
from cloche.registry.payload import apply_defaults, validate_payload
from cloche.registry.store import BundleStore
from cloche.sandboxd.main import Sandboxd
from tests.support import stores

pytestmark = pytest.mark.docker

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "data"
AIRPORTS, WEATHER, PHOTOGRAPH = (DATA / name for name in ("airports.csv", "seattle-weather.csv", "grace_hopper.jpg"))


@dataclass
class Outcome:
    """What came back of one job."""

    result: Any = None
    error: dict[str, Any] | None = None
    log: str = ""
    progress: list[dict[str, Any]] = field(default_factory=list)
    out: dict[str, bytes] = field(default_factory=dict)


class Runner:
    """Runs one bundle with one payload, as a worker does: defaults, schema, freeze, wheels, sandbox."""

    def __init__(self, home: Path) -> None:
        self.catalog = Catalog([ROOT / "plugins", ROOT / "examples" / "hostile"])
        self.store = BundleStore(home, self.catalog)
        self.backend = SandboxdBackend(home / "run" / "sandboxd.sock")
        self._python = stores.until(self._image_python, 120, "sandboxd has an image")

    def _image_python(self) -> str | None:
        facts = self.backend.facts()
        return None if facts["problem"] else facts["image"]["python"]

    def run(self, name: str, spec: str | None = None, *inputs: Path, **payload: Any) -> Outcome:
        bundle = self.catalog.resolve(name, spec)
        filled = apply_defaults(bundle.manifest.params, payload)
        assert validate_payload(bundle.manifest.params, filled) == []
        self.store.freeze(bundle)
        wheels = self.store.wheels(bundle, self._python)
        limits = bundle.manifest.limits
        asked = SandboxSpec(
            uuid7(), 1, bundle.digest, wheels.name if wheels else None, limits, now_ms() + limits.time_ms + 60_000
        )
        sandbox = self.backend.create(asked)
        watch = threading.Timer(limits.time_ms / 1000, sandbox.kill)
        watch.start()
        try:
            return self._work(sandbox, bundle, filled, inputs)
        finally:
            watch.cancel()
            sandbox.destroy()

    def _work(self, sandbox: Any, bundle: Bundle, payload: dict[str, Any], inputs: tuple[Path, ...]) -> Outcome:
        for path in inputs:
            shutil.copyfile(path, sandbox.in_folder / path.name)
            (sandbox.in_folder / path.name).chmod(0o644)
        names = [path.name for path in inputs]
        frame = {"type": "job", "id": uuid7(), "attempt": 1, "payload": payload, "inputs": names}
        sandbox.channel.send({**frame, "limits": bundle.manifest.limits.to_dict()})
        found = Outcome()
        while found.result is None and found.error is None:
            said = sandbox.channel.receive(5.0)
            kind = said["type"] if said else None
            if kind == "result":
                found.result = said["value"]
            elif kind == "error":
                found.error = dict(said)
            elif kind == "log":
                found.log += said["text"]
            elif kind == "progress":
                found.progress.append(dict(said))
        remains = sandbox.finish()
        assert remains.refused == ()
        found.out = {item.path: (remains.folder / item.path).read_bytes() for item in remains.files}
        return found


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with stores.short_folder() as home:
        (home / "run").mkdir()
        daemon = Sandboxd(config.load(home=home))
        daemon.start()
        try:
            found = Runner(home)
            yield found
            found.backend.close()
        finally:
            daemon.close()


def good(outcome: Outcome) -> Any:
    assert outcome.error is None, outcome.error
    return outcome.result


def by_name(columns: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {column["name"]: column for column in columns}


def test_csv_profile_agrees_with_a_plain_count(runner: Runner):
    outcome = runner.run("csv_profile", None, AIRPORTS, WEATHER)
    airports, weather = good(outcome)["files"]
    with AIRPORTS.open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert airports["rows"] == len(rows) == 3376
    columns = by_name(airports["columns"])
    assert {name: column["type"] for name, column in columns.items()} == {
        "iata": "text",
        "name": "text",
        "city": "text",
        "state": "text",
        "country": "text",
        "latitude": "float",
        "longitude": "float",
    }
    latitudes = [float(row["latitude"]) for row in rows]
    latitude = columns["latitude"]
    assert (latitude["min"], latitude["max"]) == (min(latitudes), max(latitudes))
    assert latitude["mean"] == pytest.approx(statistics.fmean(latitudes), rel=1e-9)
    assert columns["iata"]["distinct"] == len({row["iata"] for row in rows})
    assert columns["state"]["missing"] == sum(row["state"].strip() == "NA" for row in rows) > 0
    days = by_name(weather["columns"])
    assert (days["date"]["type"], days["date"]["min"], days["date"]["max"]) == ("date", "2012-01-01", "2015-12-31")
    assert (days["weather"]["type"], days["weather"]["distinct"]) == ("text", 5)
    assert days["temp_max"]["type"] == "float"
    report = outcome.out["report.md"].decode()
    assert "## airports.csv" in report
    assert "| latitude | float | 0 |" in report
    assert outcome.progress[-1]["current"] == 2


def test_csv_profile_of_difficult_tables(runner: Runner, tmp_path: Path):
    tables = {
        "semicolons.csv": 'a;b;c\n1;"x;y";true\n007;z;no\n3;;yes\n',
        "tabs.tsv": "n\tm\n1\t1.5\n2\tNaN\n1e999\t.5\n",
        "latin.csv": "Stadt,Größe\nKöln,1\n".encode("latin-1"),
        "utf16.csv": "a,b\n1,2\n".encode("utf-16"),
        "marked.csv": "\ufeffid,when\n1,2024-02-29\n2,2023-02-29\n",
        "ragged.csv": "a,b\n1\n1,2,3\n\n1,2\n",
        "empty.csv": "",
        "header.csv": "only,names\n",
        "wide.csv": "a|b,c\n`<b>`|,2\n",
        "big.csv": "n\n" + "".join(f"{n}\n" for n in range(30_000)),
    }
    paths = []
    for name, content in tables.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content if isinstance(content, bytes) else content.encode())
    outcome = runner.run("csv_profile", None, *paths)
    found = {file["file"]: file for file in good(outcome)["files"]}
    semicolons = by_name(found["semicolons.csv"]["columns"])
    assert found["semicolons.csv"]["delimiter"] == ";"
    assert [semicolons[name]["type"] for name in "abc"] == ["text", "text", "boolean"]  # 007 is a code
    assert semicolons["b"]["missing"] == 1
    tabs = by_name(found["tabs.tsv"]["columns"])
    assert (tabs["n"]["type"], tabs["m"]["type"], tabs["m"]["missing"]) == ("text", "float", 1)
    assert found["latin.csv"]["encoding"] == "cp1252"
    assert found["latin.csv"]["columns"][1]["name"] == "Größe"
    assert found["utf16.csv"]["columns"][0] == {
        "name": "a",
        "type": "int",
        "missing": 0,
        "distinct": 1,
        "distinct_capped": False,
        "min": 1,
        "max": 1,
        "mean": 1.0,
    }
    assert [column["type"] for column in found["marked.csv"]["columns"]] == ["int", "text"]  # no 29 February in 2023
    assert (found["ragged.csv"]["rows"], found["ragged.csv"]["ragged_rows"]) == (3, 2)
    assert (found["empty.csv"]["rows"], found["empty.csv"]["columns"]) == (0, [])
    assert [column["type"] for column in found["header.csv"]["columns"]] == ["empty", "empty"]
    big = found["big.csv"]["columns"][0]
    assert (big["distinct"], big["distinct_capped"], big["mean"]) == (10_000, True, 14_999.5)
    assert "<b>" not in outcome.out["report.md"].decode()


def test_csv_profile_without_header_and_with_a_delimiter(runner: Runner, tmp_path: Path):
    path = tmp_path / "plain.csv"
    path.write_text("1:2\n3:4\n")
    (file,) = good(runner.run("csv_profile", None, path, delimiter=":", has_header=False, max_distinct=1))["files"]
    assert file["rows"] == 2
    assert [(c["name"], c["mean"], c["distinct"], c["distinct_capped"]) for c in file["columns"]] == [
        ("column_1", 2.0, 1, True),
        ("column_2", 3.0, 1, True),
    ]


def test_csv_profile_says_where_a_table_is_broken(runner: Runner, tmp_path: Path):
    path = tmp_path / "broken.csv"
    path.write_text("a,b\n1,2\n3," + "x" * 1_100_000 + "\n")
    outcome = runner.run("csv_profile", None, path)
    assert outcome.error is not None
    assert outcome.error["reason"] == "plugin_failed"
    assert "broken.csv, line 3: field larger than field limit" in outcome.error["message"]


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height out of a JPEG's frame header."""
    at = 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    height, width = struct.unpack(">HH", data[at + 5 : at + 9])
    return width, height


def turned(data: bytes, orientation: int) -> bytes:
    """The JPEG with an EXIF orientation: 6 means that it has to be turned by 90 degrees to stand upright."""
    tiff = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0) + b"\0\0\0\0"
    segment = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def png(width: int, height: int, rows: bytes = b"", kind: int = 0, depth: int = 8) -> bytes:
    """A PNG with the given header; ``rows`` with their filter bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_thumbnail_of_the_photograph(runner: Runner):
    outcome = runner.run("thumbnail", None, PHOTOGRAPH, width=128)
    (file,) = good(outcome)["files"]
    width, height = jpeg_size(PHOTOGRAPH.read_bytes())
    assert (file["original_width"], file["original_height"]) == (width, height)
    assert set(outcome.out) == {"grace_hopper-thumb.jpg"}
    small = jpeg_size(outcome.out["grace_hopper-thumb.jpg"])
    assert small == (file["width"], file["height"]) == (128, round(128 * height / width))


def test_thumbnail_turns_keeps_proportions_and_never_enlarges(runner: Runner, tmp_path: Path):
    photograph = PHOTOGRAPH.read_bytes()
    width, height = jpeg_size(photograph)
    sideways, tiny, clear = tmp_path / "sideways.jpg", tmp_path / "tiny.png", tmp_path / "sideways.png"
    sideways.write_bytes(turned(photograph, 6))
    tiny.write_bytes(png(2, 3, b"\0\1\2" * 3))
    clear.write_bytes(png(400, 100, (b"\0" + b"\xff\0\0\0" * 400) * 100, kind=6))
    outcome = runner.run("thumbnail", None, sideways, tiny, clear, width=200, height=100, format="jpeg")
    files = {file["from"]: file for file in good(outcome)["files"]}
    assert (files["sideways.jpg"]["width"], files["sideways.jpg"]["height"]) == (round(100 * height / width), 100)
    assert (files["tiny.png"]["width"], files["tiny.png"]["height"]) == (2, 3)
    assert (files["sideways.png"]["width"], files["sideways.png"]["height"]) == (200, 50)
    assert set(outcome.out) == {"sideways-thumb.jpg", "tiny-thumb.jpg", "sideways-thumb-2.jpg"}
    assert b"Exif" not in outcome.out["sideways-thumb.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("note.png", b"not a picture", "is not a picture"),
        ("cut.jpg", PHOTOGRAPH.read_bytes()[:20_000], "cannot be read"),
        ("bomb.png", png(30_000, 30_000), "pixels"),
        ("large.png", png(9_000, 9_000), "at most 40000000 are decoded"),
    ],
)
def test_thumbnail_refuses_what_is_no_picture(runner: Runner, tmp_path: Path, name: str, content: bytes, hint: str):
    path = tmp_path / name
    path.write_bytes(content)
    outcome = runner.run("thumbnail", None, path)
    assert outcome.error is not None
    assert outcome.error["reason"] == "plugin_failed"
    assert hint in outcome.error["message"]
    assert name in outcome.error["message"]


def test_two_versions_of_text_stats_side_by_side(runner: Runner):
    guide = ROOT / "docs" / "plugins.md"
    text = guide.read_text("utf-8")
    first = good(runner.run("text_stats", "==1.*", guide))
    second = good(runner.run("text_stats", "==2.*", guide, top=3))
    assert first == {"lines": text.count("\n"), "words": len(text.split()), "chars": len(text)}
    assert second.keys() == {"files", "totals", "most_common", "reading_time_seconds"}
    assert second["totals"]["lines"] == first["lines"]
    assert len(second["most_common"]) == 3


def test_text_stats_counts_across_pieces_and_scripts(runner: Runner, tmp_path: Path):
    long, many = tmp_path / "long.txt", tmp_path / "many.txt"
    long.write_text("ab " * 700_000 + "x" * 1_100_000)  # a word across the boundary of two pieces
    assert good(runner.run("text_stats", "==1.*", long)) == {"lines": 0, "words": 700_001, "chars": 3_200_000}
    many.write_text("Straße STRASSE don’t. 你好。 Cafe\u0301 café! 3.14\n")
    found = good(runner.run("text_stats", "==2.*", many))
    common = {item["word"]: item["count"] for item in found["most_common"]}
    assert common["strasse"] == common["café"] == 2
    assert common["don’t"] == common["3.14"] == 1
    assert found["totals"]["sentences"] == 3


@pytest.mark.parametrize(("name", "hint"), [("open_socket", "no way out"), ("read_host", "nothing of the host")])
def test_the_hostile_examples_are_refused_everything(runner: Runner, name: str, hint: str):
    outcome = runner.run(name)
    assert outcome.result is None, f"the sandbox leaks: {outcome.result}"
    assert outcome.error is not None
    assert outcome.error["reason"] == "plugin_failed"
    assert hint in outcome.error["message"]
    assert "refused: " in outcome.log
