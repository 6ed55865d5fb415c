"""VllmKeys without vLLM: what it hands over, recorded by a stand-in. What real vLLM answers: tests/with_vllm."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_vllm_completer import StandIn

from oml_fast.errors import BackendUnavailableError, CompleterError
from oml_fast.serving.vllm_keys import VllmKeys

PROMPTS, SEEDS = [[5, 6], [7], [5, 6]], [11, 2**53 - 1, 12]


class Sampling(StandIn):
    """Answers with allowed ids that the seed picks, the n-th at a log-probability of -n."""

    def __init__(self) -> None:
        super().__init__()
        self.resets = 0

    def _start(self, **arguments: Any) -> Any:
        engine = super()._start(**arguments)
        engine.reset_prefix_cache = self._reset
        return engine

    def _reset(self) -> bool:
        self.resets += 1
        return True

    def _generate(
        self, prompts: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]], use_tqdm: bool
    ) -> list[Any]:
        answers = []
        for prompt, own in zip(prompts, wanted, strict=True):
            self.asked.append((prompt["prompt_token_ids"], dict(own)))
            allowed = own["allowed_token_ids"]
            ids = [allowed[(own["seed"] + n) % len(allowed)] for n in range(own["max_tokens"])]
            told = [{token_id: SimpleNamespace(logprob=-float(n))} for n, token_id in enumerate(ids)]
            answers.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=told)]))
        return answers


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Sampling:
    made = Sampling()
    monkeypatch.setitem(sys.modules, "vllm", made)
    return made


def test_each_prompt_has_its_seed_and_all_the_same_distribution(stand_in: Sampling, tiny_folder: Path) -> None:
    with VllmKeys(tiny_folder) as keys:
        made = keys.sample_keys(PROMPTS, SEEDS, 3, temperature=0.7, allowed=[20, 30, 40, 50])
    assert [prompt for prompt, _ in stand_in.asked] == PROMPTS
    assert [own.pop("seed") for _, own in stand_in.asked] == SEEDS
    wanted = {"temperature": 0.7, "max_tokens": 3, "ignore_eos": True, "allowed_token_ids": [20, 30, 40, 50]}
    wanted |= {"logprobs": 0, "detokenize": False}
    assert [own for _, own in stand_in.asked] == [wanted] * 3
    assert [ids for ids, _ in made] == [[50, 20, 30], [50, 20, 30], [20, 30, 40]]
    assert [probs for _, probs in made] == [[1.0, math.exp(-1), math.exp(-2)]] * 3
    assert stand_in.closed == 1


def test_nothing_of_an_earlier_call_is_read_again(stand_in: Sampling, tiny_folder: Path) -> None:
    with VllmKeys(tiny_folder) as keys:
        for calls in (1, 2):
            keys.sample_keys(PROMPTS, SEEDS, 2, temperature=0.7, allowed=[20, 30])
            assert stand_in.resets == calls


def test_the_engine_leaves_room_and_tells_probabilities_as_sampled(stand_in: Sampling, tiny_folder: Path) -> None:
    with VllmKeys(tiny_folder, gpu_memory_utilization=0.5) as keys:
        assert keys.name == "vllm 0.0-stand-in (cpu, bfloat16)"
    assert stand_in.started[0]["logprobs_mode"] == "processed_logprobs"
    assert stand_in.started[0]["gpu_memory_utilization"] == 0.5


def test_what_it_cannot_do_is_refused(stand_in: Sampling, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = VllmKeys(tiny_folder)
    with pytest.raises(CompleterError, match="41 token ids, the engine takes 40"):
        keys.sample_keys([[5] * 30], [1], 11, temperature=0.7, allowed=[20])
    keys.close()
    with pytest.raises(CompleterError, match="was closed"):
        keys.sample_keys(PROMPTS, SEEDS, 2, temperature=0.7, allowed=[20])
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    with pytest.raises(BackendUnavailableError, match=r"vLLM is not installed .*pip install 'oml_fast\[vllm\]'"):
        VllmKeys(tiny_folder)
