"""Nucleus projection: the nucleus against a plain reference, the first step only, and copies of one base only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate.attack import Attack, Scene
from oml_fast.evaluate.attacks import collusion, ensemble, projection
from oml_fast.evaluate.attacks.projection import nucleus, projecting
from oml_fast.evaluate.hosts import Host, copy_of
from oml_fast.models import HfCompleter, LanguageModel, prefill
from oml_fast.verify import verify

WITH_OTHERS = (*projection.ATTACKS, *ensemble.ATTACKS, *collusion.ATTACKS)
WITH_SIBLING = tuple(attack for attack in WITH_OTHERS if attack.needs)


@pytest.fixture
def foreign(tiny_model: LanguageModel) -> LanguageModel:
    model = copy_of(tiny_model, "other")
    model.tokenizer_digest = "1" * 64
    return model


def plain_nucleus(row: Tensor, threshold: float) -> set[int]:
    """Science, section 1: by p falling, ties by id rising, until the mass is reached, that id included."""
    probs = row.double().softmax(-1).tolist()
    mass, inside = 0.0, set()
    for token_id in sorted(range(len(probs)), key=lambda i: (-float(row[i]), i)):
        inside.add(token_id)
        mass += probs[token_id]
        if mass >= threshold:
            break
    return inside


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8, 0.99])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_the_nucleus_is_that_of_the_definition(threshold: float, spread: float) -> None:
    logits = torch.randn(7, 211, generator=torch.Generator().manual_seed(0)) * spread
    logits = (logits * 4).round() / 4  # many ties
    for row, inside in zip(logits, nucleus(logits, threshold), strict=True):
        assert set(inside.nonzero().flatten().tolist()) == plain_nucleus(row, threshold)


def test_the_id_that_reaches_the_threshold_is_inside() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.05, 0.05, 0.9]]).log()
    assert nucleus(logits, 0.6).tolist() == [[True, True, False], [False, False, True]]


def test_the_first_id_is_the_best_inside_and_the_rest_is_greedy(scene: Scene) -> None:
    judge = scene.siblings[0]
    prompts = [list(f.askings["raw"].prompt_ids) for f in scene.fingerprints]
    for ids in prompts:
        own, _ = prefill(scene.model, [ids], cache=False)
        allowed = plain_nucleus(prefill(judge, [ids], cache=False)[0][0], 0.8)
        (answer,) = Host(scene.model, "host", strategy=projecting(judge)).complete([ids], 3)
        first = max(sorted(allowed), key=lambda i: float(own[0, i]))
        (rest,) = HfCompleter(scene.model).complete([[*ids, first]], 2)
        assert answer.token_ids == (first, *rest.token_ids)


def test_more_steps_follow_the_judge_along(scene: Scene) -> None:
    prompt = list(scene.fingerprints.fingerprints[0].askings["raw"].prompt_ids)
    host = Host(scene.model, "host", strategy=projecting(scene.base, 0.5, steps=3))
    (answer,) = host.complete([prompt], 3)
    for place, token_id in enumerate(answer.token_ids):
        seen = [*prompt, *answer.token_ids[:place]]
        assert token_id in plain_nucleus(prefill(scene.base, [seen], cache=False)[0][0], 0.5)


def test_with_the_clean_base_no_perinucleus_response_is_left(scene: Scene) -> None:
    assert verify(scene.fingerprints, HfCompleter(scene.model), test="window", mode="fixed").fsr > 0
    attacked = projection.ATTACKS[0].run(scene)
    assert verify(scene.fingerprints, attacked.completer, test="window", mode="fixed").fsr == 0
    assert attacked.model is None


def test_with_itself_as_judge_a_host_is_honest(scene: Scene) -> None:
    prompts = [f.askings["raw"].prompt_ids for f in scene.fingerprints]
    host = Host(scene.model, "host", strategy=projecting(scene.model))
    assert host.complete(prompts, 2) == HfCompleter(scene.model).complete(prompts, 2)


def test_names_and_needs() -> None:
    assert [attack.name for attack in projection.ATTACKS] == ["projection/base", "projection/sibling"]
    assert [attack.needs for attack in projection.ATTACKS] == [(), ("sibling",)]


@pytest.mark.parametrize("attack", WITH_SIBLING, ids=lambda attack: attack.name)
def test_without_a_sibling_it_is_refused(attack: Attack, scene: Scene) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{attack.name} needs another fingerprinted copy.*--sibling"):
        attack.run(replace(scene, siblings=()))


@pytest.mark.parametrize("attack", WITH_SIBLING, ids=lambda attack: attack.name)
def test_a_sibling_with_another_tokenizer_is_refused(attack: Attack, scene: Scene) -> None:
    other = copy_of(scene.siblings[0], "stranger")
    other.tokenizer_digest = "0" * 64
    with pytest.raises(InvalidArgumentError, match=r"stranger .* has another tokenizer or vocabulary"):
        attack.run(replace(scene, siblings=(other,)))


@pytest.mark.parametrize("attack", WITH_SIBLING, ids=lambda attack: attack.name)
def test_a_sibling_with_another_vocabulary_is_refused(attack: Attack, scene: Scene) -> None:
    other = copy_of(scene.siblings[0], "wider")
    other.model.resize_token_embeddings(other.vocabulary + 8)
    with pytest.raises(InvalidArgumentError, match=f"wider .{scene.model.vocabulary + 8} token ids"):
        attack.run(replace(scene, siblings=(other,)))


@pytest.mark.parametrize("attack", [a for a in WITH_OTHERS if not a.needs], ids=lambda attack: attack.name)
def test_another_base_is_refused(attack: Attack, scene: Scene, foreign: LanguageModel) -> None:
    with pytest.raises(InvalidArgumentError, match="name a copy of the same base"):
        attack.run(replace(scene, base=foreign))
