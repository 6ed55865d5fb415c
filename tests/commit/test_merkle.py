"""The Merkle tree against Certificate Transparency's test vectors and RFC 6962's own definition."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oml_fast.commit.merkle import Tree, leaf_digest, node_digest, root_of

ENTRIES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
# (index, size) -> proof; the same project's vectors, which count leaves from 1.
PROOFS = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}

entry_lists = st.lists(st.binary(max_size=8), min_size=1, max_size=70)
different = st.lists(st.binary(max_size=8), min_size=1, max_size=70, unique=True)


def split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1


def root(entries: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word by word."""
    if len(entries) < 2:
        return leaf_digest(entries[0]) if entries else hashlib.sha256(b"").digest()
    k = split(len(entries))
    return node_digest(root(entries[:k]), root(entries[k:]))


def path(index: int, entries: Sequence[bytes]) -> tuple[bytes, ...]:
    """PATH of RFC 6962, section 2.1.1, word by word."""
    if len(entries) < 2:
        return ()
    k = split(len(entries))
    if index < k:
        return (*path(index, entries[:k]), root(entries[k:]))
    return (*path(index - k, entries[k:]), root(entries[:k]))


@pytest.mark.parametrize("size", range(9))
def test_the_published_roots(size: int) -> None:
    assert Tree(ENTRIES[:size]).root.hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), PROOFS)
def test_the_published_proofs(index: int, size: int) -> None:
    proof = Tree(ENTRIES[:size]).proof(index)
    assert [digest.hex() for digest in proof] == PROOFS[index, size]
    assert root_of(ENTRIES[index], index, size, proof) == bytes.fromhex(ROOTS[size])


@pytest.mark.parametrize("size", [*range(1, 34), 63, 64, 65, 252])
def test_every_entry_of_every_size_as_the_rfc_defines_it(size: int) -> None:
    entries = [bytes([i]) for i in range(size)]
    tree = Tree(entries)
    assert tree.root == root(entries)
    for index, entry in enumerate(entries):
        assert tree.proof(index) == path(index, entries)
        assert root_of(entry, index, size, tree.proof(index)) == tree.root


@given(entries=different, data=st.data())
def test_a_proof_leads_to_the_root_from_its_own_entry_and_place_alone(
    entries: list[bytes], data: st.DataObject
) -> None:
    tree, size = Tree(entries), len(entries)
    index, other = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    proof, entry = tree.proof(index), entries[index]
    assert root_of(entry, index, size, proof) == tree.root
    assert root_of(entry + b"\x00", index, size, proof) != tree.root
    assert root_of(b"\x00" + entry, index, size, proof) != tree.root
    if other != index:
        assert root_of(entry, other, size, proof) != tree.root
    assert root_of(entry, index, size, (*proof, bytes(32))) is None
    if proof:
        place = data.draw(st.integers(0, len(proof) - 1))
        assert root_of(entry, index, size, proof[:place] + proof[place + 1 :]) != tree.root
        wrong = bytes(byte ^ 1 for byte in proof[place])
        assert root_of(entry, index, size, (*proof[:place], wrong, *proof[place + 1 :])) != tree.root


@given(entries=entry_lists, data=st.data())
def test_any_change_of_the_entries_or_their_order_has_another_root(entries: list[bytes], data: st.DataObject) -> None:
    whole = Tree(entries).root
    index = data.draw(st.integers(0, len(entries) - 1))
    assert Tree([*entries[:index], entries[index] + b"x", *entries[index + 1 :]]).root != whole
    assert Tree([*entries[:index], *entries[index + 1 :]]).root != whole
    assert Tree([*entries, entries[-1]]).root != whole
    moved = data.draw(st.permutations(entries))
    assert (Tree(moved).root == whole) == (moved == entries)


def test_a_node_is_never_taken_for_a_leaf() -> None:
    left, right = leaf_digest(b"a"), leaf_digest(b"b")
    assert Tree([b"a", b"b"]).root == node_digest(left, right) != leaf_digest(left + right)
    assert root_of(left + right, 0, 1, []) != Tree([b"a", b"b"]).root


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0), (4, 3), (1 << 70, 3)])
def test_a_place_outside_the_tree_has_no_root(index: int, size: int) -> None:
    assert root_of(b"a", index, size, []) is None
    with pytest.raises(IndexError):
        Tree([b"a"] * size).proof(index)
