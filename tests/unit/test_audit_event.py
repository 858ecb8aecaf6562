from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.audit import canonical
from cloche.audit.event import Event, canonical_bytes, commitment, is_commitment, leaf_bytes, mac
from cloche.db import tables

EVENT = Event(
    "01a20194-49bd-7098-adc4-627e51c33250", 1_700_000_000_123, "t", "system", None, "job:start", "job:1", 1, "allowed", None, None, None,
    None, None, '{"a":1}', "m",
)  # fmt: skip

NULLABLE = {column.name for column in tables.audit_event.columns if column.nullable}


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
    if not isinstance(value, type(getattr(EVENT, column))) and not (
        column in NULLABLE and (value is None or (value == "other" and column != "object_seq"))
    ):
        with pytest.raises(TypeError):  # one that the column does not hold
            canonical_bytes(changed)
        return
    assert (canonical_bytes(changed) == canonical_bytes(EVENT)) == (getattr(EVENT, column) == value)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.builds(
        Event,
        *(
            st.integers() if name in ("at", "object_seq") else TEXTS | st.none() if name in NULLABLE else TEXTS
            for name in Event._fields
        ),
    )
)
def test_what_is_spelled_by_hand_is_canonical_json(event):
    columns = {name: value for name, value in event._asdict().items() if name != "mac"}
    assert canonical_bytes(event).decode() == "cloche-audit-event-v1\n" + canonical.text(columns)


@pytest.mark.parametrize("column", ["at", "object_seq"])
@pytest.mark.parametrize("value", [True, 1.0, "1"])
def test_a_number_has_one_spelling(column, value):
    with pytest.raises(TypeError):
        canonical_bytes(EVENT._replace(**{column: value}))


@given(st.binary(max_size=100), st.binary(max_size=300))
def test_the_hmac_is_the_standard_s(key, text):
    assert mac(key, text) == hmac.digest(key, text, "sha256").hex()


def test_the_leaf_covers_the_mac_too():
    covered = canonical_bytes(EVENT)
    assert leaf_bytes(covered, "a" * 64) != leaf_bytes(covered, "b" * 64)


def test_a_column_of_bytes_has_no_canonical_form():
    with pytest.raises(TypeError):
        canonical_bytes(EVENT._replace(details=b"{}"))


def test_a_commitment_tells_salts_apart_and_looks_like_one():
    first, second = commitment("00" * 16, "alice"), commitment("01" * 16, "alice")
    assert first != second
    assert is_commitment(first)
    assert not is_commitment("worker:1")
