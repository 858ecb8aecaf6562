"""Where a secret might have been left: every file of a home, and every key of a Redis."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import redis
from sqlalchemy import create_engine, inspect, make_url


def spellings(canary: str) -> list[bytes]:
    """The text as a file may hold it: in UTF-8, as JSON escapes it, in UTF-16 (Python and SQLite know it), in base64 at each offset."""
    import base64

    raw = canary.encode()
    found = {raw, json.dumps(canary)[1:-1].encode(), canary.encode("utf-16-le")}
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + raw)
        found.add(encoded[4 if offset else 0 : len(encoded) - 4])  # what the neighbours' bytes do not change
    return sorted(found)


def leaks(canary: str, *places: Path) -> list[str]:
    """Files below these that hold the text, by path or by content; databases are read as their tables too."""
    wanted = spellings(canary)
    found = []
    for place in places:
        for path in [place, *below(place)] if place.is_dir() else [place]:
            if canary in str(path):
                found.append(f"the path {path}")
            content = read_file(path) if path.is_file() and not path.is_symlink() else b""
            if any(text in content for text in wanted):
                found.append(str(path))
    return found


def below(place: Path) -> Iterator[Path]:
    """Everything in there. Who lives there goes on: unlike a pattern, a walk passes over folders that go meanwhile."""
    for folder, folders, files in os.walk(place, onerror=_unless_gone):
        yield from (Path(folder, name) for name in [*folders, *files])


def read_file(path: Path) -> bytes:
    """Empty when it is there no more."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def database_files(url: str) -> list[Path]:
    """The files of an SQLite database, its log among them; none of a server's."""
    place = make_url(url)
    return (
        sorted(Path(place.database).parent.glob(f"{Path(place.database).name}*"))
        if place.database and "sqlite" in url
        else []
    )


def leaking_cells(canary: str, url: str) -> list[str]:
    """Table and column of each value of the database that holds the text. Unlike its file, a table shows what lies across two pages."""
    wanted, found = spellings(canary), []
    engine = create_engine(make_url(url))
    try:
        with engine.connect() as connection:
            tables = inspect(connection).get_table_names()
            assert {"job", "attempt", "job_log", "trace_event", "audit_event", "idempotency", "outbox"} <= set(tables)
            for table in tables:
                rows = connection.exec_driver_sql(f'select * from "{table}"')
                names = list(rows.keys())
                for row in rows:
                    cells = [value if isinstance(value, bytes) else str(value).encode() for value in row]
                    found += [
                        f"{table}.{name}"
                        for name, cell in zip(names, cells, strict=True)
                        if any(text in cell for text in wanted)
                    ]
    finally:
        engine.dispose()
    return found


def leaking_keys(canary: str, socket: Path) -> list[str]:
    """Keys of the server whose serialised value, or name, holds the text."""
    wanted = spellings(canary)
    with redis.Redis(unix_socket_path=str(socket)) as client:
        keys = list(client.scan_iter())
        assert keys, "a Cloche that has run a job has left keys"
        values = {key: repr(read(client, key)).encode() + key for key in keys}
        return [key.decode() for key, value in values.items() if any(text in value for text in wanted)]


def read(client: redis.Redis, key: bytes) -> object:
    kind = client.type(key)
    if kind == b"string":
        return client.get(key)
    if kind == b"list":
        return client.lrange(key, 0, -1)
    if kind == b"zset":
        return client.zrange(key, 0, -1)
    if kind == b"hash":
        return client.hgetall(key)
    if kind == b"set":
        return client.smembers(key)
    assert kind == b"stream", kind
    return client.xrange(key)
