from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloche.audit.note import NO_PREVIOUS, BadNote, Checkpoint, PublicKey, open_checkpoint, open_note, sign

_PRIVATE = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
KEY = PublicKey("cloche.audit/test", _PRIVATE.public_key().public_bytes_raw())
OTHER_PRIVATE = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
OTHER = PublicKey("cloche.audit/test", OTHER_PRIVATE.public_key().public_bytes_raw())
POINT = Checkpoint(KEY.name, 12, b"\x07" * 32, 3, 1_700_000_000_123, NO_PREVIOUS)
NOTE = sign(POINT.body(), KEY, _PRIVATE.sign)


def test_a_note_has_the_form_the_documents_show():
    body, _, signature = NOTE.partition("\n\n")
    assert body.split("\n") == [
        KEY.name,
        "12",
        base64.b64encode(b"\x07" * 32).decode(),
        "batch 3",
        "at 1700000000123",
        f"previous {NO_PREVIOUS}",
    ]
    assert signature.startswith(f"— {KEY.name} ")
    assert base64.b64decode(signature.split(" ")[2])[:4] == KEY.id


def test_it_opens_with_the_key_and_only_with_it():
    assert open_checkpoint(NOTE, KEY) == POINT
    with pytest.raises(BadNote, match="not signed by the key"):
        open_checkpoint(NOTE, OTHER)


def test_signed_note_s_example_key_has_the_id_it_says():
    """From the C2SP signed-note specification's own example."""
    key = PublicKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW\n")
    body = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    note = (
        body
        + "\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )
    assert open_note(note, key) == body


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note.replace("\n12\n", "\n13\n"),
        lambda note: note.replace("batch 3", "batch 4"),
        lambda note: note.replace("\n12\n", "\n012\n"),
        lambda note: note + "x",
        lambda note: note[:-1],
        lambda note: note.replace("\n\n", "\n"),
        lambda note: note.replace("— ", "- "),
        lambda note: note.replace("at 17", "at  17"),
        lambda note: "",
        lambda note: note + note.splitlines()[-1] * 20,
        lambda note: note.replace(note.split(" ")[-1], "!!!!\n"),
    ],
)
def test_anything_else_is_no_note(change):
    with pytest.raises(BadNote):
        open_checkpoint(change(NOTE), KEY)


def test_a_witness_may_sign_too():
    witness = sign(POINT.body(), PublicKey("witness.example/w", OTHER.raw), OTHER_PRIVATE.sign).splitlines()[-1]
    assert open_checkpoint(NOTE + witness + "\n", KEY) == POINT


def test_a_signed_text_that_is_no_checkpoint_is_refused():
    with pytest.raises(BadNote, match="format v1"):
        open_checkpoint(sign("cloche.audit/test/export\nsha256 00\n", KEY, _PRIVATE.sign), KEY)


def test_another_log_s_checkpoint_is_refused():
    other = Checkpoint("cloche.audit/other", 12, b"\x07" * 32, 3, 1, NO_PREVIOUS)
    with pytest.raises(BadNote, match="another log"):
        open_checkpoint(sign(other.body(), KEY, _PRIVATE.sign), KEY)


def test_the_key_s_text_form_reads_back():
    assert PublicKey.parse(KEY.text) == KEY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a+b",
        KEY.text.replace("test", "tess"),
        KEY.text[:-4] + "AAAA",
        "n+00000000+AAAA",
        KEY.text + " ",
        KEY.text.replace("+A", "+B", 1),
    ],
)
def test_a_changed_key_text_is_refused(text):
    with pytest.raises(BadNote):
        PublicKey.parse(text)
