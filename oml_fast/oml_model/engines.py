"""What generates: a model of transformers in this process, or an `LLM` of vLLM. Greedily, until each answer has ended.

B sequences, T token ids, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import CompleterError, InvalidArgumentError
from ..models import LanguageModel, batches_by_length, load, model_digest, prefill
from ..serving.licensee import NAME
from ..serving.vllm_compat import first_line, longest, require_vllm
from .output_mark import OutputMark, Processor, processed

_BATCH = 16


@dataclass(frozen=True, slots=True)
class Generated:
    """ids: of one answer, without the id that ended it. used: how many were generated, with that one."""

    ids: list[int]
    used: int


class Engine:
    """What both engines have: a tokenizer, the digest of the model, and the most ids that it takes (None: any)."""

    def __init__(self, tokenizer: Any, digest: str, most: int | None) -> None:
        self._tokenizer, self.digest, self._most = tokenizer, digest, most

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with the special tokens that the tokenizer adds."""
        return [list(self._tokenizer(text)["input_ids"]) for text in texts]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a chat in the model's template, up to where its answer begins."""
        if not self._tokenizer.chat_template:
            raise InvalidArgumentError("the input is a chat, and the model has no chat template: give a text.")
        try:
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except Exception as error:  # jinja2's, or whatever else a model's own template comes to
            raise InvalidArgumentError(
                f"the model's chat template refuses these messages ({first_line(error)}): give others, or a text."
            ) from error
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def require_room(self, prompts: Sequence[Sequence[int]], length: int) -> None:
        """InvalidArgumentError where a prompt is empty, or does not fit with `length` ids more."""
        if not all(prompts):
            raise InvalidArgumentError("a prompt has no token ids: give at least one character.")
        longest = max(map(len, prompts))
        if self._most is not None and longest + length > self._most:
            raise InvalidArgumentError(
                f"a prompt of {longest} token ids and max_output_tokens {length} are more than the {self._most} that "
                "the model takes: shorten one of them."
            )

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def generate(self, prompts: list[list[int]], length: int, licensee: str) -> list[Generated]:
        """An answer of at most `length` ids to each prompt, with the licensee's output mark."""
        raise NotImplementedError


class _Transformers(Engine):
    """Greedy decoding by batches of prompts of one length, until each answer has ended."""

    def __init__(self, model: LanguageModel, mark: OutputMark | None) -> None:
        config = model.model.config.get_text_config()
        super().__init__(model.tokenizer, model.digest, getattr(config, "max_position_embeddings", None))
        self._model, self._mark = model, mark
        self._ends = sorted(model.end_ids)

    def generate(self, prompts: list[list[int]], length: int, licensee: str) -> list[Generated]:
        made: dict[int, Generated] = {}
        for places in batches_by_length(prompts, _BATCH):
            process = None if self._mark is None else self._mark(licensee)
            rows = self._continued([prompts[place] for place in places], length, process)
            made.update(zip(places, map(self._cut, rows), strict=True))
        return [made[place] for place in range(len(prompts))]

    @torch.inference_mode()
    def _continued(self, prompts: list[list[int]], length: int, process: Processor | None) -> list[list[int]]:
        """Prompts of one length (B x T) -> at most `length` ids for each, until all have ended."""
        ends = torch.tensor(self._ends, device=self._model.device)
        ids = torch.tensor(prompts, device=self._model.device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=ids.device)
        logits, cache = prefill(self._model, prompts, cache=length > 1)
        while True:
            logits = logits.float()
            if process is not None:
                logits = processed(process, ids, logits)
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
            ended |= torch.isin(ids[:, -1], ends)
            if ids.shape[1] == len(prompts[0]) + length or bool(ended.all()):
                break
            logits = self._model.logits(self._model.hidden(ids[:, -1:], cache)[:, -1])
        rows: list[list[int]] = ids[:, len(prompts[0]) :].tolist()
        return rows

    def _cut(self, row: list[int]) -> Generated:
        """Up to the id that ended it."""
        place = next((place for place, token_id in enumerate(row) if token_id in self._ends), None)
        return Generated(row, len(row)) if place is None else Generated(row[:place], place + 1)


class _Vllm(Engine):
    """vLLM's `LLM`. Every request names its licensee, for logits processors that the engine was started with."""

    def __init__(self, engine: Any, digest: str | None) -> None:
        self._sampling = require_vllm().SamplingParams
        self._llm = engine
        super().__init__(engine.get_tokenizer(), _digest_in(engine) if digest is None else digest, longest(engine))

    def generate(self, prompts: list[list[int]], length: int, licensee: str) -> list[Generated]:
        wanted = self._sampling(temperature=0.0, max_tokens=length, detokenize=False, extra_args={NAME: licensee})
        try:
            asked = [{"prompt_token_ids": ids} for ids in prompts]
            outputs = [each.outputs[0] for each in self._llm.generate(asked, wanted, use_tqdm=False)]
        except Exception as error:  # vLLM's errors have no common ancestor in all its versions
            raise CompleterError(f"vLLM did not answer: {first_line(error)}.") from error
        return [_cut_by_vllm(output) for output in outputs]


def _cut_by_vllm(output: Any) -> Generated:
    """Its ids have the one that ended it, where one did."""
    ids = [int(token_id) for token_id in output.token_ids]
    return Generated(ids[:-1] if output.finish_reason == "stop" else ids, len(ids))


def engine_of(base_model: Any, digest: str | None, mark: OutputMark | None) -> Engine:
    """The engine that goes with `OMLModel`'s first argument, and its others."""
    if hasattr(base_model, "llm_engine"):
        if mark is not None:
            raise InvalidArgumentError(
                "output_mark is given, and vLLM makes its logits in processes of its own: start the LLM with "
                "logits_processors, made with oml_fast.oml_model.request_processor."
            )
        if digest is not None and not re.fullmatch("[0-9a-f]{64}", str(digest)):
            raise InvalidArgumentError(
                f"model_digest {str(digest)[:80]!r}: a digest has 64 hex digits in small letters."
            )
        return _Vllm(base_model, digest)
    if not isinstance(base_model, str | Path | LanguageModel):
        raise InvalidArgumentError(
            f"base_model is a {type(base_model).__name__}: give a model's folder, a LanguageModel, or an LLM of vLLM."
        )
    if digest is not None:
        raise InvalidArgumentError("model_digest is given, and the model that is loaded has its own: leave it out.")
    return _Transformers(base_model if isinstance(base_model, LanguageModel) else load(base_model), mark)


def _digest_in(engine: Any) -> str:
    folder = Path(engine.llm_engine.model_config.model)
    if not any(folder.glob("*.safetensors")):
        raise InvalidArgumentError(f"vLLM's model {str(folder)!r} is no folder with safetensors: give model_digest.")
    return model_digest(folder)
