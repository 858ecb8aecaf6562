"""What a remote may be: its types, their options, and the JSON object rclone is given.

An allow-list. rclone has options that run a command, read a file of this host or take the host's own credentials;
none of them is here, so none can be set. ``docs/remotes.md`` lists what is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cloche.errors import Invalid, Problem
from cloche.redact import MASK
from cloche.staging.addresses import AddressRefused, resolve_public
from cloche.staging.paths import check_remote_path, unprintable

Check = Callable[[str], str | None]  # one sentence when the value is wrong

_MAX_VALUE = 16_384
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?|[0-9a-fA-F:.]{2,45}")
_PEM = re.compile(r"\s*-----BEGIN [A-Z ]*PRIVATE KEY-----[A-Za-z0-9+/=:,. \r\n-]+-----END [A-Z ]*PRIVATE KEY-----\s*")
_HOST_KEY = re.compile(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)) [A-Za-z0-9+/]{32,4096}={0,2}")


def _one_of(*values: str) -> Check:
    return lambda value: None if value in values else f"one of {', '.join(values)}"


def _pattern(pattern: str, text: str) -> Check:
    compiled = re.compile(pattern)
    return lambda value: None if compiled.fullmatch(value) else text


def _text(value: str) -> str | None:
    return "text without control characters" if not value or unprintable(value) else None


def _root(value: str) -> str | None:
    try:
        check_remote_path(value)
    except Invalid as error:
        return error.detail
    return None


def _absolute_root(value: str) -> str | None:
    return _root(value.removeprefix("/"))  # an SFTP server's own absolute path


def _url(value: str) -> str | None:
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "a URL such as https://files.example.org/dav"
    if parts.scheme not in {"https", "http"} or not host or not _HOST.fullmatch(host) or _text(value) or "\\" in value:
        return "a URL such as https://files.example.org/dav"
    if parts.username is not None or parts.password is not None:
        return "a URL without user and password; they are options of their own"
    return "a URL without '?' and '#'" if parts.query or parts.fragment or value[-1] in "?#" else None


def _pem(value: str) -> str | None:
    return None if _PEM.fullmatch(value) else "the text of a private key in PEM form"


def _host_keys(value: str) -> str | None:
    good = all(_HOST_KEY.fullmatch(line.strip()) for line in value.strip().split("\n"))
    return None if good else "lines of '<algorithm> <base64 key>', as `ssh-keyscan HOST` prints after the host's name"


@dataclass(frozen=True)
class Option:
    """One option a remote type has. ``moves``: a new value sends the remote's credentials to another place."""

    check: Check
    required: bool = False
    secret: bool = False
    moves: bool = False


_ROOT = Option(_root)
TYPES: dict[str, dict[str, Option]] = {
    "webdav": {
        "url": Option(_url, required=True, moves=True),
        "user": Option(_text),
        "pass": Option(_text, secret=True),
        "bearer_token": Option(_text, secret=True),
        "vendor": Option(_one_of("other", "nextcloud", "owncloud", "infinitescale", "fastmail", "rclone")),
        "root": _ROOT,
    },
    "s3": {
        "provider": Option(
            _pattern(r"[A-Za-z0-9]{2,32}", "a provider's name as rclone has it, such as AWS, Minio or Other"),
            required=True,
            moves=True,
        ),
        "endpoint": Option(_url, moves=True),
        "region": Option(_pattern(r"[a-z0-9-]{1,40}", "a region such as eu-central-1"), moves=True),
        "access_key_id": Option(_text, required=True),
        "secret_access_key": Option(_text, required=True, secret=True),
        "bucket": Option(_pattern(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "a bucket's name"), required=True),
        "force_path_style": Option(_one_of("true", "false")),
        "root": _ROOT,
    },
    "sftp": {
        "host": Option(
            lambda value: None if _HOST.fullmatch(value) else "a host's name or address", required=True, moves=True
        ),
        "port": Option(_pattern(r"[1-9][0-9]{0,4}", "a port between 1 and 65535"), moves=True),
        "user": Option(_text, required=True),
        "pass": Option(_text, secret=True),
        "key_pem": Option(_pem, secret=True),
        "host_keys": Option(_host_keys, required=True, moves=True),
        "root": Option(_absolute_root),
    },
}


@dataclass(frozen=True)
class RemoteConfig:
    """A remote that passed :func:`validate`. Printing it shows no value."""

    type: str
    options: Mapping[str, str] = field(repr=False)

    def masked(self) -> dict[str, str]:
        """The options with every secret masked."""
        return {name: MASK if TYPES[self.type][name].secret else value for name, value in self.options.items()}

    def secrets(self) -> set[str]:
        """The names of the options that hold a secret."""
        return {name for name in self.options if TYPES[self.type][name].secret}


def validate(kind: str, options: Mapping[str, Any], *, allow_addresses: bool) -> RemoteConfig:
    """The remote that was asked for. With ``allow_addresses`` its endpoint may be private, and a URL may be plain
    ``http``.

    Raises:
        Invalid: with a pointer to each option that is unknown, missing or wrong, or to the type.
    """
    known = TYPES.get(kind)
    if known is None:
        detail = f"a remote's type is one of {', '.join(sorted(TYPES))}"
        raise Invalid(detail, problems=[Problem("/type", detail)])
    problems, chosen = [], {}
    for name, given in options.items():
        value = _as_text(given)
        if name not in known:
            detail = f"not an option of {kind}; these are: {', '.join(known)}"
            problems.append(Problem(f"/options/{_escaped(name)}", detail))
        elif value is None or len(value) > _MAX_VALUE:
            problems.append(Problem(f"/options/{name}", f"text of at most {_MAX_VALUE} characters"))
        elif fault := known[name].check(value):
            problems.append(Problem(f"/options/{name}", fault))
        else:
            chosen[name] = value
    problems += [Problem(f"/options/{n}", "is needed") for n, o in known.items() if o.required and n not in options]
    if not problems:
        problems += _between(kind, chosen)
    if not problems and not allow_addresses:
        problems += _address(kind, chosen)
    if problems:
        raise Invalid("the remote was not saved", problems=problems)
    return RemoteConfig(kind, chosen)


def to_fs(config: RemoteConfig, obscure: Callable[[str], str], *, proxy: str | None) -> dict[str, str]:
    """rclone's JSON object for the remote. ``proxy``: the only way it may connect, None for any."""
    given = config.options
    if config.type == "webdav":
        # rclone's own pause of 10 ms between two requests would be most of the time of a small file.
        fs = {"type": "webdav", "vendor": "other", "pacer_min_sleep": "1ms", **_without(given, "root", "pass")}
        if "pass" in given:
            fs["pass"] = obscure(given["pass"])
        return _rooted(fs, given.get("root"))
    if config.type == "s3":
        fs = {"type": "s3", "env_auth": "false", "no_check_bucket": "true", **_without(given, "root", "bucket")}
        return _rooted(fs, "/".join(part for part in (given["bucket"], given.get("root")) if part))
    # No command runs on the server either: rclone would otherwise ask its shell for checksums.
    fs = {
        "type": "sftp",
        "shell_type": "none",
        "disable_hashcheck": "true",
        **_without(given, "root", "pass", "host_keys", "key_pem"),
    }
    fs["host_keys"] = ",".join(line.strip() for line in given["host_keys"].strip().split("\n"))
    if "pass" in given:
        fs["pass"] = obscure(given["pass"])
    if "key_pem" in given:  # rclone wants it in one line and undoes the escapes
        fs["key_pem"] = "".join(f"{line.strip()}\\n" for line in given["key_pem"].strip().split("\n"))
    if proxy is not None:
        fs["http_proxy"] = proxy
    return _rooted(fs, given.get("root"))


def moved(kind: str, before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Whether the credentials would go to another place than before."""
    return any(before.get(name) != after.get(name) for name, option in TYPES[kind].items() if option.moves)


def _as_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (str, int)) else None


def _between(kind: str, options: Mapping[str, str]) -> list[Problem]:
    if kind == "webdav" and "bearer_token" in options and ("user" in options or "pass" in options):
        return [Problem("/options/bearer_token", "either a bearer token, or user and password")]
    if kind == "s3" and options["provider"] != "AWS" and "endpoint" not in options:
        return [Problem("/options/endpoint", "is needed for every provider but AWS")]
    if kind == "sftp" and ("pass" in options) == ("key_pem" in options):
        return [Problem("/options/pass", "either 'pass' or 'key_pem' is needed")]
    if kind == "sftp" and int(options.get("port", "22")) > 65_535:
        return [Problem("/options/port", "a port between 1 and 65535")]
    return []


def _address(kind: str, options: Mapping[str, str]) -> list[Problem]:
    """Early notice of what the egress guard would refuse at every connection."""
    name = {"webdav": "url", "s3": "endpoint", "sftp": "host"}[kind]
    if name not in options:
        return []
    host, port = options[name], int(options.get("port", "22"))
    if kind != "sftp":
        parts = urlsplit(options[name])
        if parts.scheme != "https":
            detail = "begins with https://; plain http needs the operator's remote.allow_private"
            return [Problem(f"/options/{name}", detail)]
        host, port = parts.hostname or "", parts.port or 443
    try:
        resolve_public(host, port)
    except AddressRefused as error:
        detail = f"{error}; the operator can allow such addresses with remote.allow_private"
        return [Problem(f"/options/{name}", detail)]
    except (OSError, UnicodeError):
        return []  # not known here and now; `test` says so, and nothing can be reached by it
    return []


def _without(options: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in options.items() if name not in names}


def _rooted(fs: dict[str, str], root: str | None) -> dict[str, str]:
    return {**fs, "_root": root} if root else fs


def _escaped(name: str) -> str:
    return str(name)[:64].replace("~", "~0").replace("/", "~1")
