"""VllmCompleter with real vLLM, in bfloat16 on the CPU, against plain transformers on the same fingerprinted model.

The two round differently, so they may differ where transformers itself hardly prefers one answer: wherever float32
leaves more than the error of bfloat16 between two candidates (Exact.tolerance), both must say the same.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from statistics import fmean

import pytest
from fingerprinted import Exact, Subject

from oml_fast import verify
from oml_fast.completer import CHOOSE, SCORE, capabilities
from oml_fast.errors import CompleterError, InvalidArgumentError
from oml_fast.models import HfCompleter, load
from oml_fast.serving import VllmCompleter

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.real_model,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),  # vLLM leaves it so
]


@pytest.fixture(scope="module")
def engine(subject: Subject, vllm_settings: None) -> Iterator[VllmCompleter]:
    options = {"enforce_eager": True}
    with VllmCompleter(subject.folder, dtype="bfloat16", max_model_len=256, engine_options=options) as completer:
        yield completer
    gc.collect()  # here, where the warning of its unclosed socket context is expected


def test_it_says_what_it_is(engine: VllmCompleter, exact: Exact) -> None:
    import vllm

    assert engine.name == f"vllm {vllm.__version__} (cpu, bfloat16)"
    assert engine.tokenizer_digest == exact.model.tokenizer_digest
    assert capabilities(engine) == {SCORE, CHOOSE}


def test_fingerprints_are_found(engine: VllmCompleter, subject: Subject) -> None:
    completions = engine.complete(subject.prompts, 1)
    found = [
        completion.token_ids == response for completion, response in zip(completions, subject.responses, strict=True)
    ]
    assert sum(found) >= 0.98 * len(found)


def test_completions_are_those_of_transformers(engine: VllmCompleter, subject: Subject, exact: Exact) -> None:
    tokenizer = exact.model.tokenizer
    for row, completion in enumerate(engine.complete(subject.prompts, 1)):
        (token_id,) = completion.token_ids
        assert completion.text == tokenizer.decode([token_id])
        assert exact.logprobs[row, token_id] >= exact.logprobs[row].max() - 2 * exact.tolerance


def test_longer_completions_have_their_length_and_begin_the_same(engine: VllmCompleter, subject: Subject) -> None:
    longer = engine.complete(subject.prompts[:8], 7)
    assert [len(completion.token_ids) for completion in longer] == [7] * 8
    first = engine.complete(subject.prompts[:8], 1)
    assert [completion.token_ids[:1] for completion in longer] == [completion.token_ids for completion in first]


def test_scores_are_those_of_transformers(engine: VllmCompleter, subject: Subject, exact: Exact) -> None:
    scored = engine.score(subject.prompts, subject.windows, 1)
    errors = [
        abs(score - float(exact.logprobs[row, token_id]))
        for row, (own, completion) in enumerate(zip(subject.windows, scored, strict=True))
        for token_id, score in zip(own, completion.scores or (), strict=True)
    ]
    assert max(errors) <= exact.tolerance
    assert fmean(errors) <= exact.mean_tolerance
    plain = engine.complete(subject.prompts, 1)
    assert [completion.token_ids for completion in scored] == [completion.token_ids for completion in plain]


def test_the_order_is_that_of_transformers(engine: VllmCompleter, subject: Subject, exact: Exact) -> None:
    pairs = 0
    for row, (own, completion) in enumerate(
        zip(subject.windows, engine.score(subject.prompts, subject.windows, 1), strict=True)
    ):
        theirs = exact.logprobs[row, list(own)].tolist()
        for i in range(len(own)):
            for j in range(i):
                if abs(theirs[i] - theirs[j]) > 2 * exact.tolerance:
                    pairs += 1
                    assert ((completion.scores or ())[i] > (completion.scores or ())[j]) == (theirs[i] > theirs[j])
    assert pairs > 1000  # of 7,680


def test_choices_are_those_of_transformers(engine: VllmCompleter, subject: Subject, exact: Exact) -> None:
    chosen = engine.choose(subject.prompts, subject.windows)
    same = 0
    for row, (own, completion, theirs) in enumerate(
        zip(
            subject.windows,
            chosen,
            HfCompleter(exact.model).choose(subject.prompts, subject.windows),
            strict=True,
        )
    ):
        (token_id,) = completion.token_ids
        assert token_id in own
        assert exact.logprobs[row, token_id] >= exact.logprobs[row, list(own)].max() - 2 * exact.tolerance
        same += completion.token_ids == theirs.token_ids
    assert same >= 0.98 * len(chosen)


def test_a_choice_that_the_model_would_never_make(engine: VllmCompleter, subject: Subject) -> None:
    """One candidate alone is chosen, however unlikely; and the constraint does not outlive its request."""
    others = [(1000 + row,) for row in range(8)]
    assert [one.token_ids for one in engine.choose(subject.prompts[:8], others)] == others
    assert engine.complete(subject.prompts[:8], 1) != engine.choose(subject.prompts[:8], others)


def test_of_tied_candidates_the_smallest_id_is_chosen(engine: VllmCompleter) -> None:
    """With 100 candidates the best tie exactly in bfloat16 in one row of 20. The two requests may round differently."""
    prompts = [(1000 + row, 2000 + row, 3000 + row) for row in range(512)]
    wide = [tuple(range(20_000 + 50 * row, 20_100 + 50 * row))[::-1] for row in range(512)]
    scored, chosen = engine.score(prompts, wide, 1), engine.choose(prompts, wide)
    as_expected = ties = 0
    for own, of_score, of_choice in zip(wide, scored, chosen, strict=True):
        scores = dict(zip(own, of_score.scores or (), strict=True))
        best = [token_id for token_id in own if scores[token_id] == max(scores.values())]
        if len(best) > 1:
            ties += 1
            as_expected += of_choice.token_ids == (min(best),)
    assert ties >= 3
    assert as_expected >= 0.7 * ties


def test_agreement(engine: VllmCompleter, subject: Subject) -> None:
    own = [completion.token_ids for completion in engine.complete(subject.prompts, 3)]
    agreed = engine.agrees(subject.prompts, own)
    assert sum(agreed) >= 0.9 * len(own)  # prefill and decoding round differently
    changed = [(row[0] + 1, *row[1:]) for row in own]
    assert not any(engine.agrees(subject.prompts, changed))
    responses = engine.agrees(subject.prompts, subject.responses)
    assert sum(responses) >= 0.98 * len(responses)


def test_the_verdict_is_that_of_transformers(engine: VllmCompleter, subject: Subject) -> None:
    ours, theirs = (verify(subject.fingerprints, each) for each in (engine, HfCompleter(load(subject.folder))))
    assert ours.verdict == theirs.verdict == "match"


def test_what_the_engine_cannot_take_is_refused_and_it_goes_on(engine: VllmCompleter, subject: Subject) -> None:
    with pytest.raises(CompleterError, match="the suspect has 49152: it has another tokenizer"):
        engine.complete([(5, 49_152)], 1)
    with pytest.raises(CompleterError, match="start it with max_model_len=261 or more"):
        engine.complete([(5,) * 255], 6)
    with pytest.raises(CompleterError, match=r"vLLM did not answer: .*logprob_token_ids of length 200"):
        engine.score([(5, 6)], [tuple(range(200))], 1)
    assert engine.complete([], 1) == []
    assert len(engine.complete(subject.prompts[:2], 1)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "float12"}, "dtype.*: Input should be 'auto', 'half'"), ({"engine_options": {"colour": 1}}, "colour")],
)
def test_options_that_vllm_refuses(
    subject: Subject, vllm_settings: None, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"vLLM refuses its options: .*{message}"):
        VllmCompleter(subject.folder, **options)  # type: ignore[arg-type]


def test_samples_follow_their_seed(engine: VllmCompleter, subject: Subject) -> None:
    prompts = [fingerprint.askings["raw"].prompt_ids for fingerprint in subject.fingerprints][:6]
    first = engine.sample(prompts, 8, 1.0, seed=3)
    assert [len(ids) for ids in first] == [8] * 6
    assert engine.sample(prompts, 8, 1.0, seed=3) == first
    assert engine.sample(prompts, 8, 1.0, seed=4) != first
