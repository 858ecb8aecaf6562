"""Staging in and out over real WebDAV, S3 and SFTP servers."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from cloche.clock import uuid7
from cloche.domain.jobs import ClaimedJob, InputSpec, OutputSpec, RetryPolicy
from cloche.errors import NotFound, PlatformFailure, PluginFailure
from cloche.isolation.backend import CollectedFile, Remains
from cloche.staging.artifacts import ArtifactStore
from cloche.staging.rclone import Stopped
from cloche.staging.remotes import RemoteConfig, validate
from cloche.staging.stager import ArtifactRef, Caps, Stager
from tests.support import rclone as support

KINDS = ("webdav", "s3", "sftp")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Bench:
    """A stager of tenant ``t``, its folders, and its remotes by name."""

    def __init__(self, home: Path, daemon, caps: Caps | None = None) -> None:
        self.store = ArtifactStore(home / "artifacts")
        self.remotes: dict[str, RemoteConfig] = {}
        self.refs: dict[str, ArtifactRef] = {}
        self.work = home / "work"
        self.folder = home / "in"
        self.out = home / "out"
        self.folder.mkdir()
        self.out.mkdir()
        self.stager = Stager(self.store, daemon, self.lookup, work=self.work, caps=caps)

    def lookup(self, tenant_id: str, name: str) -> RemoteConfig:
        if tenant_id != "t" or name not in self.remotes:
            raise NotFound("there is no such remote")
        return self.remotes[name]

    def add(self, name: str, server: support.Server, **options: str) -> None:
        self.remotes[name] = validate(server.kind, server.options | options, allow_addresses=True)

    def artifact(self, name: str, data: bytes) -> str:
        stored = self.store.tenant("t").put(io.BytesIO(data))
        file_id = uuid7()
        self.refs[file_id] = ArtifactRef(stored.sha256, stored.size, name)
        return f"artifact:{file_id}"

    def resolve(self, file_id: str) -> ArtifactRef:
        if file_id not in self.refs:
            raise NotFound("there is no such file")
        return self.refs[file_id]

    def stage_in(self, *inputs: tuple[str, str | None], **options: Any):
        specs = tuple(InputSpec(source, to) for source, to in inputs)
        return self.stager.stage_in(job(inputs=specs), self.folder, resolve=self.resolve, **options)

    def wrote(self, **files: bytes) -> Remains:
        collected = []
        for name, data in files.items():
            path = name.replace("__", "/").replace("_", ".")
            (self.out / path).parent.mkdir(parents=True, exist_ok=True)
            (self.out / path).write_bytes(data)
            collected.append(CollectedFile(path, len(data)))
        return Remains(0, False, files=tuple(collected), folder=self.out)

    def staged(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


def job(*, inputs=(), outputs=(), attempt: int = 1, job_id: str | None = None) -> ClaimedJob:
    return ClaimedJob(
        id=job_id or uuid7(),
        tenant_id="t",
        type="x",
        plugin_version="1.0.0",
        plugin_digest="0" * 64,
        payload={},
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        limits={},
        retry=RetryPolicy(),
        attempt=attempt,
        lease_until=0,
        submitted_by="u",
    )


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    from tests.support.stores import short_folder

    with short_folder() as folder, support.daemon(folder) as made:
        yield made


@pytest.fixture
def bench(home: Path, daemon) -> Bench:
    return Bench(home, daemon)


@pytest.fixture(params=KINDS)
def server(request, home: Path):
    with support.serving(request.param, home / "srv" / "garden") as made:
        yield made


def test_in_from_a_remote(bench: Bench, server: support.Server) -> None:
    pictures = server.folder / "fotos"
    pictures.mkdir()
    (pictures / "Übersicht 1.png").write_bytes(b"one")
    (pictures / "b[1].png").write_bytes(b"two")
    (pictures / "c.txt").write_bytes(b"no")
    (server.folder / "empty.csv").write_bytes(b"")
    bench.add("dav", server)
    staged = bench.stage_in(("dav:fotos/*.png", None), ("dav:empty.csv", "tables/e.csv"), ("dav:fotos/*.txt", "notes"))
    assert [(file.path, file.size, file.sha256) for file in staged] == [
        ("b[1].png", 3, sha(b"two")),
        ("Übersicht 1.png", 3, sha(b"one")),
        ("tables/e.csv", 0, sha(b"")),
        ("notes/c.txt", 2, sha(b"no")),
    ]
    assert staged[1].source == "dav:fotos/Übersicht 1.png"
    assert bench.staged() == sorted(file.path for file in staged)
    for file in staged:
        assert stat.S_IMODE((bench.folder / file.path).stat().st_mode) == 0o444
    assert stat.S_IMODE((bench.folder / "tables").stat().st_mode) == 0o755
    assert list(bench.work.iterdir()) == []


def test_root_confines(bench: Bench, server: support.Server) -> None:
    (server.folder / "mine").mkdir()
    (server.folder / "mine" / "a.txt").write_bytes(b"a")
    (server.folder / "other.txt").write_bytes(b"o")
    bench.add("dav", server, root="mine")
    assert [file.path for file in bench.stage_in(("dav:a.txt", None))] == ["a.txt"]
    with pytest.raises(PluginFailure, match=r"\.\."):
        bench.stage_in(("dav:../other.txt", None))
    with pytest.raises(PluginFailure, match="has no file"):
        bench.stage_in(("dav:other.txt", None))


def test_what_is_missing_is_the_jobs_fault(bench: Bench, server: support.Server) -> None:
    bench.add("dav", server)
    (server.folder / "here").write_bytes(b"x")
    for source in (
        "dav:none.csv",
        "dav:no/such/none.csv",
        "dav:*.csv",
        "dav:none/*.csv",
        "gone:x.csv",
        f"artifact:{uuid7()}",
    ):
        with pytest.raises(PluginFailure) as failure:
            bench.stage_in(("dav:here", None), (source, None))
        assert failure.value.reason == "input_unavailable"
        assert bench.staged() == [], "nothing is placed unless everything is there"


def test_refused_credentials_are_not_retried_for_ever(bench: Bench, server: support.Server) -> None:
    wrong = {"secret_access_key": "W" * 20} if server.kind == "s3" else {"pass": "wrong"}
    bench.add("dav", server, **wrong)
    for attempt in (lambda: bench.stage_in(("dav:a/*.csv", None)), lambda: bench.stage_in(("dav:a.csv", None))):
        with pytest.raises(PluginFailure) as failure:
            attempt()
        assert "refused" in failure.value.message
    with pytest.raises(PluginFailure) as refused:
        bench.stager.stage_out(job(outputs=[OutputSpec("*", "dav:")]), bench.wrote(a_txt=b"x"))
    assert refused.value.reason == "output_rejected"


def test_a_dead_remote_is_the_platforms(bench: Bench, home: Path) -> None:
    with support.serving("webdav", home / "srv" / "garden") as server:
        bench.add("dav", server)
    with pytest.raises(PlatformFailure) as failure:
        bench.stage_in(("dav:a.csv", None))
    assert failure.value.reason == "remote_unavailable"
    with pytest.raises(PlatformFailure) as failure:
        bench.stager.stage_out(job(outputs=[OutputSpec("*", "dav:x")]), bench.wrote(a_txt=b"x"))
    assert failure.value.reason == "remote_unavailable"


def test_out_to_a_remote(bench: Bench, server: support.Server) -> None:
    bench.add("dav", server)
    (server.folder / "out").mkdir()
    (server.folder / "out" / "a.png").write_bytes(b"an older, longer one")
    remains = bench.wrote(a_png=b"picture", sub__b_png=b"", report_md=b"# r", zw=b"last")
    rules = [OutputSpec("*.md", None), OutputSpec("**", "dav:out/")]
    done = bench.stager.stage_out(job(outputs=rules), remains)
    assert [(o.path, o.size, o.sha256, o.destination) for o in done] == [
        ("a.png", 7, sha(b"picture"), "dav:out/a.png"),
        ("sub/b.png", 0, sha(b""), "dav:out/sub/b.png"),
        ("report.md", 3, sha(b"# r"), None),
        ("zw", 4, sha(b"last"), "dav:out/zw"),
    ]
    assert [o.artifact_id is not None for o in done] == [False, False, True, False]
    assert (server.folder / "out" / "a.png").read_bytes() == b"picture"
    assert (server.folder / "out" / "sub" / "b.png").read_bytes() == b""
    assert bench.store.tenant("t").path(sha(b"# r")).read_bytes() == b"# r"
    files = sorted(p.relative_to(server.folder).as_posix() for p in server.folder.rglob("*") if p.is_file())
    assert files == ["out/a.png", "out/sub/b.png", "out/zw"], "no draft is left"
    assert list(bench.work.iterdir()) == []


def test_a_later_attempt_removes_the_drafts_of_earlier_ones(bench: Bench, server: support.Server) -> None:
    bench.add("dav", server)
    job_id = uuid7()
    left = server.folder / "out" / f".cloche-{job_id}-attempt-1"
    left.mkdir(parents=True)
    (left / "0").write_bytes(b"half")
    later = job(outputs=[OutputSpec("*", "dav:out")], attempt=2, job_id=job_id)
    bench.stager.stage_out(later, bench.wrote(a_txt=b"x"))
    assert not (left / "0").exists()
    assert (server.folder / "out" / "a.txt").read_bytes() == b"x"


def test_out_to_the_root_and_to_the_store(bench: Bench, server: support.Server) -> None:
    bench.add("dav", server)
    done = bench.stager.stage_out(job(outputs=[OutputSpec("a.*", "dav:")]), bench.wrote(a_txt=b"a", b_txt=b"b"))
    assert [o.destination for o in done] == ["dav:a.txt", None]
    assert (server.folder / "a.txt").read_bytes() == b"a"
    assert not (bench.out / "b.txt").exists(), "adopted, not copied"


def test_artifacts_are_linked(bench: Bench) -> None:
    staged = bench.stage_in((bench.artifact("t.csv", b"1,2"), None), (bench.artifact("u.csv", b"3"), "deep/er/v.csv"))
    assert [file.path for file in staged] == ["t.csv", "deep/er/v.csv"]
    inode = bench.store.tenant("t").path(sha(b"1,2")).stat().st_ino
    assert (bench.folder / "t.csv").stat().st_ino == inode


def test_names_that_collide_are_refused_before_anything_moves(bench: Bench) -> None:
    one, two = bench.artifact("a", b"1"), bench.artifact("a", b"2")
    with pytest.raises(PluginFailure, match="two inputs would be called 'a'"):
        bench.stage_in((one, None), (two, None))
    with pytest.raises(PluginFailure, match="a file and the folder"):
        bench.stage_in((one, None), (two, "a/b"))
    with pytest.raises(PluginFailure, match=r"\.\."):
        bench.stage_in((one, "../a"))
    assert bench.staged() == []


def test_a_lost_artifact_is_the_platforms(bench: Bench) -> None:
    source = bench.artifact("a", b"1")
    bench.store.tenant("t").remove(sha(b"1"))
    with pytest.raises(PlatformFailure) as failure:
        bench.stage_in((source, None))
    assert failure.value.reason == "storage_failed"


def test_caps(home: Path, daemon) -> None:
    bench = Bench(home, daemon, Caps(files=2, size=10))
    small = [(bench.artifact(f"{n}", b"1"), None) for n in range(3)]
    with pytest.raises(PluginFailure, match="more than 2 files"):
        bench.stage_in(*small)
    with pytest.raises(PluginFailure, match="larger than 10 bytes"):
        bench.stage_in((bench.artifact("x", b"1" * 6), None), (bench.artifact("y", b"1" * 5), None))
    assert bench.staged() == []


def test_output_names_that_a_remote_cannot_hold(bench: Bench, home: Path) -> None:
    with support.serving("webdav", home / "srv" / "garden") as server:
        bench.add("dav", server)
        for name in ("a\nb", "-rf", "a\\b"):
            path = bench.out / name
            path.write_bytes(b"x")
            remains = Remains(0, False, files=(CollectedFile(name, 1),), folder=bench.out)
            rules = [OutputSpec("*", "dav:")]
            with pytest.raises(PluginFailure) as failure:
                bench.stager.stage_out(job(outputs=rules), remains)
            assert failure.value.reason == "output_rejected"
            assert len(bench.stager.stage_out(job(), remains)) == 1, "the artifact store takes any name"
        assert list(server.folder.iterdir()) == []


def test_an_output_that_is_a_link_is_never_read(bench: Bench) -> None:
    (bench.out / "x").symlink_to("/etc/hostname")
    remains = Remains(0, False, files=(CollectedFile("x", 1),), folder=bench.out)
    with pytest.raises(PlatformFailure):
        bench.stager.stage_out(job(), remains)
    for path in ("../x", "/etc/hostname", "a/../../x"):
        with pytest.raises(PluginFailure):
            bench.stager.stage_out(job(), Remains(0, False, files=(CollectedFile(path, 1),), folder=bench.out))


def test_stop(bench: Bench, home: Path) -> None:
    with support.serving("webdav", home / "srv" / "garden") as server:
        (server.folder / "a").write_bytes(b"x")
        bench.add("dav", server)
        with pytest.raises(Stopped):
            bench.stage_in(("dav:a", None), stop=lambda: True)
        assert bench.staged() == []
        assert list(bench.work.iterdir()) == []


def test_a_private_key_and_a_pinned_host(bench: Bench, home: Path) -> None:
    key = support.host_key(home)
    authorized = key.with_suffix(".pub")
    with support.serving("sftp", home / "srv" / "garden", "--authorized-keys", str(authorized)) as server:
        (server.folder / "a").write_bytes(b"x")
        options = {name: value for name, value in server.options.items() if name != "pass"}
        bench.remotes["key"] = validate("sftp", options | {"key_pem": key.read_text()}, allow_addresses=True)
        assert [file.size for file in bench.stage_in(("key:a", None))] == [1]
        bench.add("moved", server, host_keys=" ".join(authorized.read_text().split()[:2]))
        with pytest.raises(PluginFailure, match="host key mismatch"):
            bench.stage_in(("moved:a", "b"))


def test_what_a_dead_worker_left_is_cleaned(bench: Bench) -> None:
    (bench.work / "job-dead-1-x").mkdir()
    (bench.work / "job-alive-1-x").mkdir()
    assert bench.stager.clean(alive=["alive"]) == 1
    assert [path.name for path in bench.work.iterdir()] == ["job-alive-1-x"]


def test_many_small_files(bench: Bench, home: Path) -> None:
    with support.serving("webdav", home / "srv" / "garden") as server:
        for n in range(100):
            (server.folder / f"{n:03}.txt").write_bytes(os.urandom(100))
        bench.add("dav", server)
        staged = bench.stage_in(("dav:*.txt", "in"))
        assert len(staged) == 100
        for file in staged:
            assert sha((bench.folder / file.path).read_bytes()) == file.sha256
            assert (server.folder / Path(file.path).name).stat().st_size == file.size


class HostileDav(http.server.BaseHTTPRequestHandler):
    """A server whose listing lies: about a size, and with names that climb."""

    protocol_version = "HTTP/1.1"
    names: tuple[str, ...] = ()
    sent = 0

    def do_PROPFIND(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        rows = "".join(
            f"<D:response><D:href>{name}</D:href><D:propstat><D:prop><D:getcontentlength>10</D:getcontentlength><D:resourcetype/>"
            "</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
            for name in self.names
        )
        body = f'<?xml version="1.0"?><D:multistatus xmlns:D="DAV:">{rows}</D:multistatus>'.encode()
        self.send_response(207)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            while type(self).sent < 400_000_000:
                self.wfile.write(b"\0" * 1_000_000)
                type(self).sent += 1_000_000
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hostile():
    class Handler(HostileDav):
        pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Handler, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_remote_that_sends_more_than_it_says_is_cut_off(bench: Bench, hostile) -> None:
    handler, url = hostile
    handler.names = ("/f.bin",)
    bench.remotes["evil"] = validate("webdav", {"url": url}, allow_addresses=True)
    with pytest.raises(PlatformFailure) as failure:
        bench.stage_in(("evil:f.bin", None))
    assert failure.value.reason == "remote_unavailable"
    assert handler.sent < 100_000_000
    assert bench.staged() == []


def test_a_failure_cuts_off_the_other_transfers(bench: Bench, home: Path, hostile) -> None:
    handler, url = hostile
    handler.names = ("/f.bin",)
    bench.remotes["evil"] = validate("webdav", {"url": url}, allow_addresses=True)
    with support.serving("webdav", home / "srv" / "garden", "--bwlimit", "1M") as slow:
        # Minutes at that speed: the test's own time limit would end it.
        with (slow.folder / "big").open("wb") as big:
            big.truncate(400_000_000)
        bench.add("slow", slow)
        with pytest.raises(PlatformFailure, match="evil"):
            bench.stage_in(("slow:big", None), ("evil:f.bin", None))
    assert list(bench.work.iterdir()) == []


def test_a_remote_whose_names_climb_reaches_nothing(bench: Bench, hostile) -> None:
    handler, url = hostile
    for name in ("/d/..%2f..%2fescape.txt", "/d/../../escape.txt", "/d/a%0ab.txt", "/d/%2e%2e%2fescape.txt"):
        handler.names = (name,)
        bench.remotes["evil"] = validate("webdav", {"url": url}, allow_addresses=True)
        with pytest.raises((PluginFailure, PlatformFailure)):
            bench.stage_in(("evil:d/*.txt", None))
    assert bench.staged() == []
    assert not list(bench.work.parent.rglob("escape*"))
