"""VllmCompleter without vLLM: its absence, and what it hands over, recorded by a stand-in.

What real vLLM answers is tested in tests/with_vllm.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from oml_fast.completer import CHOOSE, SCORE, capabilities
from oml_fast.errors import BackendUnavailableError, CompleterError, InvalidArgumentError
from oml_fast.models import load, load_tokenizer, model_digest, tokenizer_digest
from oml_fast.serving import VllmCompleter

VOCABULARY, LONGEST = 1500, 40


class StandIn(ModuleType):
    """Records what it is given; answers each prompt with ids 7, 8, 9, ... and the score -id/10 for every id."""

    __version__ = "0.0-stand-in"

    def __init__(self, *, scores: bool = True, fault: Exception | None = None, late: Exception | None = None) -> None:
        super().__init__("vllm")
        self.started: list[dict[str, Any]] = []
        self.asked: list[tuple[list[int], dict[str, Any]]] = []
        self.closed = 0
        self.fault, self.late = fault, late
        self.LLM = self._start
        self.SamplingParams = type("SamplingParams", (dict,), {"__struct_fields__": ("logprob_token_ids",) * scores})

    def _start(self, **arguments: Any) -> Any:
        if self.fault is not None:
            raise self.fault
        self.started.append(arguments)
        model = SimpleNamespace(max_model_len=LONGEST, dtype="torch.bfloat16", get_vocab_size=lambda: VOCABULARY)
        config = SimpleNamespace(device_config=SimpleNamespace(device_type="cpu"), model_config=model)
        core = SimpleNamespace(shutdown=self._close)
        return SimpleNamespace(
            generate=self._generate,
            llm_engine=SimpleNamespace(model_config=model, vllm_config=config, engine_core=core),
        )

    def _close(self) -> None:
        self.closed += 1

    def _generate(
        self, prompts: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]], use_tqdm: bool
    ) -> list[Any]:
        if self.late is not None:
            raise self.late
        assert use_tqdm is False
        answers = []
        for prompt, own in zip(prompts, wanted, strict=True):
            self.asked.append((prompt["prompt_token_ids"], dict(own)))
            ids = own.get("allowed_token_ids") or list(range(7, 7 + own["max_tokens"]))
            told = {i: SimpleNamespace(logprob=-i / 10) for i in (7, *own.get("logprob_token_ids", ()))}
            output = SimpleNamespace(token_ids=ids[: own["max_tokens"]], logprobs=[told])
            of_prompt = [None] + [{i: SimpleNamespace(logprob=-1.0)} for i in prompt["prompt_token_ids"][1:]]
            answers.append(SimpleNamespace(outputs=[output], prompt_logprobs=of_prompt))
        return answers


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setitem(sys.modules, "vllm", made)
    return made


@pytest.fixture
def completer(stand_in: StandIn, tiny_folder: Path) -> VllmCompleter:
    return VllmCompleter(tiny_folder)


def test_without_vllm_it_says_what_to_do(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    with pytest.raises(BackendUnavailableError, match=r"vLLM is not installed .*pip install 'oml_fast\[vllm\]'"):
        VllmCompleter(tiny_folder)


def test_a_broken_vllm_says_what_to_do(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))  # such as a folder of that name
    with pytest.raises(BackendUnavailableError, match=r"vLLM cannot be imported \(.*LLM.*\): pip install"):
        VllmCompleter(tiny_folder)


def test_the_room_is_light() -> None:
    heavy = "{'torch', 'transformers', 'vllm'}"
    code = f"import oml_fast.serving, sys; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_that_is_no_model_is_refused_before_the_engine_starts(stand_in: StandIn, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="is no model folder"):
        VllmCompleter(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InvalidArgumentError, match="only pickle weights"):
        VllmCompleter(tmp_path)
    assert not stand_in.started


def test_its_identity_is_the_models_digest(completer: VllmCompleter, tiny_folder: Path) -> None:
    assert completer.identity == model_digest(tiny_folder) == load(tiny_folder, device="cpu").digest
    completer.close()
    assert len(completer.identity) == 64


def test_the_engine_gets_what_was_given(stand_in: StandIn, tiny_folder: Path) -> None:
    VllmCompleter(tiny_folder)
    shared = {"model": str(tiny_folder), "load_format": "safetensors", "trust_remote_code": False}
    assert stand_in.started[0] == shared | {"dtype": "auto", "tensor_parallel_size": 1, "seed": 0}
    options = {"max_model_len": 99, "gpu_memory_utilization": 0.5, "seed": 3, "tensor_parallel_size": 8}
    made = VllmCompleter(tiny_folder, dtype="float32", engine_options={"enforce_eager": True}, **options)
    assert stand_in.started[1] == shared | options | {"dtype": "float32", "enforce_eager": True}
    assert made.name == "vllm 0.0-stand-in (cpu, bfloat16, tensor parallel 8)"


def test_an_option_given_twice_is_refused(stand_in: StandIn, tiny_folder: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="engine_options has 'dtype', which is an argument of its own"):
        VllmCompleter(tiny_folder, engine_options={"dtype": "float32"})
    assert not stand_in.started


REFUSED = (
    "1 validation error for ModelConfig\ndtype\n  Input should be 'auto' [type=literal_error, input]\n    For more"
)


@pytest.mark.parametrize(
    ("fault", "expected", "message"),
    [
        (TypeError("unexpected keyword 'x'"), InvalidArgumentError, "refuses its options: unexpected keyword 'x'"),
        (ValueError(REFUSED), InvalidArgumentError, r"refuses its options: dtype: Input should be 'auto'\.$"),
        (RuntimeError("Engine core failed\nmore"), CompleterError, r"did not start \(Engine core failed\): its log"),
    ],
)
def test_an_engine_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, fault: Exception, expected: type[Exception], message: str
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", StandIn(fault=fault))
    with pytest.raises(expected, match=message):
        VllmCompleter(tiny_folder)


def test_an_engine_that_dies_later(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", StandIn(late=RuntimeError("EngineDeadError\nstack")))
    with pytest.raises(CompleterError, match=r"vLLM did not answer: EngineDeadError\.$"):
        VllmCompleter(tiny_folder).complete([[5]], 1)


def test_the_tokenizer_has_the_digest_that_models_gives_it(completer: VllmCompleter, tiny_folder: Path) -> None:
    assert completer.tokenizer_digest == tokenizer_digest(load_tokenizer(tiny_folder))


GREEDY = {"temperature": 0.0, "ignore_eos": True, "detokenize": False}


def test_a_completion_is_asked_from_ids(completer: VllmCompleter, stand_in: StandIn, tiny_folder: Path) -> None:
    first, second = completer.complete([[5, 6], (9,)], 3)
    assert stand_in.asked == [([5, 6], GREEDY | {"max_tokens": 3}), ([9], GREEDY | {"max_tokens": 3})]
    assert first == second
    assert first.token_ids == (7, 8, 9)
    assert first.text == load_tokenizer(tiny_folder).decode([7, 8, 9])


def test_scores_come_in_the_order_of_the_candidates(completer: VllmCompleter, stand_in: StandIn) -> None:
    (completion,) = completer.score([[5]], [[30, 10, 20, 10]], 2)
    assert stand_in.asked == [([5], GREEDY | {"max_tokens": 2, "logprob_token_ids": [10, 20, 30]})]
    assert completion.scores == (-3.0, -1.0, -2.0, -1.0)
    assert completion.token_ids == (7, 8)


def test_a_choice_is_among_the_allowed(completer: VllmCompleter, stand_in: StandIn) -> None:
    (completion,) = completer.choose([[5]], [[30, 10]])
    assert stand_in.asked == [([5], GREEDY | {"max_tokens": 1, "allowed_token_ids": [10, 30]})]
    assert completion.token_ids == (10,)


def test_agreement_is_asked_over_prompt_and_response(completer: VllmCompleter, stand_in: StandIn) -> None:
    assert completer.agrees([[5, 6], [5]], [[7], [8, 9]]) == [True, True]
    assert stand_in.asked == [
        ([5, 6, 7], GREEDY | {"max_tokens": 1, "prompt_logprobs": 1}),
        ([5, 8, 9], GREEDY | {"max_tokens": 1, "prompt_logprobs": 1}),
    ]


def test_capabilities_are_those_of_this_vllm(
    completer: VllmCompleter, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert capabilities(completer) == {SCORE, CHOOSE}
    monkeypatch.setitem(sys.modules, "vllm", StandIn(scores=False))
    assert capabilities(VllmCompleter(tiny_folder)) == {CHOOSE}


@pytest.mark.parametrize("impossible", [-1, VOCABULARY])
def test_impossible_ids_never_reach_the_engine(completer: VllmCompleter, stand_in: StandIn, impossible: int) -> None:
    with pytest.raises(CompleterError, match=f"a key has token id {impossible}, the suspect has {VOCABULARY}"):
        completer.complete([[5], [impossible]], 1)
    with pytest.raises(CompleterError, match=f"candidates have token id {impossible}"):
        completer.score([[5]], [[6, impossible]], 1)
    with pytest.raises(CompleterError, match=f"candidates have token id {impossible}"):
        completer.choose([[5]], [[6, impossible]])
    with pytest.raises(CompleterError, match=f"a response has token id {impossible}"):
        completer.agrees([[5]], [[impossible]])
    assert not stand_in.asked


def test_empty_and_too_long_prompts_are_refused(completer: VllmCompleter, stand_in: StandIn) -> None:
    with pytest.raises(InvalidArgumentError, match="a prompt is empty"):
        completer.complete([[]], 1)
    with pytest.raises(InvalidArgumentError, match="a prompt came with candidates of no token ids"):
        completer.choose([[5]], [[]])
    with pytest.raises(CompleterError, match="have 41 token ids, the engine takes 40: start it with max_model_len=41"):
        completer.complete([[5] * 39], 2)
    assert not stand_in.asked
    assert completer.complete([], 1) == []


def test_a_closed_completer_is_closed_once(stand_in: StandIn, tiny_folder: Path) -> None:
    with VllmCompleter(tiny_folder) as completer:
        completer.close()
    assert stand_in.closed == 1
    with pytest.raises(CompleterError, match="was closed"):
        completer.complete([[5]], 1)


def test_a_sample_has_a_seed_of_its_own(completer: VllmCompleter, stand_in: StandIn) -> None:
    assert completer.sample([[5], [6]], 2, 0.7, seed=1) == [(7, 8), (7, 8)]
    seeds = [wanted["seed"] for _, wanted in stand_in.asked]
    assert [wanted["temperature"] for _, wanted in stand_in.asked] == [0.7, 0.7]
    assert len(set(seeds)) == 2
    completer.sample([[6]], 2, 0.7, seed=1)
    assert stand_in.asked[-1][1]["seed"] == seeds[1]  # whatever else is asked with it
    completer.sample([[6]], 2, 0.7, seed=2)
    assert stand_in.asked[-1][1]["seed"] not in seeds
    with pytest.raises(InvalidArgumentError, match="temperature 0"):
        completer.sample([[6]], 2, 0.0, seed=2)
