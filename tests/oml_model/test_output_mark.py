"""The output mark: it sees the licensee of the token, steers what is generated, and keeps to its shape."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from scenes import Scene
from torch import Tensor
from transformers import SuppressTokensLogitsProcessor

from oml_fast.errors import InvalidArgumentError
from oml_fast.oml_model import request_processor
from oml_fast.permission import Amount, Limits


def test_the_mark_sees_the_licensee_of_the_token_and_steers_what_is_generated(scene: Scene) -> None:
    ids_of = {"Bolt": 300, "Nut": 400}
    shapes: list[tuple[list[int], list[int], torch.dtype]] = []

    def mark(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
        def process(ids: Tensor, logits: Tensor) -> Tensor:
            shapes.append((list(ids.shape), list(logits.shape), logits.dtype))
            logits[:, ids_of[licensee]] = logits.amax() + 1  # in place
            return logits

        return process

    oml = scene.oml(output_mark=mark)
    for licensee, token_id in ids_of.items():
        shapes.clear()
        answers = oml.inference(["aa", "aa"], scene.token(licensee=licensee), max_output_tokens=3)
        assert answers == [scene.model.tokenizer.decode([token_id] * 3)] * 2
        length = len(scene.encoded("aa"))
        width = [2, scene.model.vocabulary]
        assert shapes == [([2, length + step], width, torch.float32) for step in range(3)]


def test_a_logits_processor_of_transformers_is_a_mark(scene: Scene) -> None:
    token = scene.token()
    plain = scene.oml().inference("the work", token, max_output_tokens=1)
    first = int(scene.model.model(torch.tensor([scene.encoded("the work")])).logits[0, -1].argmax())
    oml = scene.oml(output_mark=lambda licensee: SuppressTokensLogitsProcessor([first]))
    assert oml.inference("the work", token, max_output_tokens=1) != plain


def test_a_mark_of_another_shape_is_refused_and_given_back(scene: Scene) -> None:
    token = scene.token(limits=Limits(requests=1))
    oml = scene.oml(output_mark=lambda licensee: lambda ids, logits: logits[:, :5])
    with pytest.raises(InvalidArgumentError, match=r"returned logits of shape \[1, 5\]: it must be \[1, \d+\]"):
        oml.inference("a", token)
    assert scene.taken(token) == Amount(0, 0)


def test_a_mark_for_one_request_of_vllm() -> None:
    def mark(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
        assert licensee == "Bolt"
        return lambda ids, logits: logits + ids[:, -1:]

    assert request_processor(mark, SimpleNamespace(extra_args=None)) is None
    assert request_processor(mark, SimpleNamespace(extra_args={"other": 1})) is None
    process = request_processor(mark, SimpleNamespace(extra_args={"oml_licensee": "Bolt"}))
    assert process is not None
    assert process([5, 6], [7], torch.zeros(4)).tolist() == [7.0] * 4
    assert process([5, 20_000_001], [], torch.zeros(4, dtype=torch.float64)).tolist() == [20_000_001.0] * 4
