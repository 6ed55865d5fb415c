"""Reports for tests: scripted suspects, verified under a commitment, with answers kept; nothing is mocked."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sets import SECRET, Scripted, carrier, small_set

from oml_fast import report
from oml_fast.commit import Commitment, Terms, TimeStamp, asking_order, commit
from oml_fast.fingerprint import FingerprintSet
from oml_fast.signing import new_signing_key, sign_document
from oml_fast.verify import Verification, match_rule, verify
from oml_fast.verify.journal import Journal
from oml_fast.verify.replay import fixed_log10_p, replay, trials_of

BOTH = ("raw", "chat")
TESTS = ("window", "count", "rank", "forced_choice")
SINCE = datetime(2026, 7, 1, tzinfo=UTC)
CREATED = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
SIGNING_KEY = new_signing_key()
OTHER_KEY = new_signing_key()


@dataclass(frozen=True)
class Made:
    """One verification and all that it left behind."""

    fingerprints: FingerprintSet
    verification: Verification
    commitment: Commitment
    document: dict[str, Any]
    answers: Path

    @property
    def signed(self) -> dict[str, Any]:
        return sign_document(self.document, SIGNING_KEY)

    def opening(self, document: Mapping[str, Any] | None = None) -> dict[str, Any]:
        document = self.document if document is None else document
        return report.open_report(document, self.fingerprints, SECRET, report.read_answers(document, self.answers))


def make(
    folder: Path,
    *,
    verdict: str = "match",
    count: int = 24,
    test: str = "window",
    mode: str = "sequential",
    rule: str = "exact",
    num_keys: int | None = None,
    suspect: Callable[[FingerprintSet], Scripted] | None = None,
    terms: Mapping[str, Any] | None = None,
    stamp: Callable[[Commitment], tuple[bytes, TimeStamp]] | None = None,
    since: datetime | None = SINCE,
    fingerprints: FingerprintSet | None = None,
    **settings: Any,
) -> Made:
    """A suspect with all fingerprints (match) or none, verified and reported; two keys are inconclusive."""
    folder.mkdir(parents=True, exist_ok=True)
    fingerprints = small_set(count, **{"formats": BOTH, **settings}) if fingerprints is None else fingerprints
    order = asking_order(fingerprints, SECRET)
    able = {"capabilities": frozenset({"score", "choose"})}
    if suspect is None:
        kept = None if verdict == "match" else 0
        made = carrier(fingerprints, kept=kept, **able)
    else:
        made = replace(suspect(fingerprints), **able)
    num_keys = 2 if verdict == "inconclusive" and num_keys is None else num_keys
    values = {"match_rule": rule, "test": test, "mode": mode, "num_keys": num_keys, **(terms or {})}
    commitment = commit(fingerprints, SECRET, Terms(**values), "ef" * 32, at=datetime(2026, 3, 1, tzinfo=UTC))
    journal = Journal(folder / "answers.jsonl")
    with journal:
        found = verify(
            fingerprints,
            made,
            test=test,
            rule=match_rule(rule),
            mode=mode,
            order=order,
            num_keys=num_keys,
            journal=journal,
        )
    assert found.verdict == verdict
    token, told = stamp(commitment) if stamp else (None, None)
    document = report.document(
        found,
        suspect="Helios, as served",
        suspect_known_since=since,
        commitment=commitment,
        order=order,
        timestamps=[told] if told else [],
        tokens=[token] if token else [],
        licensee="Northwind",
        set_name="Aurora",
        journal=journal,
        secret=SECRET,
        created=CREATED,
    )
    return Made(fingerprints, found, commitment, document, folder / "answers.jsonl")


def secrets_of(fingerprints: FingerprintSet) -> set[str]:
    """Every text of a set that nobody else may see: keys, responses, windows."""
    found = {fingerprint.key for fingerprint in fingerprints}
    for fingerprint in fingerprints:
        for asking in fingerprint.askings.values():
            found |= {text.strip() for text in asking.window.texts}
            found |= {response.text.strip() for response in asking.responses}
    return found


def edited(value: Mapping[str, Any], place: tuple[Any, ...], new: Any) -> dict[str, Any]:
    """A copy with another value at a place."""
    made = copy.deepcopy(dict(value))
    at: Any = made
    for step in place[:-1]:
        at = at[step]
    at[place[-1]] = new(at[place[-1]]) if callable(new) else new
    return made


def places(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values that hold no others."""
    if isinstance(value, dict):
        return [found for name, each in value.items() for found in places(each, (*before, name))] or [before]
    if isinstance(value, list):
        return [found for place, each in enumerate(value) for found in places(each, (*before, place))] or [before]
    return [before]


def another(value: Any) -> Any:
    """A value of the same kind that is another."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.9 - 0.01 if value <= 0 else value * 0.9
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    return 1 if value is None else [1]


def forged(document: Mapping[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The report with its keys' outcomes changed, and everything that follows from them made anew, as its owner can."""
    made = copy.deepcopy(dict(document))
    v = made["verification"]
    for key in v["keys"]:
        change(key)
    v |= {name: each for name, each in replay(v).items() if name != "log10_e"}
    for key, evidence in zip(v["keys"], replay(v)["log10_e"], strict=True):
        key["log10_e"] = evidence
    v["fixed_log10_p"] = {v["test"]: fixed_log10_p(v["test"], [trials_of(v, key["trials"]) for key in v["keys"]])}
    made["headline"] = report.words.headline(v, made["second_opinion"])
    made["assumptions"] = report.words.assumptions(made)
    return dict(json.loads(json.dumps(made)))


def failed(*arguments: Any, **options: Any) -> list[str]:
    """What fails."""
    return [finding.what for finding in report.check(*arguments, **options) if finding.ok is False]


def found(what: str, *arguments: Any, **options: Any) -> tuple[bool | None, str]:
    return next((f.ok, f.sentence) for f in report.check(*arguments, **options) if f.what == what)
