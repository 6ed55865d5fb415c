"""Attempts: keys are spent in order, once, and given again only where that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sets import small_set

from oml_fast.errors import InvalidArgumentError, OmlError
from oml_fast.fingerprint import FingerprintSet
from oml_fast.registry import AttemptRecord, Registry, RegistryAttempt
from oml_fast.registry.records import json_digest
from oml_fast.report.document import report_digest

if TYPE_CHECKING:
    from oml_fast.verify.spending import Attempt

BACKWARDS = list(reversed(range(8)))


@pytest.fixture
def fingerprints() -> FingerprintSet:
    return small_set(8)


def drain(attempt: RegistryAttempt) -> tuple[int, ...]:
    return attempt.take(1000)


def test_keys_come_in_order_and_once(registry: Registry, fingerprints: FingerprintSet) -> None:
    first: Attempt = registry.attempt(fingerprints, suspect="one")
    second = registry.attempt(fingerprints, suspect="two")
    assert [first.take(2), second.take(3), first.take(1)] == [(0, 1), (2, 3, 4), (5,)]
    assert [second.take(5), second.take(5), first.take(1)] == [(6, 7), (), ()]
    counts = registry.key_counts(suspect="one")[0]
    assert (counts.left, counts.spent, counts.seen) == (0, 8, 3)


@pytest.mark.parametrize("count", [0, -1])
def test_less_than_one_key_is_refused(registry: Registry, fingerprints: FingerprintSet, count: int) -> None:
    attempt = registry.attempt(fingerprints, suspect="them")
    with pytest.raises(InvalidArgumentError, match="take at least one"):
        attempt.take(count)


def test_another_verifier_goes_on_where_the_last_one_stopped(place: str, fingerprints: FingerprintSet) -> None:
    for expected in ((0, 1, 2), (3, 4, 5), (6, 7)):
        with Registry(place) as registry:
            assert registry.attempt(fingerprints, suspect="them").take(3) == expected


def test_the_order_given_first_is_kept(registry: Registry, fingerprints: FingerprintSet) -> None:
    assert registry.attempt(fingerprints, suspect="one", order=BACKWARDS).take(3) == (7, 6, 5)
    assert registry.attempt(fingerprints, suspect="two").take(1) == (4,)
    assert registry.attempt(fingerprints, suspect="two", order=BACKWARDS).take(1) == (3,)


def test_the_order_may_change_before_a_key_is_spent(registry: Registry, fingerprints: FingerprintSet) -> None:
    registry.add_set(fingerprints)
    assert registry.attempt(fingerprints, suspect="them", order=BACKWARDS).take(2) == (7, 6)


def test_not_after_it_but_by_name(registry: Registry, fingerprints: FingerprintSet) -> None:
    attempt = registry.attempt(fingerprints, suspect="them")
    attempt.take(2)
    with pytest.raises(InvalidArgumentError, match=r"asked in another order: .* oml-fast registry add-set --secret"):
        registry.attempt(fingerprints, suspect="them", order=BACKWARDS)
    assert len(registry.verifications()) == 1
    before = registry.sets()[0].order_digest
    assert registry.add_set(fingerprints, order=BACKWARDS).order_digest != before
    assert drain(attempt) == (7, 6, 5, 4, 3, 2)


def test_a_resumed_attempt_gives_what_it_took_first(place: str, fingerprints: FingerprintSet) -> None:
    with Registry(place) as registry:
        stopped = registry.attempt(fingerprints, suspect="them", order=BACKWARDS)
        stopped.take(3)
        registry.attempt(fingerprints, suspect="others").take(1)
    with Registry(place) as registry:
        attempt = registry.attempt(fingerprints, suspect="them", resume=stopped.id)
        assert attempt.id == stopped.id
        assert [attempt.take(2), attempt.take(2), attempt.take(9), attempt.take(1)] == [(7, 6), (5, 3), (2, 1, 0), ()]
        assert registry.verification(stopped.id)[1] == (7, 6, 5, 3, 2, 1, 0)
        assert registry.key_counts()[0].spent == 8


def test_a_resumed_attempt_that_took_nothing(registry: Registry, fingerprints: FingerprintSet) -> None:
    stopped = registry.attempt(fingerprints, suspect="them")
    assert registry.attempt(fingerprints, suspect="them", resume=stopped.id).take(2) == (0, 1)


def test_attempts_that_cannot_be_resumed(registry: Registry, fingerprints: FingerprintSet) -> None:
    stopped = registry.attempt(fingerprints, suspect="them")
    stopped.take(1)
    with pytest.raises(InvalidArgumentError, match=r"'0123' is not in this registry: oml-fast registry verifications"):
        registry.attempt(fingerprints, suspect="them", resume="0123")
    with pytest.raises(InvalidArgumentError, match=r"asks 'them', not 'others': name that suspect"):
        registry.attempt(fingerprints, suspect="others", resume=stopped.id)
    with pytest.raises(InvalidArgumentError, match="asks another set than"):
        registry.attempt(small_set(4, seed=1), suspect="them", resume=stopped.id)
    assert registry.key_counts()[0].spent == 1


@pytest.mark.parametrize("verdict", ["match", "no_match"])
def test_a_verdict_that_more_keys_cannot_change_is_not_resumed(
    registry: Registry, fingerprints: FingerprintSet, verdict: str
) -> None:
    ended = registry.attempt(fingerprints, suspect="them")
    ended.take(1)
    ended.ended(verdict, {"a": 1})
    before = registry.verification(ended.id)
    why = rf"ended at 2026-11-22T12:00:00\+00:00 with the verdict {verdict}: its report stands in --out; choose another"
    with pytest.raises(InvalidArgumentError, match=why):
        registry.attempt(fingerprints, suspect="them", resume=ended.id)
    assert registry.verification(ended.id) == before


def test_a_refused_resumption_keeps_the_verdict(registry: Registry, fingerprints: FingerprintSet) -> None:
    ended = registry.attempt(fingerprints, suspect="them")
    ended.take(1)
    ended.ended("inconclusive", {"a": 1})
    before = registry.verification(ended.id)
    for wrong in ({"suspect": "others"}, {"suspect": "them", "order": BACKWARDS}):
        with pytest.raises(InvalidArgumentError, match=r"name that suspect|in another order"):
            registry.attempt(fingerprints, resume=ended.id, **wrong)
    assert registry.verification(ended.id) == before


def test_an_inconclusive_attempt_goes_on(place: str, fingerprints: FingerprintSet) -> None:
    with Registry(place) as registry:
        first = registry.attempt(fingerprints, suspect="them")
        first.take(2)
        first.ended("inconclusive", {"a": 1})
        registry.attempt(fingerprints, suspect="others").take(1)
    with Registry(place) as registry:
        attempt = registry.attempt(fingerprints, suspect="them", resume=first.id)
        record, numbers, report = registry.verification(first.id)
        assert (record.ended_at, record.verdict, record.report_digest, report) == (None, None, None, None)
        assert numbers == (0, 1)
        assert [attempt.take(3), attempt.take(2)] == [(0, 1, 3), (4, 5)]
        attempt.ended("match", {"a": 2})
        record, numbers, report = registry.verification(first.id)
        assert (record.verdict, numbers, report) == ("match", (0, 1, 3, 4, 5), {"a": 2})
        assert len(registry.verifications()) == 2


def test_it_goes_on_after_a_kill_and_where_no_key_is_left(registry: Registry, fingerprints: FingerprintSet) -> None:
    first = registry.attempt(fingerprints, suspect="them")
    drain(first)
    first.ended("inconclusive", {})
    for _ in range(2):  # the first of them is killed before it ends
        attempt = registry.attempt(fingerprints, suspect="them", resume=first.id)
        assert [attempt.take(6), attempt.take(6), attempt.take(1)] == [(0, 1, 2, 3, 4, 5), (6, 7), ()]
    attempt.ended("inconclusive", {})
    assert registry.verification(first.id)[0].verdict == "inconclusive"


def test_a_spent_set_says_so_and_what_to_do(registry: Registry, fingerprints: FingerprintSet) -> None:
    early = registry.attempt(fingerprints, suspect="late")
    drain(registry.attempt(fingerprints, suspect="one"))
    for ask in (early.take, lambda _: registry.attempt(fingerprints, suspect="two")):
        with pytest.raises(InvalidArgumentError, match=r"all 8 keys .* spent: generate a new set, .*--ask-again"):
            ask(1)
    with pytest.raises(InvalidArgumentError, match=r"this suspect has seen each .* --ask-again any"):
        registry.attempt(fingerprints, suspect="one", reuse="other_suspects")
    assert len(registry.verifications()) == 2


def test_fresh_keys_come_before_those_that_others_have_seen(registry: Registry, fingerprints: FingerprintSet) -> None:
    registry.attempt(fingerprints, suspect="one").take(3)
    registry.attempt(fingerprints, suspect="two").take(3)
    attempt = registry.attempt(fingerprints, suspect="one", reuse="other_suspects")
    assert [attempt.take(3), attempt.take(9), attempt.take(1)] == [(6, 7, 3), (4, 5), ()]
    assert registry.key_counts(suspect="one")[0].seen == 8


def test_what_everyone_has_seen_is_not_asked_again(registry: Registry, fingerprints: FingerprintSet) -> None:
    digest = registry.add_set(fingerprints).digest
    registry.spend(digest, [0, 1])
    registry.spend(digest, [2, 3], suspect="court")
    assert drain(registry.attempt(fingerprints, suspect="one", reuse="other_suspects")) == (4, 5, 6, 7, 2, 3)


def test_any_asks_all_again_those_that_the_suspect_has_seen_last(
    registry: Registry, fingerprints: FingerprintSet
) -> None:
    registry.attempt(fingerprints, suspect="one").take(2)
    registry.attempt(fingerprints, suspect="two").take(2)
    attempt = registry.attempt(fingerprints, suspect="one", reuse="any")
    assert [attempt.take(5), attempt.take(9), attempt.take(1)] == [(4, 5, 6, 7, 2), (3, 0, 1), ()]
    again = registry.attempt(fingerprints, suspect="one", reuse="any")
    assert drain(again) == tuple(range(8))


def test_an_unknown_reuse_is_refused(registry: Registry, fingerprints: FingerprintSet) -> None:
    with pytest.raises(InvalidArgumentError, match="choose never, other_suspects, any"):
        registry.attempt(fingerprints, suspect="them", reuse="all")


def test_the_verdict_is_kept_with_the_report(registry: Registry, fingerprints: FingerprintSet) -> None:
    attempt = registry.attempt(fingerprints, suspect="them")
    attempt.take(2)
    digest = fingerprints.digest()
    started = AttemptRecord(attempt.id, digest, None, "them", "2026-11-22T12:00:00+00:00", None, None, None, 2)
    assert registry.verifications() == (started,)
    assert registry.verification(attempt.id) == (started, (0, 1), None)
    keys = [{"number": 0, "matched": True, "key": "Clé 0", "window": {"token_ids": [5]}, "responses": [" w5é"]}]
    report = {"verdict": "match", "p_value": 0.0, "log10_p": {"window": -6.5}, "keys": keys, "opened": ["Clé"]}
    attempt.ended("match", report)
    record, numbers, kept = registry.verification(attempt.id)
    assert (record.verdict, record.ended_at, numbers) == ("match", "2026-11-22T12:00:00+00:00", (0, 1))
    assert record.report_digest == json_digest(report)
    slim = {"verdict": "match", "p_value": 0.0, "log10_p": {"window": -6.5}, "keys": [{"number": 0, "matched": True}]}
    assert kept == slim


@pytest.mark.parametrize("digest", ["", "ef", "EF" * 32, "ef" * 32 + "0", "ef" * 32 + "\n"])
def test_what_is_no_digest_is_refused(registry: Registry, fingerprints: FingerprintSet, digest: str) -> None:
    attempt = registry.attempt(fingerprints, suspect="them")
    with pytest.raises(InvalidArgumentError, match="a report's digest cannot be"):
        attempt.ended("match", {}, digest)
    assert registry.verification(attempt.id)[0].verdict is None


def test_the_digest_that_readers_see_is_kept(registry: Registry, fingerprints: FingerprintSet) -> None:
    report = {"verification": {"verdict": "match"}, "signature": {"value": "x"}}
    digest = report_digest(report)
    assert digest != json_digest(report)
    attempt = registry.attempt(fingerprints, suspect="them")
    attempt.ended("match", report, digest=digest)
    record, _, kept = registry.verification(attempt.id)
    assert (record.report_digest, kept) == (digest, report)


def test_what_has_ended_has_ended(registry: Registry, fingerprints: FingerprintSet) -> None:
    attempt = registry.attempt(fingerprints, suspect="them")
    attempt.take(1)
    attempt.ended("match", {"a": 1})
    with pytest.raises(InvalidArgumentError, match="with the verdict match: its report stands in --out"):
        attempt.ended("no_match", {"a": 2})
    with pytest.raises(InvalidArgumentError, match="with the verdict match"):
        attempt.take(1)
    assert registry.verification(attempt.id)[2] == {"a": 1}
    assert registry.key_counts()[0].spent == 1


def test_inconclusive_is_not_gone_on_with_unless_resumed(registry: Registry, fingerprints: FingerprintSet) -> None:
    attempt = registry.attempt(fingerprints, suspect="them")
    attempt.ended("inconclusive", {"a": 1})
    for go_on in (lambda: attempt.take(1), lambda: attempt.ended("match", {"a": 2})):
        with pytest.raises(InvalidArgumentError, match="with the verdict inconclusive: resume it by its id"):
            go_on()
    assert registry.verification(attempt.id)[2] == {"a": 1}
    assert registry.key_counts()[0].spent == 0


def test_verifications_by_set_and_suspect(registry: Registry, fingerprints: FingerprintSet) -> None:
    other = small_set(4, seed=1)
    for each, suspect in ((fingerprints, "one"), (fingerprints, "two"), (other, "one")):
        registry.attempt(each, suspect=suspect)
    assert len(registry.verifications()) == 3
    assert len(registry.verifications(suspect="one")) == 2
    assert len(registry.verifications(set_digest=fingerprints.digest())) == 2
    assert len(registry.verifications(set_digest=other.digest(), suspect="two")) == 0
    with pytest.raises(InvalidArgumentError, match="is not in this registry"):
        registry.verification("0123")


def test_a_take_that_failed_loses_nothing(
    registry: Registry, fingerprints: FingerprintSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = registry.attempt(fingerprints, suspect="them")
    stopped.take(2)
    attempt = registry.attempt(fingerprints, suspect="them", resume=stopped.id)

    def fails(*_: object) -> tuple[int, ...]:
        raise OmlError("no disk")

    with monkeypatch.context() as patch:
        patch.setattr("oml_fast.registry.attempts._take", fails)
        with pytest.raises(OmlError, match="no disk"):
            attempt.take(3)
    assert attempt.take(3) == (0, 1, 2)
