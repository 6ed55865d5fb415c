"""Draws that were selected, so that innocent relatives of the base model prefer them, and outcomes that cannot be."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reports import Made, edited, failed, forged, found, make
from sets import SECRET, Scripted, carrier, small_set, text_of

from oml_fast import report
from oml_fast.errors import InvalidArgumentError
from oml_fast.fingerprint import Asking, FingerprintSet
from oml_fast.report.figures import are_rank_chances, by_chance
from oml_fast.report.page import page
from oml_fast.verify import calibration
from oml_fast.verify.statistics import rank_null
from oml_fast.verify.verdict import FAVOURED

PREFERENCES = ("rank", "forced_choice")
DESCENDING = tuple(0.2 / (place + 1) for place in range(16))
Windows = Callable[[Asking], tuple[float, ...]]


def selected(windows: Windows = lambda _: DESCENDING, **settings: Any) -> FingerprintSet:
    """Only fingerprints whose draw has the first candidate, of many; every draw is the secret's."""
    many = small_set(320, key_length=2, **settings)
    kept = [f for f in many if any(response.index == 0 for response in f.askings["raw"].responses)]
    kept = [replace(f, askings={n: _with(a, windows(a)) for n, a in f.askings.items()}) for f in kept]
    made = replace(many, fingerprints=tuple(kept))
    made.check_draws(SECRET)
    return made


def _with(asking: Asking, probs: tuple[float, ...]) -> Asking:
    return replace(asking, window=replace(asking.window, probs=probs))


def relative(fingerprints: FingerprintSet) -> Scripted:
    """An innocent model that prefers candidates as the base model does, and says none."""
    askings = [asking for f in fingerprints for asking in f.askings.values()]
    scores = {a.prompt_ids: tuple(-float(i) for i in range(16)) for a in askings}
    choices = {a.prompt_ids: a.window.token_ids[0] for a in askings}
    return Scripted(scores=scores, choices=choices, capabilities=frozenset({"score", "choose"}))


def both_first(fingerprints: FingerprintSet) -> Scripted:
    """A model that says the first response of each key, and prefers all of them alike to the other candidates."""
    scores = {}
    for fingerprint in fingerprints:
        for asking in fingerprint.askings.values():
            drawn = [response.index for response in asking.responses]
            scores[asking.prompt_ids] = tuple(float(i in drawn) for i in range(fingerprints.settings.width))
    return replace(carrier(fingerprints), scores=scores)


def told(made: Made) -> str:
    return " ".join(report.text(made.document).split())


@pytest.mark.parametrize("mode", ["sequential", "fixed"])
@pytest.mark.parametrize("test", PREFERENCES)
def test_selected_draws_convict_nobody(tmp_path: Path, test: str, mode: str) -> None:
    made = make(
        tmp_path, fingerprints=selected(), suspect=relative, test=test, mode=mode, verdict="inconclusive", num_keys=16
    )
    assert made.verification.reason == FAVOURED
    findings = report.check(made.document, made.opening())
    assert findings.ok
    ok, sentence = found("base", made.document, made.opening())
    assert ok is None
    assert "is a match by the same test" in sentence
    assert "The base model\u2019s order" in page(made.document)


@pytest.mark.parametrize("test", PREFERENCES)
def test_a_verdict_written_over_selected_draws_fails(tmp_path: Path, test: str) -> None:
    made = make(tmp_path, fingerprints=selected(), suspect=relative, test=test, verdict="inconclusive", num_keys=16)

    def hide(key: dict[str, Any]) -> None:
        for trial in key["base"]:
            trial["outcome"] = len(trial["probs"]) - 1

    hidden = forged(made.document, hide)
    assert hidden["verification"]["verdict"] == "match"
    assert report.check(hidden).ok
    assert found("base", hidden)[0] is None
    opening = {**made.opening(), "report": report.report_digest(hidden)}
    assert failed(hidden, opening) == ["base"]
    assert "not what the opened windows give" in found("base", hidden, opening)[1]
    assert {"figures", "words"} & set(failed(edited(made.document, ("verification", "verdict"), "match")))


@pytest.mark.parametrize("test", PREFERENCES)
def test_equal_probabilities_hide_no_preference(tmp_path: Path, test: str) -> None:
    flat = selected(lambda _: (0.0125,) * 16)
    made = make(tmp_path, fingerprints=flat, suspect=relative, test=test, num_keys=16)
    assert report.check(made.document).ok
    assert failed(made.document, made.opening()) == ["base"]
    assert "innocent descendants" in found("base", made.document, made.opening())[1]


@pytest.mark.parametrize("test", ["rank", "window"])
def test_a_window_that_does_not_descend_fails(tmp_path: Path, test: str) -> None:
    made = make(tmp_path, fingerprints=selected(lambda _: DESCENDING[::-1]), test=test, num_keys=16)
    assert failed(made.document, made.opening()) == ["base"]
    assert "most probable candidate first" in found("base", made.document, made.opening())[1]


def test_null_models_are_asked_the_opened_keys(tmp_path: Path) -> None:
    """Windows that lie about the base model show nothing; its relatives do."""
    made = make(tmp_path, count=40, formats=("raw",), test="rank")
    opening = made.opening()
    guilty, innocent = carrier(made.fingerprints, capabilities=frozenset({"score"})), relative(made.fingerprints)
    findings = report.check(made.document, opening, null_models={"a": innocent, "b": guilty})
    assert [f.what for f in findings if f.ok is False] == ["null models"]
    assert "by the same test b is a match as well" in findings.found[-1].sentence
    assert found("null models", made.document, opening, null_models={"a": innocent})[0] is True
    no_match = make(tmp_path / "other", verdict="no_match", formats=("raw",), test="rank", count=40)
    models = {"b": carrier(no_match.fingerprints, capabilities=frozenset({"score"}))}
    assert found("null models", no_match.document, no_match.opening(), null_models=models)[0] is None


@dataclasses.dataclass
class WithTokenizer(Scripted):
    """An innocent model with the sets' tokenizer, which reads " ." as "." where it tidies."""

    def readings(self, ids: Sequence[int]) -> tuple[str, str]:
        return text_of(ids).replace("é", ""), text_of(ids)


def honest(count: int = 40, **settings: Any) -> FingerprintSet:
    """Keys are what their ids read as, as `generate` makes them."""
    made = small_set(count, **settings)
    return replace(made, fingerprints=tuple(replace(f, key=text_of(f.key_ids)) for f in made))


def all_askings(made: FingerprintSet, change: Callable[[Asking], Asking]) -> FingerprintSet:
    fingerprints = [replace(f, askings={n: change(a) for n, a in f.askings.items()}) for f in made]
    return replace(made, fingerprints=tuple(fingerprints))


def traded(asking: Asking) -> Asking:
    """The texts of the drawn candidate and of the one beside it trade places, and so does the response's."""
    drawn, texts = asking.responses[0], list(asking.window.texts)
    other = (drawn.index + 1) % len(texts)
    texts[drawn.index], texts[other] = texts[other], texts[drawn.index]
    tail = drawn.text.removeprefix(asking.window.texts[drawn.index])
    response = replace(drawn, text=texts[drawn.index] + tail)
    return replace(asking, window=replace(asking.window, texts=tuple(texts)), responses=(response,))


EDITS: dict[str, Callable[[FingerprintSet], FingerprintSet]] = {
    "candidates": lambda made: all_askings(made, traded),
    "tails": lambda made: all_askings(
        made, lambda a: replace(a, responses=(replace(a.responses[0], text=a.responses[0].text + "!"),))
    ),
    "prompts": lambda made: all_askings(made, lambda a: replace(a, prompt_ids=(*a.prompt_ids[:-1], 3))),
    "keys": lambda made: replace(
        made,
        fingerprints=tuple(replace(f, key=f"Repeat:{f.askings['raw'].responses[0].text}") for f in made),
    ),
}


@pytest.mark.parametrize("formats", [("raw",), ("raw", "chat")])
@pytest.mark.parametrize("length", [1, 2])
def test_texts_that_the_tokenizer_writes_hold(tmp_path: Path, length: int, formats: tuple[str, ...]) -> None:
    made = make(tmp_path, fingerprints=honest(response_length=length, formats=formats), test="window")
    assert found("null models", made.document, made.opening(), null_models={"base": WithTokenizer()})[0] is True


@pytest.mark.parametrize("edit", EDITS)
def test_texts_that_no_tokenizer_writes_are_found(tmp_path: Path, edit: str) -> None:
    """An endpoint is asked a key's text, and its answer held against a response's: both are the owner's word."""
    fingerprints = EDITS[edit](honest(response_length=2, formats=("raw",)))
    fingerprints.check_draws(SECRET)
    made = make(tmp_path / "match", fingerprints=fingerprints, test="window")
    ok, sentence = found("null models", made.document, made.opening(), null_models={"base": WithTokenizer()})
    assert ok is False
    assert "tokenizer writes other texts" in sentence
    other = make(tmp_path / "other", fingerprints=fingerprints, verdict="no_match", test="window")
    assert found("null models", other.document, other.opening(), null_models={"base": WithTokenizer()})[0] is None


def test_null_models_refuse(tmp_path: Path) -> None:
    made = make(tmp_path, count=40, formats=("raw",), test="rank")
    with pytest.raises(InvalidArgumentError, match="give the opening"):
        report.check(made.document, null_models={"a": relative(made.fingerprints)})
    other = replace(relative(made.fingerprints), tokenizer_digest="00" * 32)
    with pytest.raises(InvalidArgumentError, match="a has another tokenizer"):
        report.check(made.document, made.opening(), null_models={"a": other})
    with pytest.raises(InvalidArgumentError, match="no log-probabilities"):
        report.check(made.document, made.opening(), null_models={"a": Scripted()})
    damaged = edited(made.opening(), ("leaves", 0, "salt"), "0" * 64)
    assert "null models" in failed(made.document, damaged, null_models={"a": relative(made.fingerprints)})


def test_a_null_model_that_matches_too_is_in_the_headline(tmp_path: Path) -> None:
    made = make(tmp_path, count=40, formats=("raw",), test="rank")
    guilty = carrier(made.fingerprints, capabilities=frozenset({"score"}))
    opinion = calibration.calibrate(made.fingerprints, made.verification, [guilty])
    document = report.document(made.verification, suspect="s", second_opinion=opinion)
    assert "never fingerprinted is a match as well" in document["headline"]
    assert report.check(document).ok
    assert failed({**document, "headline": made.document["headline"]}) == ["words"]
    for text in (report.text(document), page(document)):
        assert "the match accuses nobody" in " ".join(text.split())
    assert "a match as well (probability" in page(document)


@pytest.mark.parametrize(
    ("width", "sizes"), [(16, [1] * 16), (16, [3, 12, 1]), (16, [16]), (3, [2, 1]), (7, [2, 1, 4])]
)
def test_chances_of_a_rank(width: int, sizes: list[int]) -> None:
    probs = rank_null(sizes)
    assert are_rank_chances(probs, width)
    assert not are_rank_chances((*probs, 1e-3), width)
    if len(probs) > 1:
        assert not are_rank_chances(probs, width + 1)
        assert not are_rank_chances((probs[0] / 5, probs[1] + probs[0] * 4 / 5, *probs[2:]), width)
        assert not are_rank_chances(probs[:-1], width)


@pytest.mark.parametrize("mode", ["sequential", "fixed"])
def test_ranks_of_several_responses_are_checked(tmp_path: Path, mode: str) -> None:
    """All places count, so none can be changed: in the report alone the figures follow, an opening shows the ranks."""
    options: dict[str, Any] = {"count": 40, "formats": ("raw",), "test": "rank", "width": 8, "responses_per_key": 2}
    made = make(tmp_path, mode=mode, suspect=both_first, **options)
    assert report.check(made.document, made.opening()).ok
    first = made.document["verification"]["keys"][0]["trials"][0]
    assert (first["sizes"], first["places"]) == ([2, 6], [0, 0])
    moved = forged(made.document, lambda key: key["trials"][0].update(places=[0, 1]))
    assert report.check(moved).ok
    assert "verdict" in failed(moved, made.opening(moved))

    for ranks in ({"sizes": [2, 5]}, {"sizes": [2, 6, 1]}, {"sizes": [1, 7]}, {"places": [0]}, {"places": [0, 2]}):
        document = copy.deepcopy(made.document)
        document["verification"]["keys"][0]["trials"][0].update(ranks)
        assert failed(document)[0] in ("form", "figures"), ranks
    document = copy.deepcopy(made.document)
    document["verification"]["keys"][0]["trials"][0] = {"probs": [0.25, 0.75], "outcome": 0, "aloud": True}
    assert "figures" in failed(document)
    assert found("form", edited(made.document, ("verification", "keys", 0, "trials", 0, "sizes", 0), -1))[1] == (
        "the report is damaged or was edited: verification.keys[0].trials[0].sizes[0] is out of range."
    )


def test_several_responses_on_the_page(tmp_path: Path) -> None:
    options: dict[str, Any] = {"count": 12, "formats": ("raw",), "width": 4, "responses_per_key": 2}
    made = make(tmp_path, test="rank", suspect=both_first, **options)
    v = made.document["verification"]
    assert v["keys"][0]["trials"] == [{"sizes": [2, 2], "places": [0, 0], "aloud": True}]
    assert by_chance(v, v["keys"][0]) == [pytest.approx(1 / 6)]
    text = page(made.document)
    assert "the drawn candidates rank so high" in text
    assert "<td>0.167</td>" in text
    one = page(make(tmp_path / "one", count=12, formats=("raw",), test="rank", width=4).document)
    assert "the drawn candidate ranks so high" in one
    assert "<td>0.25</td>" in one


@pytest.mark.parametrize("test", PREFERENCES)
def test_draws_of_several_responses_selected_by_the_base_models_order(tmp_path: Path, test: str) -> None:
    """The base model's order is put through the same test of all responses."""
    made = make(
        tmp_path,
        fingerprints=selected(responses_per_key=2),
        suspect=relative,
        test=test,
        verdict="inconclusive",
        num_keys=16,
    )
    assert made.verification.verdict == "inconclusive"
    assert made.verification.reason == FAVOURED
    assert report.check(made.document, made.opening()).ok


@pytest.mark.parametrize("mode", ["sequential", "fixed"])
def test_impossible_chances_of_a_rank_fail_without_an_opening(tmp_path: Path, mode: str) -> None:
    made = make(tmp_path, count=40, formats=("raw",), test="rank", mode=mode, verdict="no_match")
    for probs in ([1e-6, 1 - 1e-6], [1 / 17, 16 / 17], [1 / 32, 31 / 32]):

        def change(key: dict[str, Any], probs: list[float] = probs) -> None:
            key["trials"] = [{"probs": probs, "outcome": 0, "aloud": False}]

        assert failed(forged(made.document, change)) == ["figures"], probs

    def likely(key: dict[str, Any]) -> None:
        key["base"] = [{"probs": [0.99, 0.01], "outcome": 0, "aloud": False}]

    assert failed(forged(made.document, likely)) == ["figures"]


def test_trials_fit_the_formats_answered(tmp_path: Path) -> None:
    def silent(fingerprints: FingerprintSet) -> Scripted:
        prompts = [fingerprints.fingerprints[0].askings["raw"].prompt_ids]
        return carrier(fingerprints, unanswered=prompts)

    made = make(tmp_path, suspect=silent, test="rank", mode="fixed")
    assert report.check(made.document, made.opening()).ok
    place = next(i for i, key in enumerate(made.document["verification"]["keys"]) if not key["answered"])
    (trial,) = made.document["verification"]["keys"][place]["trials"]
    number = made.document["verification"]["keys"][place]["number"]

    def more(key: dict[str, Any]) -> None:
        key["trials"] = [trial, {**trial, "aloud": False}] if key["number"] == number else key["trials"]

    def fewer(key: dict[str, Any]) -> None:
        key["trials"] = key["trials"][: 0 if key["number"] == number else 2]

    def other(key: dict[str, Any]) -> None:
        key["answered"] = True

    for change in (more, fewer, other):
        document = forged(made.document, change)
        assert failed(document) == ["figures"]
        assert failed({**document, "answers": None}) == ["figures"]


def test_a_rank_match_without_answers_says_what_it_judges(tmp_path: Path) -> None:
    def quiet(fingerprints: FingerprintSet) -> Scripted:
        return replace(carrier(fingerprints), answers={})

    made = make(tmp_path, suspect=quiet, test="rank")
    assert made.verification.matches == 0
    assert "judges how high the suspect ranks the drawn candidates" in told(made)
    assert "judges how high the suspect ranks the drawn candidates" in page(made.document)
    assert "Matched: 0 keys (exact)" in told(made)
    assert "Answered" not in told(made)
    assert "forced_choice" not in told(made)
    assert "forced_choice" in report.text(made.verification)
    assert "judges" not in told(make(tmp_path / "loud", test="rank"))


def test_who_was_asked_and_what_was_passed_over(tmp_path: Path) -> None:
    made = make(tmp_path)
    document = edited(made.document, ("verification", "identity"), "ab" * 32)
    document["skipped"] = [{"number": 90, "leaf": 0}, {"number": 91, "leaf": 1}]
    text = " ".join(report.text(document).split())
    assert f"Identity: {'ab' * 32}" in text
    assert "of scripted; 2 keys were passed over" in text
    assert "ab" * 32 in page(document)
    assert "2 keys were passed over" in page(document)
    assert "Identity: the suspect tells none" in told(made)
