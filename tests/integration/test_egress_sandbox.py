"""Jobs that reach out: real sandboxes, the real proxy, servers on loopback that the operator allowed."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import json
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloche.domain.egress import parse_endpoint
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.client import SandboxdBackend
from cloche.isolation.egress import Verdict
from tests.support import egress, sandbox
from tests.support.egress import Names, platform, running_egress, serving

pytestmark = pytest.mark.docker

NAMES = ("web.example", "tls.example", "mail.example", "echo.example")


@dataclass
class World:
    """A home with sandboxd and the proxy on it."""

    home: Path
    backend: SandboxdBackend

    def run(self, body: str, *allow: str, payload: dict | None = None, **limits: int) -> sandbox.Outcome:
        bundle = sandbox.write_bundle(self.home, sandbox.plugin(body))
        spec = sandbox.spec(bundle, egress=bool(allow), **limits)
        return sandbox.run_job(self.backend, spec, payload, allow=allow)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with sandbox.temporary_home() as folder, sandbox.running_sandboxd(folder):
        yield folder


@pytest.fixture
def world(home: Path) -> Iterator[World]:
    names = Names({name: [["127.0.0.1"]] for name in NAMES})
    rules = platform(" ".join(f"{name}:*" for name in NAMES) + " 127.0.0.1:* *:*")
    with running_egress(home, rules, names):
        backend = sandbox.client(home)
        try:
            yield World(home, backend)
        finally:
            backend.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For connections that end by themselves: their end may take what a busy machine takes for it (closing a grant may take 10 s)."""
    monkeypatch.setattr("cloche.egress.grant._ENDING_S", 8)


@contextmanager
def web(context: ssl.SSLContext | None = None, elsewhere: str = "") -> Iterator[int]:
    """An HTTP server that answers with what it was asked; ``/away`` redirects to ``elsewhere``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", elsewhere)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            size = int(self.headers.get("Content-Length") or 0)
            body = json.dumps({"path": self.path, "host": self.headers["Host"], "got": self.rfile.read(size).decode()})
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str]:
    """A server's context for ``tls.example`` and ``mail.example``, and the certificate that a client has to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("tls.example"), x509.DNSName("mail.example")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(pem + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context, pem.decode()


def smtp(context: ssl.SSLContext):
    """A mail server: EHLO, STARTTLS, one message; it keeps what it was sent."""

    def handle(stream: socket.socket, target: egress.Target) -> None:
        stream.sendall(b"220 mail.example\r\n")
        lines = stream.makefile("rb")
        while line := lines.readline():
            word = line.split()[0].upper()
            if word == b"EHLO":
                stream.sendall(b"250-mail.example\r\n250 STARTTLS\r\n")
            elif word == b"STARTTLS":
                stream.sendall(b"220 go\r\n")
                stream = context.wrap_socket(stream, server_side=True)
                lines = stream.makefile("rb")
            elif word == b"DATA":
                stream.sendall(b"354 go\r\n")
                text = b""
                while (part := lines.readline()) != b".\r\n":
                    text += part
                target.seen.append(text)
                stream.sendall(b"250 kept\r\n")
            elif word == b"QUIT":
                stream.sendall(b"221 bye\r\n")
                return
            else:
                stream.sendall(b"250 ok\r\n")

    return handle


@pytest.mark.usefixtures("patient")
def test_urllib_over_http_and_https(world: World, certificate: tuple[ssl.SSLContext, str]) -> None:
    context, pem = certificate
    with web() as plain, web(context) as secure:
        outcome = world.run(
            """
            import json, ssl, urllib.request
            found = []
            for data in (None, b"posted"):
                with urllib.request.urlopen(job.payload["plain"], data, timeout=20) as answer:
                    found.append(json.load(answer))
            trusting = ssl.create_default_context(cadata=job.payload["pem"])
            with urllib.request.urlopen(job.payload["secure"], timeout=20, context=trusting) as answer:
                found.append(json.load(answer))
            return found
            """,
            f"web.example:{plain}",
            f"tls.example:{secure}",
            payload={
                "plain": f"http://web.example:{plain}/a?b=c",
                "secure": f"https://tls.example:{secure}/d",
                "pem": pem,
            },
        )
    assert [item["path"] for item in outcome.value] == ["/a?b=c", "/a?b=c", "/d"]
    assert [item["got"] for item in outcome.value] == ["", "posted", ""]
    assert outcome.value[0]["host"] == f"web.example:{plain}"
    assert outcome.remains is not None
    report = outcome.remains.egress
    assert report is not None
    assert [(one.host, one.address, one.verdict) for one in report.connections] == [
        ("web.example", "127.0.0.1", "closed"),
        ("web.example", "127.0.0.1", "closed"),
        ("tls.example", "127.0.0.1", "closed"),
    ]
    assert all(one.bytes_up > 50 and one.bytes_down > 50 for one in report.connections)


@pytest.mark.usefixtures("patient")
def test_requests_with_its_own_pool_of_connections(world: World, certificate: tuple[ssl.SSLContext, str]) -> None:
    """The package as a plugin would have it: unpacked wheels on ``sys.path``."""
    context, pem = certificate
    wheels = "e" * 64
    for name in ("requests", "urllib3", "idna", "certifi", "charset_normalizer"):
        source = importlib.util.find_spec(name)
        assert source is not None
        assert source.origin is not None
        shutil.copytree(Path(source.origin).parent, world.home / "wheels" / wheels / "site" / name, dirs_exist_ok=True)
    body = """
    import requests
    (job.out / "ca.pem").write_text(job.payload["pem"])
    session = requests.Session()
    session.verify = str(job.out / "ca.pem")
    found = [session.get(url, timeout=20).json()["path"] for url in job.payload["urls"]]
    found.append(session.post(job.payload["urls"][0], data=b"posted", timeout=20).json()["got"])
    try:
        session.get("https://other.example/", timeout=20)
    except requests.exceptions.ProxyError as error:
        found.append(str(error))
    return found
    """
    with web() as plain, web(context) as secure:
        allow = [f"web.example:{plain}", f"tls.example:{secure}"]
        urls = [f"http://web.example:{plain}/{n}" for n in range(3)]
        urls += [f"https://tls.example:{secure}/{n}" for n in range(3)]
        bundle = sandbox.write_bundle(world.home, sandbox.plugin(body))
        spec = sandbox.spec(bundle, egress=True, wheels=wheels)
        outcome = sandbox.run_job(world.backend, spec, {"urls": urls, "pem": pem}, allow=allow)
    assert outcome.value[:7] == ["/0", "/1", "/2", "/0", "/1", "/2", "posted"]
    assert "other.example:443 is not among the hosts this job may reach" in outcome.value[7]
    assert outcome.remains is not None
    assert outcome.remains.egress is not None
    # one connection for each plain request, and one that TLS keeps for three
    assert outcome.remains.egress.verdicts == {"closed": 5, "not_allowed": 1}


def test_smtplib_with_starttls_under_the_servers_own_name(
    world: World, certificate: tuple[ssl.SSLContext, str]
) -> None:
    context, pem = certificate
    with serving(smtp(context)) as target:
        outcome = world.run(
            """
            import smtplib, ssl
            with smtplib.SMTP("mail.example", job.payload["port"], timeout=20) as mail:
                mail.starttls(context=ssl.create_default_context(cadata=job.payload["pem"]))
                mail.sendmail("a@b.example", ["c@d.example"], "Subject: hello\\r\\n\\r\\nfrom inside")
            return "sent"
            """,
            f"mail.example:{target.port}",
            payload={"port": target.port, "pem": pem},
        )
    assert outcome.value == "sent"
    assert b"from inside" in target.seen[0]


def test_connect_and_a_forwarded_port_for_a_program_that_knows_no_proxy(world: World) -> None:
    with serving() as target:
        outcome = world.run(
            """
            import subprocess
            with job.connect("echo.example", job.payload["port"]) as direct:
                direct.sendall(b"direct")
                first = direct.recv(10).decode()
            address = job.forward("echo.example", job.payload["port"])
            assert address == job.forward("echo.example", job.payload["port"])
            program = (
                "import socket, sys\\n"
                "s = socket.socket(); s.connect((sys.argv[1], int(sys.argv[2]))); s.sendall(b'forwarded'); print(s.recv(20).decode(), end='')"
            )
            done = subprocess.run([sys.executable, "-c", program, address[0], str(address[1])], capture_output=True, text=True)
            return [first, address[0], done.stdout, done.stderr]
            """,
            f"echo.example:{target.port}",
            payload={"port": target.port},
        )
    assert outcome.value == ["direct", "127.0.0.1", "forwarded", ""]


@pytest.mark.usefixtures("patient")
def test_what_is_not_on_the_list_says_so_in_every_way(world: World) -> None:
    with serving() as other, web(elsewhere=f"http://echo.example:{other.port}/") as plain:
        outcome = world.run(
            """
            import smtplib, urllib.request
            def tried(call, *args):
                try:
                    return repr(call(*args))
                except Exception as error:
                    return f"{type(error).__name__}: {error}"
            port = job.payload["other"]
            def forwarded():
                with socket.create_connection(job.forward("echo.example", port)) as stream:
                    return stream.recv(1)
            return {
                "connect": tried(job.connect, "echo.example", port),
                "http": tried(urllib.request.urlopen, f"http://echo.example:{port}/"),
                "https": tried(urllib.request.urlopen, f"https://echo.example:{port}/"),
                "redirect": tried(urllib.request.urlopen, f"http://web.example:{job.payload['plain']}/away"),
                "literal": tried(job.connect, "127.0.0.1", port),
                "smtp": tried(smtplib.SMTP, "echo.example", port),
                "forwarded": tried(forwarded),
                "direct": tried(socket.create_connection, ("127.0.0.1", port)),
                "odd": tried(job.connect, "2130706433", port),
            }
            """,
            f"web.example:{plain}",
            payload={"other": other.port, "plain": plain},
        )
        said = outcome.value
        assert not other.came.acquire(blocking=False)
    reason = f"echo.example:{other.port} is not among the hosts this job may reach"
    assert said["connect"] == f"PermissionError: {reason}"
    for way in ("http", "https", "redirect"):
        assert "403" in said[way], said
        assert reason in said[way], said
    assert "not among the hosts" in said["literal"]
    assert "gaierror" in said["smtp"]
    assert said["forwarded"] == "b''"
    assert said["direct"].startswith("ConnectionRefusedError")
    assert "odd notation" in said["odd"]
    assert outcome.remains is not None
    report = outcome.remains.egress
    assert report is not None
    assert report.verdicts == {"closed": 1, Verdict.NOT_ALLOWED: 6, Verdict.MALFORMED: 1}


def test_a_name_that_leads_inside(home: Path) -> None:
    with serving() as target, running_egress(home, platform("*:*"), Names({"evil.example": [["127.0.0.1"]]})):
        backend = sandbox.client(home)
        body = f"""
        try:
            job.connect("evil.example", {target.port})
        except OSError as error:
            return repr(error)
        """
        outcome = World(home, backend).run(body, f"evil.example:{target.port}")
        backend.close()
        assert "evil.example leads to an address that is not public" in outcome.value
        assert not target.came.acquire(blocking=False)


def test_setup_and_jobs_that_declare_nothing_have_no_way_out(world: World) -> None:
    body = """
    from pathlib import Path
    import os, socket
    from cloche_guest import hookimpl
    found = {}

    @hookimpl
    def setup():
        found["setup"] = os.listdir("/run/cloche")

    @hookimpl
    def run(job):
        found["run"] = os.listdir("/run/cloche")
        found["proxy"] = os.environ.get("HTTPS_PROXY")
        try:
            job.connect("echo.example", 1)
        except PermissionError as error:
            found["connect"] = str(error)
        return found
    """
    bundle = sandbox.write_bundle(world.home, body)
    made = world.backend.create(sandbox.spec(bundle, egress=True))
    try:
        ready = made.channel.receive(20)
        assert ready is not None
        assert ready["type"] == "ready"  # setup() is over before there is a socket
    finally:
        made.destroy()
    value = sandbox.run_job(world.backend, sandbox.spec(bundle)).value
    assert value["setup"] == value["run"] == []
    assert value["proxy"] is None
    assert "declares no [network] allow" in value["connect"]


def test_egress_once_and_only_for_a_sandbox_made_for_it(world: World) -> None:
    bundle = sandbox.write_bundle(world.home, sandbox.plugin("return 1"))
    plain, with_egress = (world.backend.create(sandbox.spec(bundle, egress=on)) for on in (False, True))
    endpoint = [parse_endpoint("echo.example:1")]
    try:
        with pytest.raises(PlatformFailure) as caught:
            plain.open_egress(endpoint)
        assert caught.value.reason == Reason.PLATFORM_FAILED
        with_egress.open_egress(endpoint)
        with pytest.raises(PlatformFailure):
            with_egress.open_egress(endpoint)
        assert with_egress.finish().egress is not None
        assert plain.finish().egress is None
    finally:
        plain.destroy()
        with_egress.destroy()


def test_the_socket_is_the_sandboxs_users_alone(home: Path, world: World) -> None:
    """Its mode keeps others out, and the proxy asks the kernel who it is besides: another sandbox's user is not heard even when handed the path."""
    with serving() as target:
        bundle = sandbox.write_bundle(world.home, sandbox.plugin("time.sleep(60)"))
        made = world.backend.create(sandbox.spec(bundle, egress=True))
        try:
            made.open_egress([parse_endpoint(f"echo.example:{target.port}")])
            path = made.in_folder.parent / "run" / "egress.sock"
            facts = path.lstat()
            assert facts.st_mode & 0o7777 == 0o600
            owner = facts.st_uid
            assert owner >= 210_000
            assert path.parent.lstat().st_uid == 0
            request = f"CONNECT echo.example:{target.port} HTTP/1.1\r\n\r\n".encode()
            # Root passes the mode, and is still not the sandbox's user.
            with socket.socket(socket.AF_UNIX) as stream:
                stream.settimeout(10)
                stream.connect(str(path))
                with contextlib.suppress(BrokenPipeError):  # it may be faster
                    stream.sendall(request)
                assert egress.read_all(stream) == b""
            report = made.finish().egress
        finally:
            made.destroy()
        assert report is not None
        assert report.verdicts == {Verdict.WRONG_USER: 1}
        assert not target.came.acquire(blocking=False)


def test_a_stranger_job_cannot_reach_another_ones_socket(world: World) -> None:
    bundle = sandbox.write_bundle(world.home, sandbox.plugin("time.sleep(60)"))
    made = world.backend.create(sandbox.spec(bundle, egress=True))
    try:
        made.open_egress([parse_endpoint("echo.example:1")])
        path = str(made.in_folder.parent / "run" / "egress.sock")
        outcome = world.run(
            """
            def tried(path):
                with socket.socket(socket.AF_UNIX) as stream:
                    try:
                        stream.connect(path)
                    except OSError as error:
                        return type(error).__name__
                    return "connected"
            sockets = [os.path.join(folder, name) for folder, _, names in os.walk("/run") for name in names]
            return [tried(job.payload['path']), sockets]
            """,
            payload={"path": path},
        )
    finally:
        made.destroy()
    assert outcome.value == ["FileNotFoundError", []]


def test_after_the_job_nothing_flows(world: World) -> None:
    """What a job left running in the background ends with it; the server finds its connection closed."""
    ended = threading.Event()

    def handle(stream: socket.socket, target: egress.Target) -> None:
        egress.read_all(stream)
        ended.set()

    with serving(handle) as target:
        outcome = world.run(
            """
            import threading
            stream = job.connect("echo.example", job.payload["port"])
            def chatter():
                while True:
                    stream.sendall(b"x")
            threading.Thread(target=chatter, daemon=True).start()
            time.sleep(0.2)
            return "left running"
            """,
            f"echo.example:{target.port}",
            payload={"port": target.port},
        )
        assert outcome.value == "left running"
        assert ended.wait(10)
        assert outcome.remains is not None
        assert outcome.remains.egress is not None
        assert outcome.remains.egress.bytes_up > 0


def test_a_killed_sandbox_and_one_whose_worker_has_gone(home: Path, world: World) -> None:
    closed = threading.Semaphore(0)

    def handle(stream: socket.socket, target: egress.Target) -> None:
        egress.read_all(stream)
        closed.release()

    body = "stream = job.connect('echo.example', job.payload['port']); print('there', flush=True); time.sleep(600)"
    bundle = sandbox.write_bundle(world.home, sandbox.plugin(body))
    with serving(handle) as target:
        for end in ("kill", "close"):
            backend = sandbox.client(home, f"worker-{end}")
            spec = sandbox.spec(bundle, egress=True)
            made = backend.create(spec)
            made.open_egress([parse_endpoint(f"echo.example:{target.port}")])
            frame = sandbox.job_frame(spec, {"port": target.port})
            made.channel.send({**frame, "egress": [f"echo.example:{target.port}"]})
            deadline = time.monotonic() + 20
            while (said := made.channel.receive(deadline - time.monotonic())) and said["type"] != "log":
                continue
            if end == "kill":
                made.kill()
            else:
                backend.close()
            assert closed.acquire(timeout=10), end
            made.destroy()
            backend.close()


def test_without_the_proxy_a_job_fails_as_ours_and_others_run(home: Path) -> None:
    backend = sandbox.client(home)
    try:
        bundle = sandbox.write_bundle(home, sandbox.plugin("return 1"))
        with pytest.raises(PlatformFailure, match="cloche egress") as caught:
            sandbox.run_job(backend, sandbox.spec(bundle, egress=True), allow=["echo.example:1"])
        assert caught.value.reason == Reason.EGRESS_UNAVAILABLE
        assert sandbox.run_job(backend, sandbox.spec(bundle)).value == 1
    finally:
        backend.close()


def test_a_proxy_that_dies_and_comes_back_fails_closed(home: Path) -> None:
    names = Names({"echo.example": [["127.0.0.1"]]})
    backend = sandbox.client(home)
    body = """
    stream = job.connect("echo.example", job.payload["port"])
    print("there", flush=True)
    ended = stream.recv(1)
    found = []
    for _ in range(2):
        try:
            job.connect("echo.example", job.payload["port"])
        except OSError as error:
            found.append(type(error).__name__)
    return [ended == b"", found]
    """
    bundle = sandbox.write_bundle(home, sandbox.plugin(body))
    with serving(lambda stream, _: egress.read_all(stream)) as target:
        allow = f"echo.example:{target.port}"
        spec = sandbox.spec(bundle, egress=True)
        with running_egress(home, platform(allow), names):
            made = backend.create(spec)
            made.open_egress([parse_endpoint(allow)])
            made.channel.send({**sandbox.job_frame(spec, {"port": target.port}), "egress": [allow]})
            frames = []
            deadline = time.monotonic() + 20
            while not frames or frames[-1]["type"] != "log":
                frames.append(made.channel.receive(deadline - time.monotonic()))
        with running_egress(home, platform(allow), names):
            while frames[-1]["type"] not in ("result", "error"):
                frames.append(made.channel.receive(deadline - time.monotonic()))
            assert frames[-1]["value"] == [True, ["ConnectionError"] * 2], frames[-1]
            remains = made.finish()
            assert remains.egress is None  # who knew of it has gone
            made.destroy()
            # and the next job finds the new proxy
            outcome = sandbox.run_job(
                backend,
                sandbox.spec(
                    sandbox.write_bundle(home, sandbox.plugin(f"job.connect('echo.example', {target.port}); return 1")),
                    egress=True,
                ),
                allow=[allow],
            )
            assert outcome.value == 1
    backend.close()


def test_many_connections_at_once_from_few_processes(world: World) -> None:
    """Thirty connections of one job, through one thread of the guest: the limit of processes is not in the way."""
    with serving() as target:
        outcome = world.run(
            """
            streams = [job.connect("echo.example", job.payload["port"]) for _ in range(30)]
            for number, stream in enumerate(streams):
                stream.sendall(str(number).encode() * 1000)
            total = 0
            for number, stream in enumerate(streams):
                stream.shutdown(socket.SHUT_WR)
                while part := stream.recv(65536):
                    total += len(part)
            return total
            """,
            f"echo.example:{target.port}",
            payload={"port": target.port},
            pids=16,
        )
    assert outcome.value == 10 * 1000 + 20 * 2000
