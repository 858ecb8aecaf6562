"""The tables of `./run bench sandbox`, made of figures that nobody measured."""

from __future__ import annotations

from pathlib import Path

from bench import page, sandbox_cells, sandbox_peers, sandbox_pool, sandbox_table
from bench.sandbox import Run

_PEER = {"version": "1.0", "p50_ms": 300.0, "p95_ms": 400.0, "jobs_s_c8": 8.0}


def _run(**peers: dict[str, object]) -> Run:
    return Run(
        peers=peers,
        container=[
            {"what": sandbox_pool.WARM, "median_ms": 4.0, "p95_ms": 6.0, "n": 3},
            {"what": sandbox_pool.COLD_WHOLE, "median_ms": 200.0, "p95_ms": 300.0, "n": 3},
            {"what": sandbox_pool.WARM_WHOLE, "median_ms": 10.0, "p95_ms": 20.0, "n": 3},
            {"what": sandbox_pool.ENGINE_RATIO, "ratio": 0.8},
            {"what": f"40 {sandbox_pool.SUSTAINED}", "jobs_per_s": 6.0, "warm": "3 of 40"},
        ],
        namespace=[
            {"what": sandbox_cells.RESULT, "median_ms": 1.5, "p95_ms": 2.0},
            {"what": sandbox_cells.WHOLE, "median_ms": 6.0, "p95_ms": 7.0},
            {"what": f"namespace, 4 clients, 100 {sandbox_cells.SUSTAINED}", "jobs_per_s": 640.0},
        ],
        runsc=[{"what": sandbox_pool.WARM, "median_ms": 4_500.0, "p95_ms": 21.0, "n": 3}],
        inside=[{"what": "files", "runc_ms": 10.0, "runsc_ms": 1_250.4, "ratio": 125.0}],
    )


def test_marks_are_judged_and_both_runtimes_stand_side_by_side() -> None:
    shown = sandbox_table.text(_run()).splitlines()
    assert f"| {sandbox_pool.WARM} | 4.0 ms | 6.0 ms | ≤ 5 ms ✓ | 4,500.0 ms | 21.0 ms |" in shown
    assert f"| {sandbox_pool.ENGINE_RATIO} | 0.8 |  | ≥ 0.9, **missed** |  |  |" in shown
    assert f"| 40 {sandbox_pool.SUSTAINED} | 6.0 /s, 3 of 40 warm |  |  |  |  |" in shown
    assert "| namespace, 4 clients, 100 jobs, backend alone | 640.0 /s |  | ≥ 600 /s ✓ |" in shown
    assert "| files | 10 ms | 1,250 ms | 125.0 |" in sandbox_table.inside(_run())


def test_a_peer_is_compared_with_whole_jobs_of_ours() -> None:
    shown = sandbox_table.text(_run(theirs=_PEER, absent={"not measured": "no such program"})).splitlines()
    assert shown[-2:] == [
        "| theirs (1.0) | 300.0 ms, 400.0 ms | 1.5, 30.0, 50.0 | 8.0 /s | 0.75, 80.0 |",
        "| absent | not measured: no such program | | | |",
    ]


def test_without_gvisor_the_tables_say_why() -> None:
    run = _run()
    run.inside, run.runsc = [], [{"what": "gVisor", "not measured": "the engine has no runtime runsc"}]
    assert "gVisor was not measured: the engine has no runtime runsc." in sandbox_table.text(run)
    assert sandbox_table.inside(run) == "Not measured: the engine has no runtime runsc."


def test_the_tables_go_between_their_marks(tmp_path: Path, monkeypatch) -> None:
    copy = tmp_path / "performance.md"
    copy.write_text(page.PAGE.read_text("utf-8"), "utf-8")
    monkeypatch.setattr(page, "PAGE", copy)
    sandbox_table.write(_run(theirs=_PEER))
    written = copy.read_text("utf-8")
    assert sandbox_table.text(_run(theirs=_PEER)) in written
    assert written.count("| inside | runc | gVisor | ratio |") == 1
    before = page.PAGE.read_text("utf-8")
    sandbox_table.write(_run(theirs=_PEER))
    assert copy.read_text("utf-8") == before


def test_without_a_folder_no_peer_is_measured() -> None:
    found = sandbox_peers.measured(None, "sha256:0")
    assert list(found) == [peer.name for peer in sandbox_peers.PEERS]
    assert {row["not measured"] for row in found.values()} == {"no folder of peers is given (--peers)"}
