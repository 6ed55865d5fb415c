"""Keys continued by vLLM, for `generate`: many at a time, each from a seed of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .vllm_completer import VllmCompleter


class VllmKeys(VllmCompleter):
    """vLLM's engine as a sampler of keys. `with` or `close` ends it.

    On one device, with one version of vLLM, the same prompts and seeds give the same keys: nothing that an earlier call
    left in the engine's cache is read again.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        gpu_memory_utilization: float | None = None,
        trust_remote_code: bool = False,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Start the engine on the model in a folder; the rest as, and raises as, VllmCompleter."""
        super().__init__(
            model,
            trust_remote_code=trust_remote_code,
            gpu_memory_utilization=gpu_memory_utilization,
            # Log-probabilities as they were sampled with: after the temperature, over the allowed ids alone.
            engine_options={**(engine_options or {}), "logprobs_mode": "processed_logprobs"},
        )

    def sample_keys(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        length: int,
        *,
        temperature: float,
        allowed: Sequence[int],
    ) -> list[tuple[list[int], list[float]]]:
        """`length` ids out of `allowed` for each prompt and seed, and their sampling probabilities (float32)."""
        self._check(prompts, length)
        shared = {
            "max_tokens": length,
            "temperature": temperature,
            "allowed_token_ids": list(allowed),
            "logprobs": 0,  # none but the sampled id's own
        }
        if self._engine is not None:
            self._engine.reset_prefix_cache()
        sampled = []
        for output in self._generate(prompts, [{**shared, "seed": seed} for seed in seeds]):
            ids = [int(token_id) for token_id in output.outputs[0].token_ids]
            chances = zip(ids, output.outputs[0].logprobs, strict=True)
            sampled.append((ids, [math.exp(min(0.0, at[token_id].logprob)) for token_id, at in chances]))
        return sampled
