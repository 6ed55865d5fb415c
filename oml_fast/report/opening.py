"""The opening of a report: what a third party needs to re-compute the verdict, without the set and without the secret.

It holds the fingerprints that were asked, each with its place in the committed tree, and what the suspect answered. It
is as secret as those keys are; the keys that were not asked stay closed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ..commit import Commitment, CommitmentError, OpenedLeaf, Opening, open_leaves
from ..completer import Completion
from ..errors import InvalidArgumentError
from ..files import SECRET_MODE, read_text, write_json
from ..fingerprint import FingerprintSet
from ..signing import canonical_json, parse_json
from ..verify.journal import answer_json, completion_from_json, read_journal
from .document import MOST_BYTES, answer_digest, answer_salt, report_digest
from .form import first_fault

FORMAT = 1
KIND = "oml_fast report opening"
Answers = Mapping[tuple[int, str], Completion]


@dataclass(frozen=True, slots=True)
class Answered:
    """What the suspect answered to one key in one format; None, and no salt, where no answer came."""

    number: int
    format: str
    salt: bytes | None
    answer: Completion | None


def read_answers(report: Mapping[str, Any], path: str | Path) -> Answers:
    """The answers in a journal that belongs to the report's verification. Raises InvalidArgumentError."""
    header, answers, _ = read_journal(Path(path))
    verification = report["verification"]
    names = ("set_digest", "completer", "identity", "test", "match_rule", "mode", "attempt")
    differ = [name for name in names if (header or {}).get(name) != verification[name]]
    if differ:
        raise InvalidArgumentError(
            f"{path} holds the answers of another verification ({', '.join(differ)} differ): name this one's."
        )
    return answers


def open_report(
    report: Mapping[str, Any], fingerprints: FingerprintSet, secret: bytes, answers: Answers
) -> dict[str, Any]:
    """The opening of a report that was made with a commitment and with its answers' digests.

    Raises InvalidArgumentError where it was not, or where answers are missing or are not those of the report;
    FingerprintFormatError and CommitmentError where set or secret are not those committed to.
    """
    verification, digests = report["verification"], report["answers"]
    if report["commitment"] is None:
        raise InvalidArgumentError(
            "the report has no commitment, so that an opening would show nothing: verify with a commitment."
        )
    if digests is None:
        raise InvalidArgumentError("the report holds no digests of the answers: verify with --out and --secret.")
    if fingerprints.digest() != verification["set_digest"]:
        raise InvalidArgumentError("this is not the fingerprint set that the report is about: name that one.")
    numbers = [key["number"] for key in verification["keys"]]
    leaves = open_leaves(Commitment.from_json(report["commitment"]), fingerprints, secret, numbers)
    answered = []
    for key, of_key in zip(verification["keys"], digests["digests"], strict=True):
        for name, digest in of_key.items():
            asked = (digests["nonce"], key["number"], name)
            kept = answers.get(asked[1:])
            value = None if digest is None or kept is None else answer_json(kept)
            salt = None if value is None else answer_salt(secret, *asked, value)
            if digest != (value and salt and answer_digest(salt, *asked, value)):
                raise InvalidArgumentError(
                    f"the answer to key {key['number']} ({name}) is missing or is not that of the report: name the "
                    "answers that were kept when it was made."
                )
            answered.append({"number": key["number"], "format": name, "salt": salt and salt.hex(), "answer": value})
    return {
        "format": FORMAT,
        "kind": KIND,
        "report": report_digest(report),
        "leaves": [{**asdict(leaf), "proof": list(leaf.proof)} for leaf in leaves.leaves],
        "answers": answered,
    }


def write_opening(opening: Mapping[str, Any], path: str | Path) -> None:
    """Write an opening whole, with mode 0600. Raises OmlError when it cannot."""
    write_json(path, opening, SECRET_MODE)


def load_opening(path: str | Path) -> Any:
    """Read an opening's JSON; its form is checked with the rest. Raises InvalidArgumentError that names the file."""
    if Path(path).exists() and Path(path).stat().st_size > MOST_BYTES:
        raise InvalidArgumentError(f"{path} is larger than an opening can be: name the opening's JSON file.")
    try:
        return parse_json(read_text(path, "the opening"), "the opening")
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{path}: {error}") from error


def leaves_of(opening: Mapping[str, Any], commitment: Commitment) -> Opening:
    """The leaves of an opening whose form was checked."""
    leaves = [
        OpenedLeaf(leaf["index"], leaf["salt"], leaf["content"], tuple(leaf["proof"])) for leaf in opening["leaves"]
    ]
    if [leaf.index for leaf in leaves] != sorted(leaf.index for leaf in leaves):
        raise CommitmentError("the opening's leaves are not in the order of asking.")
    return Opening(commitment.digest(), tuple(leaves))


def answers_of(opening: Mapping[str, Any]) -> list[Answered]:
    """The answers of an opening whose form was checked."""
    found = []
    for value in opening["answers"]:
        salt, answer = value["salt"], value["answer"]
        completion = None if answer is None else completion_from_json(answer)
        found.append(Answered(value["number"], value["format"], salt and bytes.fromhex(salt), completion))
    return found


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of an opening (draft 2020-12)."""
    text = resources.files(__package__).joinpath("opening.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def fault(opening: Any) -> str | None:
    """What is wrong with an opening's form; None where nothing is."""
    try:
        canonical_json(opening)
    except InvalidArgumentError as error:
        return f"it {error}"
    return first_fault(opening, schema())
