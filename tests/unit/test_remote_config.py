"""Which options a remote takes, and that no other reaches rclone."""

from __future__ import annotations

import socket

import pytest

from cloche.domain.addresses import is_public
from cloche.errors import Invalid
from cloche.staging.remotes import TYPES, moved, to_fs, validate

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE9LAtePbRRSQIhF8W8XsEtXiLVpHrENCq2Cq3bkEcxO"
WEBDAV = {"url": "https://dav.example.org/files", "user": "u", "pass": "p"}
S3 = {
    "provider": "Minio",
    "endpoint": "https://s3.example.org",
    "access_key_id": "A" * 16,
    "secret_access_key": "S" * 20,
    "bucket": "garden",
}
SFTP = {"host": "sftp.example.org", "user": "u", "pass": "p", "host_keys": KEY}
GOOD = {"webdav": WEBDAV, "s3": S3, "sftp": SFTP}


def pointers(kind: str, options: dict, *, allow: bool = True) -> list[str]:
    with pytest.raises(Invalid) as refusal:
        validate(kind, options, allow_addresses=allow)
    return [problem.pointer for problem in refusal.value.problems]


@pytest.mark.parametrize("kind", sorted(GOOD))
def test_good_remotes_pass(kind: str) -> None:
    config = validate(kind, GOOD[kind] | {"root": "team/a"}, allow_addresses=True)
    fs = to_fs(config, lambda text: f"<{text}>", proxy=None)
    assert fs["type"] == kind
    assert fs["_root"] == ("garden/team/a" if kind == "s3" else "team/a")
    assert "p" not in repr(config).replace(kind, "").replace("RemoteConfig", "").replace("type=", "")


@pytest.mark.parametrize("kind", ["local", "alias", "crypt", "union", "http", "", "webdav,url=x", "WEBDAV", "ftp"])
def test_other_types_are_refused(kind: str) -> None:
    assert pointers(kind, {}) == ["/type"]


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("webdav", "bearer_token_command"),
        ("webdav", "unix_socket"),
        ("webdav", "headers"),
        ("webdav", "auth_redirect"),
        ("s3", "env_auth"),
        ("s3", "profile"),
        ("s3", "shared_credentials_file"),
        ("s3", "role_arn"),
        ("s3", "sts_endpoint"),
        ("s3", "download_url"),
        ("sftp", "ssh"),
        ("sftp", "server_command"),
        ("sftp", "md5sum_command"),
        ("sftp", "sha1sum_command"),
        ("sftp", "key_file"),
        ("sftp", "pubkey_file"),
        ("sftp", "known_hosts_file"),
        ("sftp", "key_use_agent"),
        ("sftp", "ask_password"),
        ("sftp", "http_proxy"),
        ("sftp", "socks_proxy"),
        ("sftp", "set_env"),
        ("sftp", "pin_host_key"),
        ("webdav", "type"),
        ("webdav", "_root"),
        ("webdav", "_name"),
        ("webdav", "a/b~c"),
    ],
)
def test_options_that_run_read_or_borrow_are_refused(kind: str, option: str) -> None:
    name = option.replace("~", "~0").replace("/", "~1")
    assert pointers(kind, GOOD[kind] | {option: "x"}) == [f"/options/{name}"]


def test_no_allowed_option_runs_a_command_or_names_a_file() -> None:
    names = {name for options in TYPES.values() for name in options}
    words = ("command", "file", "socket", "proxy", "env", "agent", "ssh", "config", "profile", "role", "sts", "header")
    assert [name for name in names if any(word in name for word in words)] == []


@pytest.mark.parametrize(
    ("kind", "change", "pointer"),
    [
        ("webdav", {"url": "file:///etc"}, "/options/url"),
        ("webdav", {"url": "https://u:p@h/"}, "/options/url"),
        ("webdav", {"url": "https://h/?a=b"}, "/options/url"),
        ("webdav", {"url": "https://h:99999/"}, "/options/url"),
        ("webdav", {"url": "https://h\n/"}, "/options/url"),
        ("webdav", {"url": "https://"}, "/options/url"),
        ("webdav", {"url": 7}, "/options/url"),
        ("webdav", {"vendor": "sharepoint"}, "/options/vendor"),
        ("webdav", {"pass": ""}, "/options/pass"),
        ("webdav", {"pass": "a\0b"}, "/options/pass"),
        ("webdav", {"pass": "x" * 20_000}, "/options/pass"),
        ("webdav", {"pass": ["x"]}, "/options/pass"),
        ("webdav", {"bearer_token": "t"}, "/options/bearer_token"),
        ("webdav", {"root": "../x"}, "/options/root"),
        ("webdav", {"root": "/x"}, "/options/root"),
        ("webdav", {"root": "a/*"}, "/options/root"),
        ("s3", {"bucket": "a/../b"}, "/options/bucket"),
        ("s3", {"bucket": "UPPER"}, "/options/bucket"),
        ("s3", {"region": "x.evil.org/#"}, "/options/region"),
        ("s3", {"provider": "a,b"}, "/options/provider"),
        ("s3", {"root": "../other-bucket"}, "/options/root"),
        ("sftp", {"host": "-oProxyCommand=x"}, "/options/host"),
        ("sftp", {"host": "a b"}, "/options/host"),
        ("sftp", {"port": "70000"}, "/options/port"),
        ("sftp", {"host_keys": "none"}, "/options/host_keys"),
        ("sftp", {"host_keys": KEY + ",x"}, "/options/host_keys"),
        ("sftp", {"key_pem": "/root/.ssh/id_rsa"}, "/options/key_pem"),
        ("sftp", {"key_pem": '-----BEGIN PRIVATE KEY-----\n"\\x00"\n-----END PRIVATE KEY-----'}, "/options/key_pem"),
        ("sftp", {"root": "/srv/../etc"}, "/options/root"),
    ],
)
def test_values_are_checked(kind: str, change: dict, pointer: str) -> None:
    assert pointers(kind, GOOD[kind] | change) == [pointer]


def test_what_is_missing_is_named() -> None:
    assert pointers("sftp", {}) == ["/options/host", "/options/user", "/options/host_keys"]
    assert pointers("s3", {k: v for k, v in S3.items() if k != "endpoint"}) == ["/options/endpoint"]


def test_sftp_runs_nothing_on_the_server_and_takes_the_proxy() -> None:
    fs = to_fs(validate("sftp", SFTP | {"root": "/srv/x"}, allow_addresses=True), str, proxy="http://127.0.0.1:1")
    assert (fs["shell_type"], fs["disable_hashcheck"], fs["http_proxy"]) == ("none", "true", "http://127.0.0.1:1")
    assert fs["_root"] == "/srv/x"


def test_s3_never_takes_the_hosts_credentials() -> None:
    fs = to_fs(validate("s3", S3, allow_addresses=True), str, proxy=None)
    assert fs["env_auth"] == "false"


def test_new_endpoints_move_credentials() -> None:
    assert moved("webdav", WEBDAV, WEBDAV | {"url": "https://elsewhere.example"})
    assert not moved("webdav", WEBDAV, WEBDAV | {"user": "v"})
    assert moved("sftp", SFTP, SFTP | {"host_keys": "other"})


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "[::1]",
        "10.0.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "2130706433",
        "0x7f.1",
        "0.0.0.0",
        "[::ffff:10.0.0.1]",
    ],
)
def test_private_endpoints_are_refused_by_default(host: str) -> None:
    assert pointers("webdav", WEBDAV | {"url": f"https://{host}/"}, allow=False) == ["/options/url"]
    assert pointers("sftp", SFTP | {"host": host.strip("[]")}, allow=False) == ["/options/host"]
    assert pointers("s3", S3 | {"endpoint": f"https://{host}"}, allow=False) == ["/options/endpoint"]
    validate("webdav", WEBDAV | {"url": f"http://{host}/"}, allow_addresses=True)


def test_plain_http_needs_the_operator() -> None:
    assert pointers("webdav", WEBDAV | {"url": "http://93.184.216.34/"}, allow=False) == ["/options/url"]
    validate("webdav", WEBDAV | {"url": "https://93.184.216.34/"}, allow_addresses=False)


def test_one_private_address_among_several_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 443)) for ip in ("93.184.216.34", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    assert pointers("webdav", WEBDAV, allow=False) == ["/options/url"]


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("64:ff9b::5db8:d822", True),  # NAT64 of 93.184.216.34
        ("64:ff9b::7f00:1", False),  # NAT64 of 127.0.0.1
        ("2002:7f00:1::", False),  # 6to4 of 127.0.0.1
        ("::ffff:127.0.0.1", False),
        ("fd00::1", False),
        ("fe80::1", False),
        ("ff0e::1", False),
        ("224.0.0.1", False),
        ("100.64.0.1", False),
        ("2001:0:1::", False),  # Teredo
        ("0.0.0.0", False),
        ("255.255.255.255", False),
    ],
)
def test_public_addresses(text: str, public: bool) -> None:
    import ipaddress

    assert is_public(ipaddress.ip_address(text)) is public
