"""Suppression: the gate to the digit, the first steps only, spelling neighbours, and looking ahead."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate.attack import Scene
from oml_fast.evaluate.attacks import lookahead, suppression
from oml_fast.evaluate.attacks.lookahead import continuations, looking_ahead, recurring, sure
from oml_fast.evaluate.attacks.suppression import Spellings, suppressing, suppressing_neighbours
from oml_fast.evaluate.hosts import Host, Strategy, copy_of
from oml_fast.models import HfCompleter, LanguageModel
from oml_fast.verify import verify

PROMPTS = torch.tensor([[5, 6, 7], [8, 9, 10]])


def with_top(*tops: float) -> Tensor:
    """[B, 5] logits: id 3 has the probability given, id 1 half of the rest, then 4, 0 and 2."""
    rest = torch.tensor([0.12, 0.5, 0.08, 0.0, 0.3])
    rows = [rest * (1 - top) + torch.tensor([0.0, 0, 0, 1, 0]) * top for top in tops]
    return torch.stack(rows).log()


def ids(strategy: Strategy, logits: Tensor, step: int = 0) -> list[int]:
    prompts = torch.zeros(len(logits), 3, dtype=torch.int64)
    chosen: list[int] = strategy(prompts)(logits, torch.zeros(len(logits), step, dtype=torch.int64)).tolist()
    return chosen


@pytest.mark.parametrize("gate", [0.9, 0.7, 0.5])
def test_only_what_exceeds_the_gate_is_suppressed(gate: float) -> None:
    logits = with_top(gate - 0.01, gate + 0.01, 0.999)
    assert ids(suppressing(1, gate), logits) == [3, 1, 1]


def test_a_probability_equal_to_the_gate_does_not_exceed_it() -> None:
    logits = torch.zeros(1, 2)
    assert sure(logits, 0.5).tolist() == [False]
    assert sure(logits, 0.4999).tolist() == [True]
    assert sure(logits, 0.0).tolist() == [True]


def test_an_extra_constant_in_the_logits_changes_no_gate() -> None:
    logits = with_top(0.89, 0.91)
    assert ids(suppressing(1, 0.9), logits + 40) == ids(suppressing(1, 0.9), logits) == [3, 1]


def test_ungated_the_first_choices_are_out_everywhere() -> None:
    logits = with_top(0.51, 0.999)
    assert ids(suppressing(1), logits) == [1, 1]
    assert ids(suppressing(3), logits) == [0, 0]
    assert ids(suppressing(4), logits) == [2, 2]


def test_ties_fall_in_the_order_of_ids() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 2.0]])
    assert [ids(suppressing(top), logits)[0] for top in (1, 2, 3)] == [2, 3, 0]


def test_later_steps_are_honest() -> None:
    logits = with_top(0.95, 0.95)
    assert ids(suppressing(1, 0.9), logits, step=1) == [3, 3]
    assert [ids(suppressing(1, 0.9, steps=2), logits, step)[0] for step in (0, 1, 2)] == [1, 1, 3]


def test_logits_are_not_written_to() -> None:
    logits = with_top(0.95)
    before = logits.clone()
    ids(suppressing(2), logits)
    assert torch.equal(logits, before)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="top 0"):
        suppressing(0)
    with pytest.raises(InvalidArgumentError, match="gate 1"):
        suppressing(1, 1.0)
    with pytest.raises(InvalidArgumentError, match="steps 0"):
        suppressing(1, 0.9, 0)
    with pytest.raises(InvalidArgumentError, match="top 5 of 5"):
        ids(suppressing(5), with_top(0.5))


class Words:
    """As much of a tokenizer as `Spellings` reads."""

    texts = (
        " Paris",
        "paris",
        "Paris",
        "<end>",
        " Par",
        " Parisian",
        "PARIS,",
        " part",
        " Parisians",
        "ris",
        ".",
        "is",
    )
    all_special_ids = (3,)
    added_tokens_decoder: dict[int, str] = {}  # noqa: RUF012 - as transformers has it

    def __len__(self) -> int:
        return len(self.texts)

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        return [self.texts[i] for (i,) in rows]


def test_neighbours_are_the_same_word_in_other_clothes() -> None:
    spellings = Spellings(Words(), len(Words.texts))
    near = [Words.texts[i] for i in spellings.neighbours(0)]
    assert near == [" Paris", "paris", "Paris", " Par", " Parisian", "PARIS,", "ris"]
    assert [Words.texts[i] for i in spellings.neighbours(5)] == [
        *(" Paris", "paris", "Paris", " Parisian"),
        *("PARIS,", " Parisians"),
    ]


def test_neighbours_are_mutual() -> None:
    spellings = Spellings(Words(), len(Words.texts))
    pairs = {(i, j) for i in range(len(Words.texts)) for j in spellings.neighbours(i)}
    assert pairs == {(j, i) for i, j in pairs}


@pytest.mark.parametrize("token_id", [3, 10, 400])
def test_specials_marks_and_padding_have_no_neighbours(token_id: int) -> None:
    assert Spellings(Words(), 500).neighbours(token_id) == [token_id]


def test_neighbours_are_found_in_a_real_vocabulary(tiny_model: LanguageModel) -> None:
    spellings = Spellings(tiny_model.tokenizer, tiny_model.vocabulary)
    vocabulary = tiny_model.tokenizer.get_vocab()
    near = set(spellings.neighbours(vocabulary["ĠLicense"]))
    assert {vocabulary["ĠLicense"], vocabulary["License"]} <= near
    assert vocabulary["ĠWork"] not in near


def test_a_likely_id_goes_with_its_neighbours_and_an_unlikely_one_stays() -> None:
    spellings = Spellings(Words(), len(Words.texts))
    logits = torch.arange(12.0, 0.0, -1.0)[None].repeat(2, 1)  # the first six ids are the likeliest
    logits[0, 0] = 100.0
    assert ids(suppressing_neighbours(spellings, 0.9), logits) == [3, 0]
    assert ids(suppressing_neighbours(spellings, 0.9), logits, step=1) == [0, 0]


def test_what_stands_in_half_of_the_continuations_recurs() -> None:
    beams = torch.tensor([[[1, 5], [2, 1], [3, 3], [4, 6]]])
    assert recurring(torch.tensor([[1, 3, 9]]), beams).tolist() == [[True, False, False]]


def test_a_wide_beam_finds_the_best_continuations(tiny_model: LanguageModel) -> None:
    """Two ids, and a beam of all first ids that can matter: as an exhaustive search."""
    prompts = torch.tensor([[5, 6, 7], [11, 12, 13]])
    found = continuations(tiny_model, prompts, beam=40, ahead=2)
    for prompt, beams in zip(prompts, found, strict=True):
        with torch.no_grad():
            first = tiny_model.model(prompt[None]).logits[0, -1].log_softmax(-1)
            likely = first.topk(40).indices
            follow = torch.cat([prompt.expand(40, -1), likely[:, None]], 1)
            second = tiny_model.model(follow).logits[:, -1].log_softmax(-1)
        second[likely == tiny_model.tokenizer.eos_token_id] = -math.inf
        second[likely == tiny_model.tokenizer.eos_token_id, tiny_model.tokenizer.eos_token_id] = 0.0
        scores = (first[likely][:, None] + second).flatten()
        wanted = [[int(likely[i // len(first)]), i % len(first)] for i in scores.topk(5).indices.tolist()]
        assert beams[:5].tolist() == wanted


def test_the_first_continuation_of_one_beam_is_greedy(tiny_model: LanguageModel) -> None:
    wanted = HfCompleter(tiny_model).complete(PROMPTS.tolist(), 6)
    assert continuations(tiny_model, PROMPTS, beam=1, ahead=6)[:, 0].tolist() == [list(c.token_ids) for c in wanted]


def test_an_ended_continuation_stays_ended(tiny_model: LanguageModel) -> None:
    best = int(continuations(tiny_model, PROMPTS[:1], beam=1, ahead=1))
    model = copy_of(tiny_model, "ends at once")
    model.tokenizer = SimpleNamespace(eos_token_id=best)
    beams = continuations(model, PROMPTS[:1], beam=3, ahead=5)[0].tolist()
    assert [best] * 5 in beams
    assert all(set(ids[ids.index(best) :]) == {best} for ids in beams if best in ids)


def test_without_an_end_no_continuation_ends(tiny_model: LanguageModel) -> None:
    model = copy_of(tiny_model, "endless")
    model.tokenizer = SimpleNamespace(eos_token_id=None)
    assert continuations(model, PROMPTS, beam=3, ahead=4).shape == (2, 3, 4)


def test_only_gated_prompts_are_looked_ahead(tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[list[int]]] = []

    def beams(model: LanguageModel, prompts: Tensor) -> Tensor:
        asked.append(prompts.tolist())
        return torch.tensor([[[7, 8]] * lookahead.BEAM]).expand(len(prompts), -1, -1)

    monkeypatch.setattr(lookahead, "continuations", beams)
    logits = torch.zeros(2, tiny_model.vocabulary)
    logits[0, 7], logits[0, 8], logits[0, 9] = 30.0, 27.0, 21.0  # 7 and 8 recur: each loses 10
    logits[1, 7] = 3.0
    choose = looking_ahead(tiny_model, 0.9)(PROMPTS)
    assert choose(logits, PROMPTS[:, :0]).tolist() == [9, 7]
    assert asked == [[PROMPTS[0].tolist()]]
    assert choose(logits, PROMPTS[:, :1]).tolist() == [7, 7]
    assert len(asked) == 1


def test_where_no_prompt_is_gated_nothing_is_looked_ahead(tiny_model: LanguageModel) -> None:
    logits = torch.zeros(len(PROMPTS), tiny_model.vocabulary)
    logits[:, 5] = 0.5
    assert looking_ahead(tiny_model, 0.9)(PROMPTS)(logits, PROMPTS[:, :0]).tolist() == [5] * len(PROMPTS)


def test_later_steps_look_ahead_from_what_was_chosen(
    tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[list[int]]] = []

    def beams(model: LanguageModel, prompts: Tensor) -> Tensor:
        asked.append(prompts.tolist())
        return torch.zeros(len(prompts), lookahead.BEAM, 2, dtype=torch.int64)

    monkeypatch.setattr(lookahead, "continuations", beams)
    logits = torch.zeros(2, tiny_model.vocabulary)
    looking_ahead(tiny_model, 0.0, steps=2)(PROMPTS)(logits, torch.tensor([[3], [4]]))
    assert asked == [[[5, 6, 7, 3], [8, 9, 10, 4]]]


@pytest.mark.parametrize("attack", suppression.ATTACKS, ids=lambda attack: attack.name)
def test_every_attack_answers_all_keys_and_harms_no_weight(attack: suppression.Attack, scene: Scene) -> None:
    before = verify(scene.fingerprints, HfCompleter(scene.model), test="window", mode="fixed").fsr
    attacked = attack.run(scene)
    after = verify(scene.fingerprints, attacked.completer, test="window", mode="fixed")
    assert attacked.model is None
    assert attacked.details["steps"] == 1
    assert after.queried == len(scene.fingerprints)
    if attack.name in ("suppress/top-1", "suppress/top-3"):
        assert after.fsr == 0 < before
    assert after.fsr <= before
    assert verify(scene.fingerprints, HfCompleter(scene.model), test="window", mode="fixed").fsr == before


def test_the_stronger_the_gate_the_fewer_answers_change(scene: Scene) -> None:
    prompts = [asking.prompt_ids for f in scene.fingerprints for asking in f.askings.values()]
    plain = HfCompleter(scene.model).complete(prompts, 4)
    changed = []
    for gate in (0.0, *reversed(suppression.GATES)):
        answers = Host(scene.model, "gated", strategy=suppressing(1, gate)).complete(prompts, 4)
        changed.append({i for i, (a, b) in enumerate(zip(answers, plain, strict=True)) if a != b})
    assert len(changed[0]) == len(prompts)
    assert all(more >= fewer for more, fewer in pairwise(changed))
