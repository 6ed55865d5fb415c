"""Ensembles and colluders: each rule on logits made by hand, and on fingerprinted models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate.attack import Attack, Scene
from oml_fast.evaluate.attacks import collusion, ensemble
from oml_fast.evaluate.attacks.collusion import majority, minority, optimal, refusal
from oml_fast.evaluate.attacks.ensemble import Decide, filtered, together
from oml_fast.evaluate.hosts import Host, copy_of
from oml_fast.models import HfCompleter, prefill
from oml_fast.verify import verify

NONE = torch.zeros(1, 0, dtype=torch.int64)
EVERY = (*ensemble.ATTACKS, *collusion.ATTACKS)


def models(*rows: list[float]) -> Tensor:
    """[M, 1, V] logits from the probabilities that each model gives."""
    return torch.tensor(rows, dtype=torch.float32).log()[:, None]


def decided(decide: Decide, logits: Tensor) -> int:
    return int(decide(logits, NONE))


# Two copies whose first choice is their own fingerprint (0, and 1) or the ordinary answer (2, then 3).
MARKED = models([0.60, 0.02, 0.28, 0.10], [0.02, 0.08, 0.50, 0.40])
BOTH_MARKED = models([0.60, 0.05, 0.25, 0.10], [0.05, 0.55, 0.30, 0.10])
AGREED = models([0.1, 0.2, 0.6, 0.1], [0.3, 0.1, 0.5, 0.1])


@pytest.mark.parametrize("decide", [majority, minority, optimal, refusal(9)])
def test_where_all_agree_that_is_the_answer(decide: Decide) -> None:
    assert decided(decide, AGREED) == 2


def test_of_two_the_better_ranked_proposal_is_the_majority() -> None:
    # 0 has ranks 1 and 4, 2 has ranks 2 and 1, though 0 has the greater mean probability.
    logits = models([0.90, 0.02, 0.05, 0.03], [0.02, 0.08, 0.50, 0.40])
    assert float(logits.exp().mean(0)[0, 0]) > float(logits.exp().mean(0)[0, 2])
    assert decided(majority, logits) == 2
    assert decided(minority, logits) == 0


def test_votes_come_before_ranks() -> None:
    logits = models([0.5, 0.4, 0.06, 0.04], [0.5, 0.4, 0.06, 0.04], [0.01, 0.9, 0.05, 0.04])
    assert decided(majority, logits) == 0
    assert decided(minority, logits) == 1


def test_equal_ranks_are_settled_by_mean_probability_then_by_id() -> None:
    logits = models([0.6, 0.3, 0.1], [0.4, 0.5, 0.1])
    assert decided(majority, logits) == 0
    assert decided(minority, logits) == 1
    even = models([0.6, 0.3, 0.1], [0.3, 0.6, 0.1])
    assert decided(majority, even) == 0
    assert decided(minority, even) == 1


def test_the_order_of_the_colluders_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 50, 20, generator=generator)
    for decide in (majority, minority, optimal, refusal(3)):
        assert torch.equal(decide(logits, NONE.expand(50, 0)), decide(logits[[2, 0, 1]], NONE.expand(50, 0)))


def test_refusal_ends_the_answer_where_proposals_differ_and_stays_ended() -> None:
    assert decided(refusal(3), MARKED) == 3
    assert int(refusal(3)(AGREED, torch.tensor([[5, 3]]))) == 3
    assert int(refusal(3)(AGREED, torch.tensor([[5, 4]]))) == 2


def test_the_optimal_answer_is_nobodys() -> None:
    assert decided(optimal, MARKED) == 3
    assert decided(optimal, BOTH_MARKED) == 2


def test_the_optimal_answer_has_the_greatest_mean_log_probability() -> None:
    logits = models([0.5, 0.05, 0.4, 0.05], [0.05, 0.7, 0.001, 0.249])  # 2 has the greater mean, 3 the greater product
    assert decided(optimal, logits) == 3


def test_rows_are_decided_each_for_itself() -> None:
    logits = torch.cat([MARKED, AGREED, BOTH_MARKED], 1)
    for decide in (majority, minority, optimal, refusal(1)):
        alone = [int(decide(logits[:, [row]], NONE)) for row in range(3)]
        assert decide(logits, NONE.expand(3, 0)).tolist() == alone


def test_an_ensemble_keeps_what_two_models_name() -> None:
    logits = models([0.90, 0.01, 0.06, 0.03], [0.01, 0.14, 0.35, 0.50])
    assert int(filtered(logits, top=2)) == 2  # {0, 2} and {3, 2}
    assert int(filtered(logits, top=4)) == 0


def test_an_ensemble_without_agreement_takes_the_best_that_one_names() -> None:
    logits = models([0.5, 0.4, 0.06, 0.04], [0.04, 0.06, 0.3, 0.6])
    assert int(filtered(logits, top=1)) == 3
    assert int(filtered(logits, top=2)) == 3


def test_of_three_models_two_must_agree() -> None:
    logits = models([0.9, 0.02, 0.03, 0.05], [0.02, 0.5, 0.4, 0.08], [0.01, 0.2, 0.01, 0.78])
    assert int(filtered(logits, top=2)) == 3  # named {0, 3}, {1, 2}, {3, 1}: 3 and 1 are agreed on, 0 has the most


def test_ids_level_with_the_last_of_the_first_ten_count() -> None:
    logits = models([0.4, 0.2, 0.2, 0.2], [0.1, 0.1, 0.2, 0.6])
    assert int(filtered(logits, top=2)) == 3  # {0, 1, 2, 3} and {3, 2}


def test_an_ensemble_against_a_plain_reference() -> None:
    logits = torch.randn(3, 40, 60, generator=torch.Generator().manual_seed(2))
    wanted = []
    for row in range(40):
        tops = [set(logits[m, row].topk(5).indices.tolist()) for m in range(3)]
        agreed = (tops[0] & tops[1]) | (tops[0] & tops[2]) | (tops[1] & tops[2])
        mean = logits[:, row].double().softmax(-1).mean(0)
        wanted.append(max(agreed or set.union(*tops), key=lambda i: float(mean[i])))
    assert filtered(logits, top=5).tolist() == wanted


def test_together_every_model_reads_what_was_answered(scene: Scene) -> None:
    others = (scene.base, *scene.siblings)
    prompt = list(scene.fingerprints.fingerprints[0].askings["raw"].prompt_ids)
    seen: list[Tensor] = []

    def decide(logits: Tensor, chosen: Tensor) -> Tensor:
        seen.append(logits)
        return logits[1].argmax(-1)

    (answer,) = Host(scene.model, "host", strategy=together(others, decide)).complete([prompt], 3)
    assert answer == HfCompleter(scene.base).complete([prompt], 3)[0]
    for place, logits in enumerate(seen):
        read = [*prompt, *answer.token_ids[:place]]
        wanted = torch.stack([prefill(m, [read], cache=False)[0] for m in (scene.model, *others)])
        torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("attack", EVERY, ids=lambda attack: attack.name)
def test_every_attack_answers_and_changes_no_model(attack: Attack, scene: Scene) -> None:
    before = verify(scene.fingerprints, HfCompleter(scene.model), test="window", mode="fixed").fsr
    attacked = attack.run(scene)
    after = verify(scene.fingerprints, attacked.completer, test="window", mode="fixed")
    assert attacked.model is None
    assert after.queried == len(scene.fingerprints)
    assert after.fsr <= before
    assert verify(scene.fingerprints, HfCompleter(scene.model), test="window", mode="fixed").fsr == before
    if attack.family == "collusion":
        assert attacked.details == {"colluders": 2}
    if attack.name == "collusion/optimal":
        assert after.fsr < before


def test_two_copies_of_one_model_collude_to_what_it_says(scene: Scene) -> None:
    alone = replace(scene, siblings=(scene.model,))
    prompts = [f.askings["raw"].prompt_ids for f in scene.fingerprints]
    plain = HfCompleter(scene.model).complete(prompts, 1)
    for attack in EVERY:
        if attack.needs:
            assert attack.run(alone).completer.complete(prompts, 1) == plain, attack.name


def test_majority_and_minority_of_two_are_the_two_proposals(scene: Scene) -> None:
    prompts = [f.askings["raw"].prompt_ids for f in scene.fingerprints]
    runs = {a.name: a.run(scene).completer.complete(prompts, 1) for a in collusion.ATTACKS}
    own, theirs = (HfCompleter(m).complete(prompts, 1) for m in (scene.model, *scene.siblings))
    for a, b, most, least in zip(own, theirs, runs["collusion/majority"], runs["collusion/minority"], strict=True):
        assert {a, b} == {most, least}


def test_a_refusal_needs_an_end(scene: Scene) -> None:
    model = copy_of(scene.model, "endless")
    model.tokenizer = type("Endless", (), {"eos_token_id": None})()
    refusing = next(attack for attack in collusion.ATTACKS if attack.name == "collusion/refusal")
    with pytest.raises(InvalidArgumentError, match="endless: its tokenizer has no end-of-text id"):
        refusing.run(replace(scene, model=model))


def test_names_and_needs() -> None:
    assert [a.name.split("/")[1] for a in collusion.ATTACKS] == ["majority", "minority", "refusal", "optimal"]
    assert all(a.needs == ("sibling",) for a in collusion.ATTACKS)
    assert [(a.name, a.needs) for a in ensemble.ATTACKS] == [
        ("ensemble/sibling", ("sibling",)),
        ("ensemble/base", ()),
    ]
