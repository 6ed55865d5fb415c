"""Reading what an endpoint sends back: whole bodies and event streams, in the shapes of completions and of chat.

The other side is a suspect: nothing about its answers is taken for granted but that they are bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_BY_ID = "token_id:"  # how vLLM spells a token where ids are asked for
_MOST = 1 << 31  # no token id and no count of them is as large


class IncompleteError(Exception):
    """A body that is cut, or holds no answer. Asked again, never shown to a user as it is."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, taken apart. `first`: the log-probabilities listed for the first token, by name."""

    text: str
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    first: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    streamed: bool = False

    @property
    def thought(self) -> bool:
        """Whether anything was thought before the answer, shown or only counted."""
        details = self.usage.get("completion_tokens_details")
        counted = details.get("reasoning_tokens") if isinstance(details, Mapping) else None
        return bool(self.reasoning or counted)


def parse(content_type: str, raw: bytes) -> dict[str, Any]:
    """The body of an answer with at least one choice. IncompleteError where it is cut or holds none."""
    try:
        text = raw.decode()
        streamed = content_type == "text/event-stream" or text.lstrip().startswith("data:")
        body = _collected(text) if streamed else json.loads(text)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
        kind = content_type if "json" not in content_type else "cut JSON"
        raise IncompleteError(f"its answer is no whole JSON ({kind or 'no content type'})") from error
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise IncompleteError("its answer holds no choices")
    if not isinstance(choices[0].get("text"), str) and not isinstance(choices[0].get("message"), dict):
        raise IncompleteError("its answer holds neither text nor a message")
    return dict(body)


def read(body: Mapping[str, Any], echoed: str = "") -> Answer:
    """Take the first choice of a parsed body apart, and cut off the prompt where it was `echoed`."""
    choice = body["choices"][0]
    message: dict[str, Any] = choice["message"] if isinstance(choice.get("message"), dict) else {}
    text = choice["text"] if isinstance(choice.get("text"), str) else _content(message.get("content"))
    thoughts = [message.get(name) for name in ("reasoning_content", "reasoning")]
    split, text = _think(text)
    reasoning = next((thought for thought in (*thoughts, split) if isinstance(thought, str) and thought), "")
    lead = text.lstrip()
    if echoed and lead.startswith(echoed.strip()):
        text = lead[len(echoed.strip()) :]
    logprobs: dict[str, Any] = choice["logprobs"] if isinstance(choice.get("logprobs"), dict) else {}
    usage = body.get("usage")
    return Answer(
        _clean(text),
        _clean(reasoning),
        _ids(choice.get("token_ids")) or _named_ids(logprobs),
        _ids(choice.get("prompt_token_ids")) or _ids(body.get("prompt_token_ids")),
        _first(logprobs),
        _clean(body["model"]) if isinstance(body.get("model"), str) else "",
        usage if isinstance(usage, dict) else {},
        bool(body.get("streamed")),
    )


def scores(answer: Answer, candidates: Sequence[int], texts: Sequence[str] | None) -> tuple[float, ...]:
    """The log-probability listed for each candidate as the first token; -inf for those not listed."""
    by_id = any(name.startswith(_BY_ID) for name in answer.first)
    names = [f"{_BY_ID}{candidate}" for candidate in candidates] if by_id else texts or [""] * len(candidates)
    return tuple(answer.first.get(name, -math.inf) for name in names)


def counted(value: object) -> int | None:
    """A count of token ids that the endpoint tells; None where it is none."""
    return value if type(value) is int and 0 <= value < _MOST else None


def printable(text: str) -> str:
    """What an endpoint tells, for a terminal: control characters and the like are escaped."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _clean(text: str) -> str:
    """Without lone surrogates, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _think(text: str) -> tuple[str, str]:
    """(what was thought, the answer). The template may have opened the block, and the length may have closed none."""
    before, end, after = text.partition("</think>")
    if end:
        return before.strip().removeprefix("<think>").strip(), after.lstrip()
    if text.lstrip().startswith("<think>"):
        return text.lstrip().removeprefix("<think>").strip(), ""
    return "", text


def _content(content: object) -> str:
    """The text of a message: a string, or a list of parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _ids(value: object) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else []
    return tuple(ids) if all(counted(each) is not None for each in ids) else ()


def _named_ids(logprobs: Mapping[str, Any]) -> tuple[int, ...]:
    """Token ids from tokens spelt "token_id:5"."""
    tokens = logprobs.get("tokens")
    if not isinstance(tokens, list):
        content = logprobs.get("content")
        tokens = [each.get("token") for each in content if isinstance(each, dict)] if isinstance(content, list) else []
    found = [re.fullmatch(r"token_id:(\d{1,9})", each) if isinstance(each, str) else None for each in tokens]
    return tuple(int(each[1]) for each in found if each) if all(found) else ()


def _first(logprobs: Mapping[str, Any]) -> dict[str, float]:
    """What is listed for the first token, in the shape of completions or of chat."""
    listed: list[tuple[object, object]] = []
    content, top, tokens = logprobs.get("content"), logprobs.get("top_logprobs"), logprobs.get("tokens")
    if isinstance(content, list) and content and isinstance(content[0], dict):
        more = content[0].get("top_logprobs")
        entries = [content[0], *(more if isinstance(more, list) else [])]
        listed = [(each.get("token"), each.get("logprob")) for each in entries if isinstance(each, dict)]
    elif isinstance(tokens, list) and tokens:
        own = logprobs.get("token_logprobs")
        listed = [(tokens[0], own[0])] if isinstance(own, list) and own else []
        if isinstance(top, list) and top and isinstance(top[0], dict):
            listed += list(top[0].items())
    scored = ((name, _score(value)) for name, value in listed if isinstance(name, str))
    return {name: score for name, score in scored if score is not None}


def _score(value: object) -> float | None:
    """A log-probability: a finite number or -inf; None for anything else."""
    try:
        score = float(value) if type(value) in (int, float) else math.nan  # type: ignore[arg-type]
    except OverflowError:  # an integer of hundreds of digits
        return None
    return score if math.isfinite(score) or score == -math.inf else None


def _collected(text: str) -> dict[str, Any]:
    """An event stream as the body that it would have been without streaming. IncompleteError where it is cut."""
    whole: dict[str, Any] = {"text": "", "message": {"content": "", "reasoning": ""}, "token_ids": [], "logprobs": {}}
    body: dict[str, Any] = {"choices": [whole], "streamed": True}
    ended = found = False
    for line in re.split(r"\r\n|\r|\n", text):
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            ended = True
            continue
        chunk = json.loads(data)
        choices = chunk.get("choices") if isinstance(chunk, dict) else None
        if not isinstance(choices, list):
            raise IncompleteError("its event stream holds an error")
        body |= {name: chunk[name] for name in ("model", "usage", "prompt_token_ids") if chunk.get(name)}
        for choice in choices:
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                _add(whole, choice)
                found, ended = True, ended or bool(choice.get("finish_reason"))
    if not ended or not found:
        raise IncompleteError("its event stream is cut")
    del whole["text" if whole["message"].pop("chat", False) else "message"]
    return body


def _add(whole: dict[str, Any], choice: Mapping[str, Any]) -> None:
    """One chunk's part of the first choice."""
    delta = choice.get("delta")
    if isinstance(delta, dict):
        whole["message"]["chat"] = True
        whole["message"]["content"] += _content(delta.get("content"))
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        whole["message"]["reasoning"] += thought if isinstance(thought, str) else ""
    whole["text"] += choice["text"] if isinstance(choice.get("text"), str) else ""
    whole["token_ids"] += _ids(choice.get("token_ids"))
    if _ids(choice.get("prompt_token_ids")):
        whole["prompt_token_ids"] = choice["prompt_token_ids"]
    logprobs = choice.get("logprobs")
    for name, values in logprobs.items() if isinstance(logprobs, dict) else ():
        if isinstance(values, list):
            whole["logprobs"].setdefault(name, []).extend(values)
