"""Checking a report that somebody hands over, with nothing but the report and, where there is one, its opening.

Order of the checks, each of which gives one finding:
1. form: every field is there, is of its kind, and there is no other. Without this nothing else is read;
2. signature, by the key that is trusted where one is given;
3. figures: verdict, reason and every number follow from the keys' outcomes, computed anew;
4. words: headline, reason, kind of evidence and assumptions follow from the rest;
5. terms: rule, test, rates and numbers are the committed ones;
6. order: keys were asked in the committed order, and those passed over are named;
7. timestamps are over this commitment and, with roots, hold and say what the report says;
8. of an opening: it is this report's; its leaves are in the committed tree, and are those asked;
9. its answers are those whose digests the report holds;
10. its answers, read by the committed rule, give every key's outcome, and so the verdict;
11. base: the base model's own order of the candidates is no match by the same test, from the opened windows;
12. null models, where the checker names some: asked the opened keys, none is a match by the same test.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..commit import (
    Commitment,
    CommitmentError,
    Terms,
    TimeStamp,
    check_opening,
    check_timestamps,
    evidence_kind,
    require_answer,
)
from ..completer import Completer
from ..errors import InvalidArgumentError, OmlError, SignatureError
from ..fingerprint import Fingerprint
from ..signing import VerificationKey, check_document
from ..verify import chance
from ..verify.journal import answer_json
from ..verify.replay import replay
from . import relatives, words
from .document import answer_digest, report_digest, schema
from .figures import differing, opinion_differs, reread
from .form import first_fault
from .opening import Answered, answers_of, fault, leaves_of

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing checked. ok: True where it holds, False where it does not, None where it could not be checked."""

    what: str
    ok: bool | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was checked, in order."""

    found: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed; what could not be checked has not failed."""
        return all(finding.ok is not False for finding in self.found)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.found)


class _Wrong(OmlError):  # noqa: N818 - never leaves this file
    """What a check found wrong."""


def check(
    report: Any,
    opening: Any = None,
    trusted: VerificationKey | None = None,
    roots: Sequence[Certificate] = (),
    null_models: Mapping[str, Completer] | None = None,
) -> Findings:
    """Check a report (its JSON value), and its opening where one is given. It never raises for what they hold.

    trusted: the owner's verification key, had from elsewhere than the report. roots: root certificates of the
    timestamp authorities. null_models: by name, models that were never fingerprinted, to be asked the opened keys.
    Raises InvalidArgumentError where null models come without an opening, or cannot take the report's test.
    """
    if null_models and opening is None:
        raise InvalidArgumentError("null models are asked the opened keys: give the opening (--opening FILE), too.")
    if wrong := first_fault(report, schema()):
        return Findings((Finding("form", False, f"the report is damaged or was edited: {wrong}."),))
    checks: list[tuple[str, Callable[[], tuple[bool | None, str]]]] = [
        ("signature", lambda: _signature(report, trusted)),
        ("figures", lambda: _figures(report)),
        ("words", lambda: _words(report)),
        ("terms", lambda: _terms(report)),
        ("order", lambda: _order(report)),
        ("timestamps", lambda: _timestamps(report, roots)),
    ]
    if opening is None:
        checks.append(("opening", lambda: (None, "none is given: the outcomes of the keys are the owner's word.")))
        checks.append(("base", lambda: relatives.told(report["verification"])))
    else:
        checks += [
            ("leaves", lambda: (True, _leaves(report, opening)[1])),
            ("answers", lambda: (True, _answers(report, opening)[1])),
            ("verdict", lambda: _verdict(report, opening)),
            ("base", lambda: _base(report, opening)),
        ]
    found = [Finding("form", True, "the report has every field, and no other.")]
    found += [_finding(what, made) for what, made in checks]
    if null_models:
        found.append(_null_models(report, opening, null_models))
    return Findings(tuple(found))


def _finding(what: str, made: Callable[[], tuple[bool | None, str]]) -> Finding:
    try:
        return Finding(what, *made())
    except OmlError as error:
        return Finding(what, False, " ".join(str(error).split()))
    except (AssertionError, ArithmeticError, ValueError):  # values that nothing of ours could have written
        return Finding(what, False, "the values in it are impossible: they were edited.")


def _signature(report: Report, trusted: VerificationKey | None) -> tuple[bool | None, str]:
    if "signature" not in report:
        if trusted is None:
            return None, "the report is not signed: who made it, and whether its names were changed, is not shown."
        raise SignatureError("the report is not signed: ask its owner for the signed one.")
    kid = check_document(report, trusted)
    if trusted is None:
        return None, f"it is whole, and signed by the key {kid}; give the verification key that you trust."
    return True, f"signed by the trusted key {kid}, and unchanged since."


def _figures(report: Report) -> tuple[bool, str]:
    differ = differing(report["verification"])
    differ += ["second_opinion"] if opinion_differs(report) else []
    differ += _digests_differ(report)
    if differ:
        raise _Wrong(f"these do not follow from the keys' outcomes: {', '.join(differ)}.")
    v = report["verification"]
    sentence = f"the verdict {v['verdict']} and every figure follow from the outcomes of {v['queried']} keys"
    if v["test"] == "rank" and "forced_choice" in v["fixed_log10_p"]:
        sentence += ", but fixed_log10_p.forced_choice, which decides nothing and follows from an opening alone"
    return True, f"{sentence}."


def _digests_differ(report: Report) -> list[str]:
    """Keys whose digests of answers do not fit what the report says was answered."""
    v, digests = report["verification"], report["answers"]
    if digests is None:
        return []
    if len(digests["digests"]) != len(v["keys"]):
        return ["number of answers"]
    wrong = []
    for key, of_key in zip(v["keys"], digests["digests"], strict=True):
        given = sum(digest is not None for digest in of_key.values())
        fits = set(of_key) == set(key["satisfied"]) and key["answered"] == (given == len(of_key))
        if not fits or (v["test"] == "rank" and given != len(key["trials"])):
            wrong.append(f"answers to key {key['number']}")
    return wrong


def _words(report: Report) -> tuple[bool | None, str]:
    since = report["suspect"]["known_since"]
    try:
        stamps = [_stamp(value) for value in report["timestamps"]]
        when = None if since is None else _time(since)
        _time(report["created"])
    except ValueError as error:
        raise _Wrong("a time in the report is none.") from error
    v = report["verification"]
    # Words belong to the report's format, which `form` has read, and not to the version that it says wrote it.
    wanted = {
        "headline": words.headline(v, report["second_opinion"]),
        "evidence_kind": evidence_kind(stamps, when),
        "assumptions": words.assumptions(report),
    }
    differ = [name for name, value in wanted.items() if report[name] != value]
    differ += ["reason"] if v["reason"] != replay(v)["reason"] else []
    if differ:
        raise _Wrong(f"these do not follow from the rest of the report: {', '.join(differ)}.")
    return True, f"headline and assumptions follow from the rest; evidence: {report['evidence_kind']}."


def _terms(report: Report) -> tuple[bool | None, str]:
    commitment = _commitment(report)
    if commitment is None:
        return None, "there is no commitment: rule, test and rates could have been chosen after the answers."
    v, terms = report["verification"], commitment.terms
    wanted: dict[str, Any] = {
        name: getattr(terms, name)
        for name in ("match_rule", "mode", "false_positive_rate", "smallest_fsr", "miss_rate")
    }
    wanted |= {name: getattr(commitment, name) for name in ("width", "responses_per_key", "num_fingerprints")}
    differ = [name for name, value in wanted.items() if v[name] != value]
    differ += ["test"] if terms.test not in ("auto", v["test"]) else []
    differ += ["formats"] if set(v["fsr_by_format"]) != set(commitment.formats) else []
    differ += ["queried"] if not _number_fits(report, terms, commitment.num_fingerprints) else []
    if differ:
        raise _Wrong(f"not as committed: {', '.join(differ)}.")
    chosen = "; the test was left to what the suspect allows" if terms.test == "auto" else ""
    return True, f"rule, test and rates are those committed to{chosen}."


def _number_fits(report: Report, terms: Terms, num_fingerprints: int) -> bool:
    """At most as many keys as committed; where their number was fixed, just as many, or all that were left."""
    queried, most = report["verification"]["queried"], terms.num_keys or num_fingerprints
    if terms.mode == "sequential":
        return bool(queried <= most)
    return bool(queried == most or (queried < most and queried + len(report["skipped"]) == num_fingerprints))


def _order(report: Report) -> tuple[bool | None, str]:
    commitment = _commitment(report)
    leaves = report["leaves"]
    if commitment is None:
        if leaves is not None:
            raise _Wrong("the report names places in a committed order, and has no commitment.")
        return None, "there is no commitment: nothing shows in which order keys were to be asked."
    keys = report["verification"]["keys"]
    if leaves is None or len(leaves) != len(keys):
        raise _Wrong("not every key asked has its place in the committed order.")
    if any(later <= earlier for earlier, later in pairwise(leaves)):
        raise _Wrong("keys were not asked in the committed order.")
    if leaves[-1] >= commitment.num_fingerprints:
        raise _Wrong(f"place {leaves[-1]} is beyond the committed {commitment.num_fingerprints} fingerprints.")
    asked = {key["number"] for key in keys}
    skipped = [each["leaf"] for each in report["skipped"]]
    if any(each["number"] in asked for each in report["skipped"]) or len(set(skipped)) < len(skipped):
        raise _Wrong("a key is named as skipped twice, or was asked all the same.")
    gaps = set(range(leaves[-1])) - set(leaves)
    if gaps != set(skipped):
        told = ", ".join(map(str, sorted(gaps ^ set(skipped), key=str)[:8]))
        raise _Wrong(f"keys were passed over in the committed order, and the report does not say so (places {told}).")
    if gaps:
        places = ", ".join(map(str, sorted(gaps)[:8])) + (", ..." if len(gaps) > 8 else "")
        return None, (
            f"asked in the committed order, but {words.passed_over(report)} as spent before (places {places}): "
            "nothing shows that the owner had not seen how they would come out."
        )
    return True, "asked in the committed order, from its beginning, none skipped."


def _timestamps(report: Report, roots: Sequence[Certificate]) -> tuple[bool | None, str]:
    commitment, tokens, told = _commitment(report), report["timestamp_tokens"], report["timestamps"]
    if commitment is None or not tokens:
        if tokens or told:
            raise _Wrong("the report tells of timestamps, and has not what they are over, or not the tokens.")
        return None, "there is none: that anything was fixed before the suspect was made is the owner's word."
    try:
        answers = [base64.b64decode(token, validate=True) for token in tokens]
    except (ValueError, binascii.Error) as error:
        raise _Wrong("a timestamp is no base64.") from error
    if told and len(told) != len(answers):
        raise _Wrong(f"the report holds {len(answers)} timestamps, and tells of {len(told)}.")
    if not roots:
        infos = [require_answer(commitment, answer).tst_info for answer in answers]
        says = sorted((info.gen_time.isoformat(), str(info.serial_number)) for info in infos)
        if told and says != sorted((stamp["time"], stamp["serial"]) for stamp in told):
            raise _Wrong("the timestamps do not say what the report says of them.")
        return None, (
            f"{len(answers)} over this commitment's digest; give the authorities' root certificates to check who "
            "signed them."
        )
    found = [stamp.to_json() for stamp in check_timestamps(commitment, answers, roots)]
    if told and found != list(told):
        raise _Wrong("the timestamps do not say what the report says of them.")
    return True, "; ".join(f"{stamp['authority']}, {stamp['time']}" for stamp in found) + "."


def _leaves(report: Report, opening: Any) -> tuple[list[Fingerprint], str]:
    """The opened fingerprints, in the order asked."""
    commitment = _commitment(report)
    if wrong := fault(opening):
        raise _Wrong(f"the opening is damaged or was edited: {wrong}.")
    if opening["report"] != report_digest(report):
        raise _Wrong("the opening is for another report, or the report was changed after it was opened.")
    if commitment is None:
        raise _Wrong("the report has no commitment: nothing can be opened.")
    found = check_opening(commitment, leaves_of(opening, commitment))
    asked = report["verification"]["keys"]
    keys = [(leaf, key["number"]) for leaf, key in zip(report["leaves"] or (), asked, strict=False)]
    if [(leaf, fingerprint.number) for leaf, fingerprint in found.items()] != keys:
        raise _Wrong("the opened leaves are not just those of the keys asked.")
    return list(found.values()), f"{len(found)} opened leaves lead to the committed root, and are the keys asked."


def _answers(report: Report, opening: Any) -> tuple[list[dict[str, Answered]], str]:
    """The opened answers by format, of each key in the order asked."""
    digests = report["answers"]
    if wrong := fault(opening):
        raise _Wrong(f"the opening is damaged or was edited: {wrong}.")
    if digests is None:
        raise _Wrong("the report holds no digests of answers: what the suspect said is not fixed.")
    given = iter(answers_of(opening))
    found: list[dict[str, Answered]] = []
    keys = report["verification"]["keys"]
    if len(keys) != len(digests["digests"]):
        raise _Wrong("the report does not hold digests for just the keys asked.")
    for key, of_key in zip(keys, digests["digests"], strict=True):
        found.append({})
        for name, digest in of_key.items():
            each = next(given, None)
            if each is None or (each.number, each.format) != (key["number"], name):
                raise _Wrong(f"the opened answers are not those of the keys asked, in their order ({key['number']}).")
            if _digest(digests["nonce"], each) != digest:
                raise _Wrong(f"the answer to key {key['number']} ({name}) is not the one whose digest the report has.")
            found[-1][name] = each
    if next(given, None) is not None:
        raise _Wrong("more answers are opened than keys were asked.")
    return found, f"the answers to {len(found)} keys are those whose digests the report holds."


def _digest(nonce: str, each: Answered) -> str | None:
    value = None if each.answer is None else answer_json(each.answer)
    if value is None or each.salt is None:
        return None if value is None and each.salt is None else ""
    return answer_digest(each.salt, nonce, each.number, each.format, value)


def _verdict(report: Report, opening: Any) -> tuple[bool, str]:
    fingerprints, answers = _leaves(report, opening)[0], _answers(report, opening)[0]
    commitment = _commitment(report)
    assert commitment is not None, "an opening without one was refused"
    completions = [{name: each.answer for name, each in of_key.items()} for of_key in answers]
    differ = reread(report["verification"], commitment, fingerprints, completions)
    if differ:
        raise _Wrong(f"not what the opened answers give: {', '.join(differ)}.")
    v = report["verification"]
    return True, (
        f"{v['verdict']}, computed anew from {len(answers)} opened keys and answers; probability by chance "
        f"{chance(v['log10_p_value'])}."
    )


def _base(report: Report, opening: Any) -> tuple[bool | None, str]:
    fingerprints, commitment = _leaves(report, opening)[0], _commitment(report)
    assert commitment is not None, "an opening without one was refused"
    return relatives.shown(report["verification"], commitment.settings(), fingerprints)


def _null_models(report: Report, opening: Any, null_models: Mapping[str, Completer]) -> Finding:
    """Raises InvalidArgumentError and CompleterError for the models; what is wrong with the opening is a finding."""
    try:
        fingerprints, commitment = _leaves(report, opening)[0], _commitment(report)
    except OmlError:
        return Finding("null models", False, "not asked: the opened leaves do not hold.")
    assert commitment is not None, "an opening without one was refused"
    return Finding("null models", *relatives.asked(report["verification"], commitment, fingerprints, null_models))


def _commitment(report: Report) -> Commitment | None:
    value, digest = report["commitment"], report["commitment_digest"]
    if value is None:
        if digest is not None:
            raise _Wrong("the report has a commitment's digest, and no commitment.")
        return None
    try:
        commitment = Commitment.from_json(value)
    except InvalidArgumentError as error:
        raise CommitmentError(str(error)) from error
    if commitment.digest() != digest:
        raise _Wrong("the digest of the commitment is another: commitment or digest was changed.")
    return commitment


def _stamp(value: Mapping[str, Any]) -> TimeStamp:
    when = datetime.fromisoformat(value["time"])
    if when.tzinfo is None:
        raise ValueError("a time without a zone")
    return TimeStamp(value["authority"], when, float(value["accuracy"]), int(value["serial"]))


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
