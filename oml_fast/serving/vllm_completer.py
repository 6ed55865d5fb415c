"""A completer over vLLM's offline engine: on GPUs with tensor parallelism, or with vLLM's CPU build.

Prompts go in as token ids and completions come out as token ids, greedily; vLLM makes the batches. What it can do
beyond that: SCORE, in the same request as the completion, by naming the candidates as `logprob_token_ids` (so neither
`max_logprobs` nor `logprobs_mode` matters); CHOOSE by `allowed_token_ids`. vLLM gives log-probabilities before any
such mask, in float32: two candidates that tie in the model's dtype have the same score. Of tied tokens its greedy
choice is the smallest id on CPU, and whichever argmax finds first on a GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..completer import CHOOSE, SCORE, Completion
from ..errors import CompleterError, InvalidArgumentError
from .vllm_compat import describe, first_line, longest, require_vllm, scores_given_ids, shut_down, vocabulary


class VllmCompleter:
    """vLLM's engine with the model in a folder, started here. `with` or `close` ends it."""

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "auto",
        tensor_parallel_size: int = 1,
        max_model_len: int | None = None,
        gpu_memory_utilization: float | None = None,
        seed: int = 0,
        trust_remote_code: bool = False,
        engine_options: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> None:
        """Start the engine, which takes from half a minute to several.

        dtype: "auto" (vLLM's choice: float32 weights become float16 or bfloat16), "bfloat16", "float16" or "float32".
        engine_options: any other argument of vLLM's engine, such as {"enforce_eager": True}.

        Raises BackendUnavailableError where vLLM is not installed, InvalidArgumentError for a folder that is no model
        or an option that vLLM refuses, CompleterError where the engine does not start.
        """
        vllm = require_vllm()
        from ..models import load_tokenizer, require_model_folder, tokenizer_digest

        self._folder = folder = require_model_folder(model)
        self._tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        self._digest = tokenizer_digest(self._tokenizer)
        arguments = _engine_arguments(
            {
                "model": str(folder),
                "dtype": dtype,
                "tensor_parallel_size": tensor_parallel_size,
                "max_model_len": max_model_len,
                "gpu_memory_utilization": gpu_memory_utilization,
                "seed": seed,
                "trust_remote_code": trust_remote_code,
            },
            engine_options or {},
        )
        self._engine = _start(vllm, arguments)
        self._sampling, self._progress = vllm.SamplingParams, progress
        self._vocabulary, self._longest = vocabulary(self._engine), longest(self._engine)
        parallel = f", tensor parallel {tensor_parallel_size}" if tensor_parallel_size > 1 else ""
        self._name = f"vllm {vllm.__version__} ({describe(self._engine)}{parallel})"
        self.capabilities = frozenset({SCORE, CHOOSE} if scores_given_ids(vllm) else {CHOOSE})

    def __enter__(self) -> VllmCompleter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine's processes and free its memory; the completer can then not be asked any more."""
        if self._engine is not None:
            shut_down(self._engine)
            self._engine = None

    @property
    def name(self) -> str:
        return self._name

    @cached_property
    def identity(self) -> str:
        """Which suspect this is: the digest of the model. Reads all weights in the folder, the first time."""
        from ..models import model_digest

        return model_digest(self._folder)

    @property
    def tokenizer_digest(self) -> str:
        return self._digest

    def complete(self, prompts: Sequence[Sequence[int]], length: int) -> list[Completion]:
        """One greedy completion of `length` token ids for each prompt. Raises CompleterError for an impossible id."""
        self._check(prompts, length)
        outputs = self._generate(prompts, [{"max_tokens": length}] * len(prompts))
        return [self._completion(output) for output in outputs]

    def score(
        self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], length: int
    ) -> list[Completion]:
        """As `complete`, with the log-probabilities (float32) of each prompt's candidates as its next token id."""
        self._check(prompts, length)
        self._check_paired(prompts, candidates, "candidates")
        wanted = [{"max_tokens": length, "logprob_token_ids": sorted(set(own))} for own in candidates]
        completions = []
        for output, own in zip(self._generate(prompts, wanted), candidates, strict=True):
            first = output.outputs[0].logprobs[0]
            completions.append(self._completion(output, tuple(float(first[token_id].logprob) for token_id in own)))
        return completions

    def choose(self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]) -> list[Completion]:
        """The likeliest of its candidates for each prompt. Raises CompleterError for an impossible id."""
        self._check(prompts, 1)
        self._check_paired(prompts, candidates, "candidates")
        wanted = [{"max_tokens": 1, "allowed_token_ids": sorted(set(own))} for own in candidates]
        return [self._completion(output) for output in self._generate(prompts, wanted)]

    def agrees(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[bool]:
        """Whether each response (token ids) is what the model would greedily answer to its prompt. For owners.

        One forward over prompt and response decides: at each position no token id may be likelier than the response's.
        Those that share the greatest log-probability agree, each of them (so vLLM's `rank` is of no use here: it
        counts the ties too). Raises CompleterError for an impossible id.
        """
        self._check_paired(prompts, responses, "a response")
        self._check(prompts, 1 + max(map(len, responses), default=0))
        given = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
        outputs = self._generate(given, [{"max_tokens": 1, "prompt_logprobs": 1}] * len(given))
        return [
            all(
                at[token_id].logprob >= max(each.logprob for each in at.values())
                for token_id, at in zip(response, output.prompt_logprobs[-len(response) :], strict=True)
            )
            for response, output in zip(responses, outputs, strict=True)
        ]

    def sample(
        self, prompts: Sequence[Sequence[int]], length: int, temperature: float, seed: int
    ) -> list[tuple[int, ...]]:
        """`length` token ids sampled for each prompt; seed and prompt decide them, not what else is asked with it."""
        self._check(prompts, length)
        if not temperature > 0:
            raise InvalidArgumentError(f"temperature {temperature}: above 0, or use `complete`.")
        wanted = [{"max_tokens": length, "temperature": temperature, "seed": _seed(seed, prompt)} for prompt in prompts]
        return [tuple(output.outputs[0].token_ids) for output in self._generate(prompts, wanted)]

    def _generate(self, prompts: Sequence[Sequence[int]], wanted: Sequence[Mapping[str, Any]]) -> list[Any]:
        """vLLM's output for each prompt, in order."""
        if self._engine is None:
            raise CompleterError("the vLLM engine was closed: make another VllmCompleter.")
        if not prompts:
            return []
        shared = {"temperature": 0.0, "ignore_eos": True, "detokenize": False}
        try:
            return list(
                self._engine.generate(
                    [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                    [self._sampling(**{**shared, **own}) for own in wanted],
                    use_tqdm=self._progress,
                )
            )
        except Exception as error:  # vLLM's errors have no common ancestor in all its versions
            raise CompleterError(f"vLLM did not answer: {first_line(error)}.") from error

    def _check(self, prompts: Sequence[Sequence[int]], length: int) -> None:
        from ..models.completer import check_asked

        check_asked(prompts, self._vocabulary, length)
        # vLLM would answer with fewer token ids than it was asked for.
        if (needed := max(map(len, prompts), default=0) + length) > self._longest:
            raise CompleterError(
                f"prompt and completion have {needed} token ids, the engine takes {self._longest}: "
                f"start it with max_model_len={needed} or more."
            )

    def _check_paired(self, prompts: Sequence[Sequence[int]], given: Sequence[Sequence[int]], what: str) -> None:
        from ..models.completer import check_paired

        check_paired(prompts, given, self._vocabulary, what)

    def _completion(self, output: Any, scores: tuple[float, ...] | None = None) -> Completion:
        ids = tuple(int(token_id) for token_id in output.outputs[0].token_ids)
        return Completion(ids, self._tokenizer.decode(ids), scores=scores)


def _seed(seed: int, prompt: Sequence[int]) -> int:
    """A seed of 63 bits for one prompt."""
    return int.from_bytes(hashlib.sha256(repr((seed, tuple(prompt))).encode()).digest()[:8], "big") >> 1


def _engine_arguments(own: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Our arguments and the caller's others, those that are None left to vLLM."""
    if twice := sorted(own.keys() & others.keys()):
        raise InvalidArgumentError(f"engine_options has {twice[0]!r}, which is an argument of its own: give it there.")
    # Pickle weights can run code: vLLM must not look for any beside the safetensors.
    return {"load_format": "safetensors"} | {n: v for n, v in own.items() if v is not None} | dict(others)


def _start(vllm: Any, arguments: Mapping[str, Any]) -> Any:
    try:
        return vllm.LLM(**arguments)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"vLLM refuses its options: {_reason(error)}.") from error
    except Exception as error:
        raise CompleterError(
            f"vLLM's engine did not start ({first_line(error)}): its log on the terminal says why. Where memory is "
            "short, lower gpu_memory_utilization or max_model_len."
        ) from error


def _reason(error: Exception) -> str:
    """pydantic heads its messages with a count; the reason stands on the line after the option's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 2 and "validation error" in lines[0]:
        return f"{lines[1]}: {lines[2].split(' [type=')[0]}".rstrip(" .:")
    return first_line(error)
