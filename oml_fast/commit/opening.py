"""Opening the leaves that were asked, and checking an opening with the commitment alone.

Order of the checks of `check_opening`:
1. the opening is for this commitment;
2. every leaf has a place of its own in the tree;
3. its salt and content lead to the committed root;
4. its content is one fingerprint, written in the one way in which it can be, and no other leaf's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import FingerprintFormatError, InvalidArgumentError
from ..files import SECRET_MODE, read_text, write_json
from ..fingerprint import Fingerprint, FingerprintSet
from ..fingerprint_json import fingerprint_from_json
from ..signing import parse_json
from .commitment import Commitment, CommitmentError, entries, leaf_content, require_commitment, take_fields
from .merkle import Tree, root_of

FORMAT = 1
_SALT_BYTES = 32
_LONGEST_PROOF = 32  # a set has fewer than 2**32 fingerprints


@dataclass(frozen=True, slots=True)
class OpenedLeaf:
    """One leaf: its place in the order of asking, its salt and content, and the digests from it to the root.

    Raises CommitmentError where salt or proof are no digests in hex, or the content is no text.
    """

    index: int
    salt: str
    content: str
    proof: tuple[str, ...]

    def __post_init__(self) -> None:
        texts = isinstance(self.content, str) and _is_text(self.content) and _is_digest(self.salt)
        proof = all(_is_digest(each) for each in self.proof) and len(self.proof) <= _LONGEST_PROOF
        if type(self.index) is not int or not texts or not proof:
            raise CommitmentError("a leaf of the opening is damaged: ask the owner for the opening again.")


@dataclass(frozen=True, slots=True)
class Opening:
    """Some leaves of the tree that `commitment` (its digest) fixes. As secret as the keys in it, until they are."""

    commitment: str
    leaves: tuple[OpenedLeaf, ...]

    def to_json(self) -> dict[str, Any]:
        leaves = [{**asdict(leaf), "proof": list(leaf.proof)} for leaf in self.leaves]
        return {"format": FORMAT, "commitment": self.commitment, "leaves": leaves}

    def save(self, path: str | Path) -> None:
        """Write the opening whole, with mode 0600."""
        write_json(path, self.to_json(), SECRET_MODE)

    @classmethod
    def load(cls, path: str | Path) -> Opening:
        """Read an opening. Raises CommitmentError that names the file and the field."""
        try:
            return cls.from_json(parse_json(read_text(path, "the opening"), "the opening"))
        except (InvalidArgumentError, CommitmentError) as error:
            raise CommitmentError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, value: Any) -> Opening:
        """An opening from its JSON object, with the type of every field checked (CommitmentError)."""
        values = take_fields(value, {"format", "commitment", "leaves"}, "the opening")
        if type(values["format"]) is not int or values["format"] != FORMAT:
            raise CommitmentError(f"the opening's format is {values['format']!r}: this oml_fast reads {FORMAT}.")
        if not _is_digest(values["commitment"]) or not isinstance(values["leaves"], list):
            raise CommitmentError("the opening is damaged: it needs a commitment's digest and a list of leaves.")
        return cls(values["commitment"], tuple(_leaf(place, each) for place, each in enumerate(values["leaves"])))


def open_leaves(commitment: Commitment, fingerprints: FingerprintSet, secret: bytes, numbers: Iterable[int]) -> Opening:
    """Open the leaves of the fingerprints with these numbers: those that were asked, and no others.

    Raises InvalidArgumentError where there is none of a number, or no number; CommitmentError where set or secret are
    not those committed to.
    """
    require_commitment(commitment, fingerprints, secret)
    made = entries(fingerprints, secret)
    places = {number: index for index, (number, _) in enumerate(made)}
    wanted = sorted(set(numbers), key=lambda number: places.get(number, -1))
    if not wanted:
        raise InvalidArgumentError("no number is given: name the fingerprints whose keys were asked.")
    if wanted[0] not in places:
        raise InvalidArgumentError(f"there is no fingerprint with the number {wanted[0]}: name those asked.")
    tree = Tree([entry for _, entry in made])
    leaves = []
    for index in (places[number] for number in wanted):
        entry = made[index][1]
        proof = tuple(digest.hex() for digest in tree.proof(index))
        leaves.append(OpenedLeaf(index, entry[:_SALT_BYTES].hex(), entry[_SALT_BYTES:].decode(), proof))
    return Opening(commitment.digest(), tuple(leaves))


def check_opening(commitment: Commitment, opening: Opening) -> dict[int, Fingerprint]:
    """The opened fingerprints by their place in the order of asking. Needs neither the set nor the secret.

    Raises CommitmentError unless every leaf is in the committed tree. A gap in the places is a key that was not opened:
    ask the owner what became of it.
    """
    if opening.commitment != commitment.digest():
        raise CommitmentError("the opening is for another commitment, or the commitment was changed.")
    found: dict[int, Fingerprint] = {}
    for leaf in opening.leaves:
        if leaf.index in found:
            raise CommitmentError(f"leaf {leaf.index} is opened twice: ask the owner for another opening.")
        found[leaf.index] = _checked(commitment, leaf)
    if not found:
        raise CommitmentError("the opening holds no leaf: ask the owner for those that were asked.")
    if len({fingerprint.key_ids for fingerprint in found.values()}) < len(found):
        raise CommitmentError("two leaves hold the same key: they count as one, and the set was not made well.")
    return dict(sorted(found.items()))


def _checked(commitment: Commitment, leaf: OpenedLeaf) -> Fingerprint:
    entry = bytes.fromhex(leaf.salt) + leaf.content.encode()
    root = root_of(entry, leaf.index, commitment.num_fingerprints, [bytes.fromhex(digest) for digest in leaf.proof])
    if root is None or root.hex() != commitment.merkle_root:
        raise CommitmentError(
            f"leaf {leaf.index} is not in the committed tree: it, its place or the commitment was changed."
        )
    try:
        value = parse_json(leaf.content, f"leaf {leaf.index}")
        fingerprint = fingerprint_from_json(value, commitment.settings())
        canonical = leaf_content(fingerprint)
    except (FingerprintFormatError, InvalidArgumentError) as error:
        raise CommitmentError(f"leaf {leaf.index} was committed to, but is no fingerprint: {error}") from error
    if canonical != leaf.content.encode():
        raise CommitmentError(f"leaf {leaf.index} was committed to, but is not written as a fingerprint is.")
    return fingerprint


def _leaf(place: int, value: Any) -> OpenedLeaf:
    values = take_fields(value, {"index", "salt", "content", "proof"}, f"the leaf at place {place}")
    if not isinstance(values["proof"], list):
        raise CommitmentError(f"the leaf at place {place} has no list of digests: ask the owner for the opening again.")
    return OpenedLeaf(values["index"], values["salt"], values["content"], tuple(values["proof"]))


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: JSON can hold half a character."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
