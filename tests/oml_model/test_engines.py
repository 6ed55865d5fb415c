"""OMLModel with vLLM, by a stand-in; tests/with_vllm has the real one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from scenes import END, OTHER, Scene, forcing

from oml_fast.errors import CompleterError, InvalidArgumentError, PermissionDenied, WrongModel
from oml_fast.permission import Amount, Limits


class StandIn:
    """Answers each prompt with as many ids 300 as there may be, and ends those of one id with END after the second."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(model=str(folder), max_model_len=40))
        self.get_tokenizer = lambda: tokenizer
        self.asked: list[Any] = []
        self.fault: Exception | None = None

    def generate(self, prompts: Sequence[Any], wanted: dict[str, Any], use_tqdm: bool) -> list[Any]:
        if self.fault is not None:
            raise self.fault
        self.asked.append((prompts, wanted, use_tqdm))
        return [SimpleNamespace(outputs=[self._output(each, wanted["max_tokens"])]) for each in prompts]

    def _output(self, prompt: dict[str, list[int]], most: int) -> Any:
        if len(prompt["prompt_token_ids"]) == 1:
            return SimpleNamespace(token_ids=[300, 300, END], finish_reason="stop")
        return SimpleNamespace(token_ids=[300] * most, finish_reason="length")


@pytest.fixture
def engine(scene: Scene, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    vllm = ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = StandIn, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    return StandIn(tiny_folder, scene.model.tokenizer)


def test_an_engine_is_told_the_licensee_of_the_token(scene: Scene, engine: StandIn) -> None:
    oml, token = scene.oml(engine), scene.token(licensee="Nut & Co", limits=Limits(output_tokens=100))
    assert oml.digest == scene.model.digest
    word = scene.model.tokenizer.decode([300])
    assert oml.inference(["a", "the work"], token, max_output_tokens=5) == [word * 2, word * 5]
    shared = {"temperature": 0.0, "max_tokens": 5, "detokenize": False, "extra_args": {"oml_licensee": "Nut & Co"}}
    prompts = [{"prompt_token_ids": scene.encoded(text)} for text in ("a", "the work")]
    assert engine.asked == [(prompts, shared, False)]
    assert scene.taken(token) == Amount(0, 3 + 5)
    with pytest.raises(PermissionDenied):
        oml.inference("a", scene.token(key=OTHER), max_output_tokens=5)
    with pytest.raises(InvalidArgumentError, match="are more than the 40 that the model takes"):
        oml.inference("a", token, max_output_tokens=40)
    assert len(engine.asked) == 1
    assert scene.forwards == 0


def test_an_engine_that_fails_costs_nothing(scene: Scene, engine: StandIn) -> None:
    token = scene.token(limits=Limits(requests=1))
    engine.fault = RuntimeError("EngineDeadError\nstack")
    with pytest.raises(CompleterError, match=r"vLLM did not answer: EngineDeadError\.$"):
        scene.oml(engine).inference("a", token, max_output_tokens=5)
    assert scene.taken(token) == Amount(0, 0)


def test_the_digest_of_an_engine_that_names_no_folder_is_given(scene: Scene, engine: StandIn) -> None:
    engine.llm_engine.model_config.model = "acme/model"
    with pytest.raises(InvalidArgumentError, match="'acme/model' is no folder with safetensors: give model_digest"):
        scene.oml(engine)
    with pytest.raises(InvalidArgumentError, match="model_digest 'AB': a digest has 64 hex digits"):
        scene.oml(engine, model_digest="AB")
    oml = scene.oml(engine, model_digest="ab" * 32)
    with pytest.raises(WrongModel):
        oml.inference("a", scene.token(), max_output_tokens=5)
    assert oml.inference("a", scene.token(models="ab" * 32), max_output_tokens=5)


def test_an_engine_marks_by_itself(scene: Scene, engine: StandIn) -> None:
    with pytest.raises(InvalidArgumentError, match="output_mark is given, and vLLM makes its logits in processes"):
        scene.oml(engine, output_mark=forcing(7))
