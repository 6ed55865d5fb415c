"""Which routes a permission gate lets through: open ones, and licensed ones with a permission. Every other is refused.

Refused are so also routes that steer the engine (/pause, /v1/load_lora_adapter), those that the gate could not meter
(/invocations, /tokenize), whatever a later server adds, and each other spelling of a licensed path. What a licensed
request may use is read from its body: prompts times choices, and times `max_tokens`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Body = Mapping[str, Any]
LARGEST = 2**31 - 1  # n or max_tokens
MOST_GENERATIONS = 100_000  # of one request
OPEN = frozenset({"/health", "/version"})  # GET


class BadRequestError(Exception):
    """A body that the gate cannot read; the message is for the client."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks for. model: the served name. generations: prompts times choices.

    output_tokens: the most that may be generated for all of them together, None where nothing bounds it. countable:
    whether each event of its stream says how much was generated so far.
    """

    model: str
    generations: int
    output_tokens: int | None
    countable: bool


@dataclass(frozen=True, slots=True)
class Route:
    """A licensed route. read: what the body asks for; None: it has no body, and uses nothing."""

    method: str
    read: Callable[[Body], Demand] | None


def _completion(body: Body) -> Demand:
    most = _count(body, "max_tokens")  # vLLM makes one token id where an echo is asked for and none more
    return _demand(body, _prompts(body.get("prompt")) + _embeddings(body) or 1, None if most is None else max(1, most))


def _chat(body: Body) -> Demand:
    bounds = [_count(body, name) for name in ("max_tokens", "max_completion_tokens")]
    given = [bound for bound in bounds if bound is not None]
    return _demand(body, 1, max(given, default=None))


LICENSED: dict[str, Route] = {
    "/v1/completions": Route("POST", _completion),
    "/v1/chat/completions": Route("POST", _chat),
    "/v1/models": Route("GET", None),
}


def read_body(content: bytes) -> dict[str, Any]:
    """The JSON object in a body, each of its names once at every depth, so that no two readers read two things."""
    try:
        value = _JSON.decode(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadRequestError("The body is not one JSON object in UTF-8, with each name once.") from error
    if not isinstance(value, dict):
        raise BadRequestError("The body is not one JSON object in UTF-8, with each name once.")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name twice")
    return value


def _no_number(name: str) -> Any:
    raise ValueError(name)


_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_number)  # made once: it takes as long as a body


def _demand(body: Body, prompts: int, most: int | None) -> Demand:
    model = body.get("model")
    if not isinstance(model, str):
        raise BadRequestError("model is no text: name the model, for the server would choose one.")
    if body.get("use_beam_search", False) is not False:
        raise BadRequestError("use_beam_search is not for licensees: it leaves out who asks.")
    generations = prompts * max(1, _count(body, "n") or 1)
    if generations > MOST_GENERATIONS:
        raise BadRequestError(f"prompts times n are more than {MOST_GENERATIONS:,}.")
    # Of several choices vLLM says in each event what one has, and what an interval holds back it does not say.
    countable = generations == 1 and body.get("stream_interval") is None
    return Demand(model, generations, None if most is None else generations * most, countable)


def _prompts(prompt: Any) -> int:
    """A text or its token ids are one prompt, a list of either several. What is neither, the server refuses."""
    if prompt is None:
        return 0
    if not isinstance(prompt, list):
        return 1
    return 1 if prompt and type(prompt[0]) is int else len(prompt)


def _embeddings(body: Body) -> int:
    given = body.get("prompt_embeds")
    return 0 if given is None else len(given) if isinstance(given, list) else 1


def _count(body: Body, name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise BadRequestError(f"{name} is no whole number from 0 to {LARGEST:,}.")
    return value
