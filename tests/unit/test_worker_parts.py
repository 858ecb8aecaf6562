"""What a worker says of itself and of its host."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cloche import config
from cloche.errors import EnvironmentProblem, SettingsError
from cloche.setting_groups import MAX_LABELS, parse_labels
from cloche.worker import resources
from cloche.worker.resources import ResourceWatch
from cloche.worker.workfolder import WorkFolder
from tests.support.stores import until


def test_labels_are_names_with_values():
    assert parse_labels("zone=eu-1, gpu= team/a=b.c") == {"zone": "eu-1", "gpu": "", "team/a": "b.c"}
    assert parse_labels(" ") == {}
    longest = " ".join(f"{'n' * 60}{i:03}={'v' * 63}" for i in range(MAX_LABELS))
    assert len(parse_labels(longest)) == MAX_LABELS


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("gpu", "is no label"),
        ("=x", "is no label"),
        ("a=b=c", "is no label"),
        ("-a=b", "is no label"),
        ("a=<script>", "is no label"),
        ("a=b\x00", "is no label"),
        (f"{'a' * 64}=b", "is no label"),
        (f"a={'b' * 64}", "is no label"),
        ("ä=b", "is no label"),
        ("a=1 a=2", "twice"),
        (" ".join(f"l{i}=x" for i in range(MAX_LABELS + 1)), "at most"),
    ],
)
def test_what_is_no_label_is_refused_in_words(text, word):
    with pytest.raises(ValueError, match=word):
        parse_labels(text)


def test_labels_are_a_setting_that_a_file_may_write_as_a_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text("[worker]\nlabels = ['zone=eu', 'gpu=a100']\n")
    assert config.load(config=str(tmp_path / "c.toml")).worker.label_map == {"zone": "eu", "gpu": "a100"}
    monkeypatch.setenv("CLOCHE_WORKER_LABELS", "zone")
    with pytest.raises(SettingsError, match=r"worker\.labels: 'zone' is no label"):
        config.load()


def test_resources_are_the_kernels_words(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:    1024 kB\nHugePages_Total:       0\n")
    found = resources.read(tmp_path, meminfo)
    assert tuple(found) == resources.NAMES
    assert (found["memory_total"], found["memory_free"]) == (2048 << 10, 1024 << 10)
    assert 0 < found["disk_free"] <= found["disk_total"]
    assert found["cpu_count"] >= 1
    assert found["load"] >= 0


@pytest.mark.parametrize("text", [None, "", "MemTotal: many kB\nMemAvailable 1 kB\n:\n", "Mem\xe4: 1 kB\n"])
def test_what_cannot_be_read_is_none_and_stops_nothing(tmp_path, text):
    meminfo = tmp_path / "meminfo"
    if text is not None:
        meminfo.write_text(text, "latin-1")
    found = resources.read(tmp_path / "gone", meminfo)
    assert {found[name] for name in ("memory_total", "memory_free", "disk_total", "disk_free")} == {None}


def test_a_disk_that_does_not_answer_holds_nobody_up(tmp_path):
    answers = threading.Event()

    def look():
        answers.wait(20)
        return resources.read(tmp_path)

    watch = ResourceWatch(look, 60)
    watch.start()
    assert watch.latest() is None
    answers.set()
    assert until(watch.latest, 10, "it has looked")["disk_total"] > 0
    watch.close()


def test_an_id_has_one_folder(tmp_path: Path):
    first = WorkFolder(tmp_path / "work", "w1")
    with pytest.raises(EnvironmentProblem, match="an id is used once"):
        WorkFolder(tmp_path / "work", "w1")
    assert first.path.is_dir()
    first.close()
