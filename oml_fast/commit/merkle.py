"""The Merkle tree of RFC 6962, section 2.1: one digest over many entries, and short proofs that one is in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def leaf_digest(entry: bytes) -> bytes:
    """SHA-256 over a zero byte and the entry."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_digest(left: bytes, right: bytes) -> bytes:
    """SHA-256 over a one byte and both digests below."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """The tree over `entries`, in their order. All its digests are kept: 64 bytes an entry."""

    def __init__(self, entries: Sequence[bytes]) -> None:
        self._levels = [[leaf_digest(entry) for entry in entries]]
        while len(level := self._levels[-1]) > 1:
            pairs = zip(level[::2], level[1::2], strict=False)
            # An odd digest goes up as it is: RFC 6962 splits at the largest power of two, which comes to the same.
            self._levels.append([node_digest(*pair) for pair in pairs] + level[len(level) & ~1 :])

    @property
    def root(self) -> bytes:
        top = self._levels[-1]
        return top[0] if top else hashlib.sha256().digest()

    def proof(self, index: int) -> tuple[bytes, ...]:
        """The digests that lead from entry `index` to the root, lowest first. IndexError where there is no entry."""
        if not 0 <= index < len(self._levels[0]):
            raise IndexError(index)
        path = []
        for level in self._levels[:-1]:
            if index ^ 1 < len(level):
                path.append(level[index ^ 1])
            index >>= 1
        return tuple(path)


def root_of(entry: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """The root of the tree of `size` entries in which `proof` places `entry` at `index`; None where it cannot.

    RFC 9162, section 2.1.3.2.
    """
    if not 0 <= index < size:
        return None
    digest, last = leaf_digest(entry), size - 1
    for other in proof:
        if last == 0:
            return None
        if index & 1 or index == last:
            digest = node_digest(other, digest)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            digest = node_digest(digest, other)
        index, last = index >> 1, last >> 1
    return digest if last == 0 else None
