"""What is sent to an endpoint: the bodies of requests, how many token ids they may cost, and what an asking would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...completer import Prompt
from ...errors import CompleterError
from .capabilities import Capabilities, Way
from .settings import Endpoint

PATHS = {"completions": "/completions", "chat": "/chat/completions"}
PLACEHOLDER = "<the key>"
_BIAS = 100  # the most that the field takes; the same for all candidates, so that their order stays
_CHOICE = 64  # token ids that spell out a candidate's text, at most


def body(endpoint: Endpoint, model: str, way: Way, prompt: str | Sequence[int], length: int) -> dict[str, Any]:
    """A request for one greedy completion of `length` token ids; for a model that thinks first, with room to think."""
    asked: dict[str, Any] = dict(endpoint.extra_body) | {"model": model}
    if way.path == "chat":
        asked["messages"] = [{"role": "user", "content": prompt}]
    else:
        asked["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
    asked[way.limit_field] = length + (endpoint.reasoning_tokens if way.thinks_first else 0)
    if way.greedy:
        asked["temperature"] = 0
    if way.ids_field == "return_token_ids":
        # vLLM, which takes a repetition penalty from the model's folder where the request names none.
        asked |= {"return_token_ids": True, "repetition_penalty": 1.0}
    elif way.ids_field:
        asked |= {way.ids_field: True} | ({"logprobs": True} if way.path == "chat" else {"logprobs": 1})
    return asked


def scoring(way: Way, candidates: Sequence[int]) -> dict[str, Any]:
    """The fields that list log-probabilities, of the candidates themselves where that can be asked for."""
    count = way.logprobs
    asked: dict[str, Any] = {"logprobs": True, "top_logprobs": count} if way.path == "chat" else {"logprobs": count}
    if way.logprobs_by_id:
        asked["return_tokens_as_token_ids"] = True
    if way.candidate_logprobs:
        asked["logprob_token_ids"] = sorted(candidates)
    return asked


def choosing(way: Way, candidates: Sequence[int], texts: Sequence[str]) -> dict[str, Any]:
    """The fields that leave only the candidates to choose from, in an order that says nothing about them."""
    if way.constraint == "allowed_token_ids":
        return {"allowed_token_ids": sorted(candidates)}
    if way.constraint == "logit_bias":
        return {"logit_bias": {str(candidate): _BIAS for candidate in sorted(candidates)}}
    if way.constraint == "structured_outputs":
        return {"structured_outputs": {"choice": sorted(texts)}}
    return {"guided_choice": sorted(texts)}


def choice_length(way: Way) -> int:
    """Token ids that a choice may need: one, or as many as spell out a text."""
    return _CHOICE if way.chooses_texts else 1


def prompt_of(way: Way, prompt: Sequence[int]) -> str | Sequence[int]:
    """The prompt as this way is asked: its token ids, or the key's text. CompleterError where there is no text."""
    if way.takes_ids:
        return prompt
    if isinstance(prompt, Prompt):
        return prompt.key
    raise CompleterError(
        "this endpoint takes text, and the prompt has token ids only: ask with Prompt(ids, key, format)."
    )


def worst_tokens(way: Way, prompt: str | Sequence[int]) -> int:
    """Token ids that a prompt can be at most: no tokenizer makes more of a text than it has bytes."""
    if isinstance(prompt, str):
        return len(prompt.encode()) + (way.template_tokens or 0)
    return len(prompt)


def dry_run(
    endpoint: Endpoint, prompts: Sequence[Sequence[int]], length: int, capabilities: Capabilities | None = None
) -> dict[str, Any]:
    """What completing these prompts would send and cost at most. Sends nothing.

    Before a preflight (`capabilities` None) the way of asking is supposed from the kind of the endpoint. The worst
    case counts every text with as many token ids as bytes and each request once: what retries add ends at the budget.
    """
    supposed = Way("chat" if endpoint.kind == "chat" else "completions")
    ways = [capabilities.way_for(getattr(each, "format", "raw")) if capabilities else supposed for each in prompts]
    askings = [(way, prompt_of(way, prompt)) for way, prompt in zip(ways, prompts, strict=True)]
    prompt_tokens = sum(worst_tokens(way, prompt) for way, prompt in askings)
    completion_tokens = sum(length + (endpoint.reasoning_tokens if way.thinks_first else 0) for way in ways)
    cost = (prompt_tokens * endpoint.price_per_1k_prompt + completion_tokens * endpoint.price_per_1k_completion) / 1000
    rate = endpoint.requests_per_second
    shown = ways[0] if ways else supposed
    example = body(endpoint, capabilities.model if capabilities else endpoint.model, shown, PLACEHOLDER, length)
    return {
        "endpoint": endpoint.shown,
        "supposed": capabilities is None,
        "requests": len(prompts),
        "most_requests_with_retries": len(prompts) * (1 + endpoint.retries),
        "prompt_tokens_at_most": prompt_tokens,
        "completion_tokens_at_most": completion_tokens,
        "worst_case_cost": cost,
        "budget": endpoint.budget,
        "seconds_at_the_rate_limit": len(prompts) / rate if rate else None,
        "example": {"path": PATHS[shown.path], "by": "token ids" if shown.takes_ids else "text", "body": example},
    }
