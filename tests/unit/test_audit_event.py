from __future__ import annotations

import pytest

from cloche.audit.event import Event, canonical_bytes, commitment, is_commitment, leaf_bytes, mac
from cloche.db import tables

EVENT = Event(
    "01a20194-49bd-7098-adc4-627e51c33250", 1_700_000_000_123, "t", "system", None, "job:start", "job:1", 1, "allowed", None, None, None,
    None, None, '{"a":1}', "m",
)  # fmt: skip


def test_the_fields_are_the_table_s_columns():
    assert Event._fields == tuple(column.name for column in tables.audit_event.columns)


def test_format_v1_bytes():
    """These bytes are the format: a change here makes every stored HMAC wrong."""
    assert canonical_bytes(EVENT).decode() == (
        "cloche-audit-event-v1\n"
        '{"action":"job:start","actor":"system","after_sha256":null,"at":1700000000123,"before_sha256":null,"details":"{\\"a\\":1}",'
        '"id":"01a20194-49bd-7098-adc4-627e51c33250","ip":null,"object":"job:1","object_seq":1,"outcome":"allowed","reason":null,'
        '"request_id":null,"tenant_id":"t","token_id":null}'
    )
    # computed with openssl dgst -hmac
    assert mac(b"k" * 32, canonical_bytes(EVENT)) == "c3e009fb9f83a203a67a0bfb2cdd821f89c4684dce526ed2f06efcf2c40f684e"


@pytest.mark.parametrize("column", [name for name in Event._fields if name != "mac"])
@pytest.mark.parametrize("value", [None, "other", 7])
def test_every_column_is_covered(column, value):
    changed = EVENT._replace(**{column: value})
    assert (canonical_bytes(changed) == canonical_bytes(EVENT)) == (getattr(EVENT, column) == value)


def test_the_leaf_covers_the_mac_too():
    canonical = canonical_bytes(EVENT)
    assert leaf_bytes(canonical, "a" * 64) != leaf_bytes(canonical, "b" * 64)


def test_a_column_of_bytes_has_no_canonical_form():
    with pytest.raises(TypeError):
        canonical_bytes(EVENT._replace(details=b"{}"))


def test_a_commitment_tells_salts_apart_and_looks_like_one():
    first, second = commitment("00" * 16, "alice"), commitment("01" * 16, "alice")
    assert first != second
    assert is_commitment(first)
    assert not is_commitment("worker:1")
