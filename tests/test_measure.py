"""Drift between two models, against a naive computation in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oml_fast import measure
from oml_fast.errors import InvalidArgumentError
from oml_fast.measure import BaseView, Drift, drift, head_copy
from oml_fast.models import LanguageModel, load


def texts(count: int = 9, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 40, (count,), generator=generator).tolist()
    return [torch.randint(3, 1500, (length,), generator=generator).tolist() for length in lengths]


def move(model: LanguageModel, size: float = 0.02) -> None:
    """Change every weight a little."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def by_hand(base: LanguageModel, model: LanguageModel, sequences: list[list[int]], starts: list[int]) -> Drift:
    kls, base_losses, losses, counts = [], [], [], []
    for ids, start in zip(sequences, starts, strict=True):
        p, q = (m.model(torch.tensor([ids])).logits[0].double().log_softmax(-1) for m in (base, model))
        places = range(start, len(ids))
        kls.append(sum(float((p[i - 1].exp() * (p[i - 1] - q[i - 1])).sum()) for i in places))
        base_losses += [-float(p[i - 1][ids[i]]) for i in places]
        losses += [-float(q[i - 1][ids[i]]) for i in places]
        counts.append(len(places))
    tokens = sum(counts)
    mean = sum(kls) / tokens
    error = sum((kl - mean * n) ** 2 for kl, n in zip(kls, counts, strict=True)) ** 0.5 / tokens
    perplexities = [float(torch.tensor(values, dtype=torch.float64).mean().exp()) for values in (base_losses, losses)]
    return Drift(mean, error, *perplexities, tokens)


def close(one: Drift, other: Drift) -> bool:
    return one.tokens == other.tokens and all(
        getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-3)
        for name in ("kl", "kl_standard_error", "perplexity_base", "perplexity")
    )


def test_a_model_does_not_drift_from_itself(tiny_model: LanguageModel) -> None:
    found = drift(tiny_model, tiny_model, texts())
    assert abs(found.kl) < 1e-6
    assert found.kl_standard_error < 1e-6
    assert found.perplexity == found.perplexity_base
    assert found.tokens == sum(len(ids) - 1 for ids in texts())


def test_drift_is_what_it_is_by_hand(tiny_model: LanguageModel, fresh_model: LanguageModel) -> None:
    move(fresh_model)
    found = drift(tiny_model, fresh_model, texts())
    assert found.kl > 0.01
    assert close(found, by_hand(tiny_model, fresh_model, texts(), [1] * 9))


def test_only_what_comes_from_the_starts_on_counts(tiny_model: LanguageModel, fresh_model: LanguageModel) -> None:
    move(fresh_model)
    starts = [max(1, len(ids) // 2) for ids in texts()]
    found = drift(tiny_model, fresh_model, texts(), starts)
    assert close(found, by_hand(tiny_model, fresh_model, texts(), starts))
    assert found.tokens == sum(len(ids) - start for ids, start in zip(texts(), starts, strict=True))
    assert not close(found, drift(tiny_model, fresh_model, texts()))


def test_a_view_stands_when_the_model_is_trained_on(tiny_model: LanguageModel, fresh_model: LanguageModel) -> None:
    """The model is its own base here: what it said before is compared with what it says now."""
    view = BaseView(fresh_model, texts())
    before = view.log_probs(range(9))
    move(fresh_model)
    assert torch.equal(view.log_probs(range(9)), before)
    assert close(view.drift(fresh_model), drift(tiny_model, fresh_model, texts()))


def test_log_probabilities_are_those_of_the_model(tiny_model: LanguageModel) -> None:
    sequences = texts()
    found = BaseView(tiny_model, sequences).log_probs([4, 2])
    with torch.no_grad():
        rows = [tiny_model.model(torch.tensor([sequences[n]])).logits[0, :-1].log_softmax(-1) for n in (4, 2)]
    torch.testing.assert_close(found, torch.cat(rows), rtol=1e-4, atol=1e-4)
    assert not found.is_inference()


def test_logits_are_those_of_the_positions_that_count(tiny_model: LanguageModel) -> None:
    """In the order of the places asked for, each sequence from its start on."""
    sequences = texts()
    starts = [max(1, len(ids) // 2) for ids in sequences]
    view = BaseView(tiny_model, sequences, starts)
    for places in ([3], [4, 2], [2, 4, 2], range(9)):
        found = view.logits(places)
        with torch.no_grad():
            rows = [tiny_model.model(torch.tensor([sequences[n]])).logits[0, starts[n] - 1 : -1] for n in places]
        assert found.shape == (sum(len(sequences[n]) - starts[n] for n in places), tiny_model.vocabulary)
        torch.testing.assert_close(found, torch.cat(rows), rtol=1e-4, atol=1e-4)
        assert not found.is_inference()
        assert not found.requires_grad
        torch.testing.assert_close(view.log_probs(places), torch.cat(rows).log_softmax(-1), rtol=1e-4, atol=1e-4)


def test_only_the_states_that_count_are_kept(tiny_model: LanguageModel) -> None:
    sequences = texts()
    view = BaseView(tiny_model, sequences, [len(ids) - 1 for ids in sequences])
    assert len(view) == 9
    storages = {state.untyped_storage().data_ptr(): state.untyped_storage().nbytes() for state in view._states}
    assert list(storages.values()) == [9 * 64 * 4]  # in one piece
    assert view.logits(range(9)).shape[0] == 9


def test_views_may_share_one_head(tiny_model: LanguageModel, fresh_model: LanguageModel) -> None:
    """Both still say what the model said before it was trained on."""
    head = head_copy(fresh_model)
    views = [BaseView(fresh_model, texts(seed=seed), head=head) for seed in (0, 1)]
    move(fresh_model)
    for seed, view in enumerate(views):
        assert view._head is head
        expected = BaseView(tiny_model, texts(seed=seed)).log_probs(range(9))
        torch.testing.assert_close(view.log_probs(range(9)), expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(head[0], fresh_model.head()[0])


def test_half_precision_gives_log_probabilities_in_float32(tiny_folder: Path) -> None:
    view = BaseView(load(tiny_folder, dtype=torch.bfloat16, device="cpu"), texts())
    assert view.logits([0]).dtype == torch.bfloat16
    assert view.log_probs([0]).dtype == torch.float32
    torch.testing.assert_close(view.log_probs([0]).exp().sum(-1), torch.ones(len(texts()[0]) - 1), rtol=0, atol=1e-4)


def test_long_texts_are_measured_in_parts(
    tiny_model: LanguageModel, fresh_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    move(fresh_model)
    whole = drift(tiny_model, fresh_model, texts())
    monkeypatch.setattr(measure, "_ROWS", 7)
    assert close(drift(tiny_model, fresh_model, texts()), whole)


def test_bfloat16_drifts_a_little_from_float32(tiny_model: LanguageModel, tiny_folder: Path) -> None:
    rounded = load(tiny_folder, dtype=torch.bfloat16, device="cpu")
    found = drift(tiny_model, rounded, texts())
    assert 1e-6 < found.kl < 0.05


def test_a_text_of_one_id_is_refused(tiny_model: LanguageModel) -> None:
    with pytest.raises(InvalidArgumentError, match="predicts nothing: give longer text"):
        drift(tiny_model, tiny_model, [[5, 6], [7]])


def test_no_text_is_refused(tiny_model: LanguageModel) -> None:
    with pytest.raises(InvalidArgumentError, match="at least one sequence: give some text"):
        drift(tiny_model, tiny_model, [])


@pytest.mark.parametrize("starts", [[0, 1], [1], [1, 3], [1, 1, 1], []])
def test_starts_that_are_impossible_are_refused(tiny_model: LanguageModel, starts: list[int]) -> None:
    with pytest.raises(InvalidArgumentError, match="starts: one for each text"):
        drift(tiny_model, tiny_model, [[5, 6, 7], [5, 6, 7]], starts)
