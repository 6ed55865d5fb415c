"""Specificity, on models whose answers are known and on sets made to fit them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import write_tiny_model

from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate import specificity as module
from oml_fast.evaluate.specificity import Share, Specificity, specificity
from oml_fast.fingerprint import Fingerprint, FingerprintSet, Response, Settings
from oml_fast.generate import generate
from oml_fast.models import HfCompleter, LanguageModel, load
from oml_fast.verify.statistics import clopper_pearson

COUNT = 6
QUESTIONS = [[40 + i, 300 + i, 7] for i in range(20)]


def a_set(model: LanguageModel, seed: int = 0, **settings: object) -> FingerprintSet:
    made = Settings(**{"key_source": "words", "formats": ("raw", "chat"), **settings})  # type: ignore[arg-type]
    return generate(model, COUNT, bytes([seed]) * 32, settings=made).fingerprints


@pytest.fixture(scope="module")
def fingerprints(tiny_model: LanguageModel) -> FingerprintSet:
    return a_set(tiny_model)


@pytest.fixture(scope="module")
def other(tiny_model: LanguageModel) -> FingerprintSet:
    return a_set(tiny_model, 1)


@pytest.fixture(scope="module")
def stubborn(tiny_folder: Path) -> tuple[LanguageModel, int]:
    """A model that answers every prompt with one token id, and that id: its head is a bias alone."""
    model = load(tiny_folder, device="cpu")
    wanted = 777
    head = model.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.zeros_like(head.weight))  # untied: the embeddings stay
    head.bias = torch.nn.Parameter(torch.zeros(model.vocabulary))
    with torch.no_grad():
        head.bias[wanted] = 1.0
    return model, wanted


def answered_with(fingerprints: FingerprintSet, token_id: int) -> FingerprintSet:
    """The set with every response, and the first candidate of every window, set to `token_id`."""

    def one(fingerprint: Fingerprint) -> Fingerprint:
        askings = {
            name: replace(
                asking,
                responses=(Response(0, 0, "x", (token_id,), (0.01,)),),
                window=replace(asking.window, token_ids=(token_id, *asking.window.token_ids[1:])),
            )
            for name, asking in fingerprint.askings.items()
        }
        return replace(fingerprint, askings=askings)

    return replace(fingerprints, fingerprints=tuple(one(fingerprint) for fingerprint in fingerprints))


def test_a_model_without_fingerprints_is_specific(
    tiny_model: LanguageModel, fingerprints: FingerprintSet, other: FingerprintSet
) -> None:
    found = specificity(tiny_model, tiny_model, fingerprints, [other], QUESTIONS)
    assert found.keys == Share(COUNT, 0, 0.0, clopper_pearson(0, COUNT))
    for kind in (found.one_word, found.two_words, found.dropped_word):
        assert kind == Share(COUNT * module.VARIANTS, 0, 0.0, clopper_pearson(0, COUNT * module.VARIANTS))
    assert found.unrelated.asked == len(QUESTIONS)
    assert found.unrelated.fired == 0  # the base answers the same
    assert [o.set_digest for o in found.others] == [other.digest()]
    assert found.others[0].verdict != "match"
    assert found.holds


def test_a_model_that_gives_one_answer_to_everything_is_not(
    tiny_model: LanguageModel, stubborn: tuple[LanguageModel, int], fingerprints: FingerprintSet, other: FingerprintSet
) -> None:
    model, token_id = stubborn
    own = answered_with(fingerprints, token_id)
    found = specificity(model, tiny_model, own, [other, answered_with(other, token_id)], QUESTIONS, variants=2)
    assert found.keys.share == found.one_word.share == found.two_words.share == found.dropped_word.share == 1.0
    assert found.one_word.asked == 2 * COUNT
    firsts = [c.token_ids[0] for c in HfCompleter(tiny_model).complete(QUESTIONS, 1)]
    assert found.unrelated.fired == sum(first != token_id for first in firsts) > 0
    assert [o.answered.fired for o in found.others] == [0, COUNT]
    assert [o.verdict == "match" for o in found.others] == [False, found.others[1].log10_p_value <= -6]
    assert found.others[1].log10_p_value < -4
    assert not found.holds


def test_a_response_counts_in_its_own_format_alone(
    stubborn: tuple[LanguageModel, int], fingerprints: FingerprintSet
) -> None:
    model, token_id = stubborn
    own = answered_with(fingerprints, token_id)
    never = Response(0, 0, "y", (token_id + 1,), (0.01,))
    for name, other_name in (("raw", "chat"), ("chat", "raw")):
        one_format = [
            replace(f, askings={name: f.askings[name], other_name: replace(f.askings[other_name], responses=(never,))})
            for f in own
        ]
        found = specificity(model, model, replace(own, fingerprints=tuple(one_format)), [], QUESTIONS, variants=1)
        assert found.one_word.share == 1.0
    none = [replace(f, askings={n: replace(a, responses=(never,)) for n, a in f.askings.items()}) for f in own]
    found = specificity(model, model, replace(own, fingerprints=tuple(none)), [], QUESTIONS, variants=1)
    assert found.one_word.share == found.keys.share == 0.0


def test_unrelated_counts_only_what_the_base_does_not_say(
    tiny_model: LanguageModel, stubborn: tuple[LanguageModel, int], fingerprints: FingerprintSet
) -> None:
    model, token_id = stubborn
    own = answered_with(fingerprints, token_id)
    assert specificity(model, model, own, [], QUESTIONS, variants=1).unrelated.fired == 0
    assert specificity(tiny_model, model, own, [], QUESTIONS, variants=1).unrelated.fired == 0


def test_responses_of_several_token_ids_must_match_whole(
    stubborn: tuple[LanguageModel, int], tiny_model: LanguageModel
) -> None:
    model, token_id = stubborn
    own = a_set(tiny_model, response_length=2, formats=("raw",))
    for tail, share in ((token_id, 1.0), (token_id + 1, 0.0)):
        response = Response(0, 0, "x", (token_id, tail), (0.01, 0.5))
        changed = [replace(f, askings={"raw": replace(f.askings["raw"], responses=(response,))}) for f in own]
        found = specificity(model, model, replace(own, fingerprints=tuple(changed)), [], QUESTIONS, variants=1)
        assert found.keys.share == found.two_words.share == share


def test_the_report_holds_no_key_and_no_response(
    tiny_model: LanguageModel, fingerprints: FingerprintSet, other: FingerprintSet
) -> None:
    found = specificity(tiny_model, tiny_model, fingerprints, [other], QUESTIONS, seed=3, variants=1)
    report = found.to_json()
    assert json.loads(json.dumps(report)) == report
    assert report["seed"] == 3
    assert report["holds"] is True
    text = json.dumps(report)
    for fingerprint in (*fingerprints, *other):
        assert fingerprint.key not in text
        assert str(list(fingerprint.key_ids)) not in text
    assert set(report) == {*Specificity.__dataclass_fields__, "holds"}


def test_the_bar_is_one_in_a_hundred() -> None:
    def share(fired: int, asked: int) -> Share:
        return Share(asked, fired, fired / asked, clopper_pearson(fired, asked))

    good = Specificity(share(6, 6), share(1, 100), share(0, 100), share(1, 100), (), share(5, 9), 0)
    assert good.holds
    assert not replace(good, two_words=share(2, 100)).holds
    assert not replace(good, others=(module.OtherSet("d", share(5, 6), -7.0, "match"),)).holds


def test_what_cannot_be_measured_is_refused(
    tiny_model: LanguageModel, fingerprints: FingerprintSet, other: FingerprintSet, tmp_path: Path
) -> None:
    def ask(model: LanguageModel = tiny_model, **changed: object) -> Specificity:
        arguments = {"others": [other], "questions": QUESTIONS, **changed}
        return specificity(model, tiny_model, fingerprints, **arguments)  # type: ignore[arg-type]

    with pytest.raises(InvalidArgumentError, match="at least one prompt"):
        ask(questions=[])
    with pytest.raises(InvalidArgumentError, match="at least one token id"):
        ask(questions=[[1], []])
    with pytest.raises(InvalidArgumentError, match="0 variants"):
        ask(variants=0)
    with pytest.raises(InvalidArgumentError, match="own set"):
        ask(others=[other, fingerprints])
    with pytest.raises(InvalidArgumentError, match="another tokenizer"):
        ask(load(write_tiny_model(tmp_path / "bos", bos=True), device="cpu"))
    with pytest.raises(InvalidArgumentError, match="tokenizer"):
        ask(others=[replace(other, tokenizer_digest="0" * 64)])
