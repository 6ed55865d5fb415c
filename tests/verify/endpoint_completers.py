"""Completers over HTTP that ask a faulty server in each way, prompts for them, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from faulty_server import MODEL, FaultyServer, decode, encode, greedy

from oml_fast.completer import Candidates, Prompt
from oml_fast.verify.endpoint import Endpoint, EndpointCompleter
from oml_fast.verify.endpoint.capabilities import Capabilities, Way

VLLM = Way(
    "completions",
    takes_ids=True,
    ids_field="return_token_ids",
    template_tokens=1,
    logprobs=20,
    logprobs_by_id=True,
    candidate_logprobs=True,
    constraint="allowed_token_ids",
)
TEXT = Way("completions", template_tokens=1, logprobs=5, constraint="logit_bias")
CHAT = Way("chat", template_tokens=9, logprobs=5, constraint="logit_bias")


def candidates_of(ids: Sequence[int]) -> Candidates:
    return Candidates(ids, [decode([token_id]) for token_id in ids])


def prompts(count: int, format_name: str = "raw") -> list[Prompt]:
    keys = [f"Key number {number} of many" for number in range(count)]
    return [Prompt(encode(key), key, format_name) for key in keys]


def completer(server: FaultyServer, *ways: Way, api_key: str | None = None, **settings: Any) -> EndpointCompleter:
    endpoint = Endpoint(server.url, model=MODEL, **{"retries": 8, "backoff_s": 0.001, "timeout_s": 20} | settings)
    learnt = Capabilities(endpoint.shown, MODEL, (MODEL,), MODEL, None, ways or (VLLM,), 0)
    return EndpointCompleter(endpoint, learnt, api_key)


def expected(prompt: Prompt, length: int) -> tuple[int, ...]:
    return greedy(tuple(prompt), length)
