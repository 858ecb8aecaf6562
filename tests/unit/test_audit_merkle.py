from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloche.audit.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    extends,
    includes,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
)

# The reference implementation's vectors for RFC 6962
_DATA = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
_ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def _leaves(count: int) -> list[bytes]:
    return [leaf_hash(str(number).encode()) for number in range(count)]


def _root(leaves: list[bytes]) -> bytes:
    """RFC 6962's definition, word for word."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else hashlib.sha256().digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(_root(leaves[:split]), _root(leaves[split:]))


@pytest.mark.parametrize("size", _ROOTS)
def test_reference_vectors(size):
    assert root_of([leaf_hash(data) for data in _DATA[:size]]).hex() == _ROOTS[size]


def test_a_leaf_cannot_pass_for_a_node():
    left, right = _leaves(2)
    assert leaf_hash(left + right) != node_hash(left, right)


def test_the_frontier_gives_the_definition_s_root_at_every_size():
    frontier, leaves = Frontier(), _leaves(70)
    assert frontier.root() == EMPTY_ROOT
    for size, leaf in enumerate(leaves, start=1):
        before = frontier.copy()
        frontier.append(leaf)
        assert (frontier.size, frontier.root()) == (size, _root(leaves[:size]))
        assert before.size == size - 1


_SIZES = st.integers(1, 130)


@settings(deadline=None)
@given(size=_SIZES, data=st.data())
def test_inclusion_holds_for_the_leaf_and_for_nothing_else(size, data):
    leaves = _leaves(size)
    index = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(0, size - 1).filter(lambda n: n != index or size == 1))
    root, proof = root_of(leaves), inclusion_proof(leaves, index)
    assert includes(root, size, index, leaves[index], proof)
    assert not includes(root, size, index, leaf_hash(b"forged"), proof)
    assert not includes(leaf_hash(b"root"), size, index, leaves[index], proof)
    assert not includes(root, size, index, leaves[index], [*proof, root])
    assert not includes(root, size, size, leaves[index], proof)
    if size > 1:
        assert not includes(root, size, other, leaves[index], proof)
        assert not includes(root, size, index, leaves[index], proof[:-1])
        damaged = data.draw(st.integers(0, len(proof) - 1))
        assert not includes(
            root, size, index, leaves[index], [*proof[:damaged], leaf_hash(b"x"), *proof[damaged + 1 :]]
        )


@settings(deadline=None)
@given(size=_SIZES, data=st.data())
def test_consistency_holds_for_a_beginning_and_for_nothing_else(size, data):
    leaves = _leaves(size)
    old = data.draw(st.integers(1, size))
    old_root, root, proof = root_of(leaves[:old]), root_of(leaves), consistency_proof(leaves, old)
    assert extends(old_root, old, root, size, proof)
    rewritten = [leaf_hash(b"forged"), *leaves[1:]]
    assert not extends(old_root, old, root_of(rewritten), size, consistency_proof(rewritten, old))
    assert not extends(leaf_hash(b"x"), old, root, size, proof)
    assert not extends(old_root, old, root, size, [*proof, root])
    assert not extends(old_root, size + 1, root, size, proof)
    if proof:
        damaged = data.draw(st.integers(0, len(proof) - 1))
        assert not extends(old_root, old, root, size, [*proof[:damaged], leaf_hash(b"x"), *proof[damaged + 1 :]])
        assert not extends(old_root, old, root, size, proof[:-1])


def test_what_is_not_in_the_tree_has_no_proof():
    with pytest.raises(ValueError):
        inclusion_proof(_leaves(3), 3)
    with pytest.raises(ValueError):
        consistency_proof(_leaves(3), 0)
