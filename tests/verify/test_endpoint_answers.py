"""Answers as endpoints give them: cut, odd, hostile, endless; and what they cost."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from oml_fast.verify.endpoint import (
    BudgetSpentError,
    Endpoint,
    Meter,
)
from oml_fast.verify.endpoint.answers import IncompleteError, parse, read, scores
from oml_fast.verify.endpoint.http import _seconds


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("application/json", b'{"choices": [{"text": "a'),
        ("application/json", b"\xff\xfe"),
        ("application/json", b"[]"),
        ("application/json", b"{}"),
        ("application/json", b'{"choices": []}'),
        ("application/json", b'{"choices": [3]}'),
        ("application/json", b'{"choices": [{"text": null}]}'),
        ("application/json", b"[" * 100_000),
        ("text/html", b"<html>"),
        ("text/event-stream", b'data: {"choices": [{"text": "a"}]}\n\n'),
        ("text/event-stream", b'data: {"error": {"code": 500}}\n\ndata: [DONE]\n\n'),
        ("text/event-stream", b"data: [DONE]\n\n"),
        ("text/event-stream", b'data: {"choices": [{"te'),
    ],
)
def test_an_incomplete_answer_is_none(kind: str, raw: bytes) -> None:
    with pytest.raises(IncompleteError):
        parse(kind, raw)


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "a", "logprobs": 3, "token_ids": ["1"], "message": 4},
        {"text": "a", "logprobs": {"tokens": [1], "token_logprobs": None, "top_logprobs": [4]}},
        {"message": {"content": [{"type": "text", "text": "a"}, 4]}, "logprobs": {"content": [4]}},
        {"message": {"content": "a", "reasoning": 3}, "logprobs": {"content": [{"top_logprobs": [4, {"token": 5}]}]}},
        {"text": "a", "logprobs": {"tokens": ["b"], "token_logprobs": [math.nan], "top_logprobs": [{"c": "d"}]}},
    ],
)
def test_odd_shapes_are_read_as_far_as_they_go(choice: dict[str, Any]) -> None:
    answer = read({"choices": [choice], "usage": 3, "model": 4})
    assert (answer.text, answer.reasoning, answer.token_ids, dict(answer.first)) == ("a", "", (), {})


HUGE = 10**400


@pytest.mark.parametrize("value", [HUGE, -HUGE, math.inf, math.nan, True, None, "-1", [-1.0]])
def test_what_is_no_log_probability_is_not_listed(value: Any) -> None:
    plain = {"text": "a", "logprobs": {"tokens": ["b"], "token_logprobs": [value], "top_logprobs": [{"c": value}]}}
    chat = {
        "logprobs": {"content": [{"token": "b", "logprob": value, "top_logprobs": [{"token": "c", "logprob": value}]}]}
    }
    for choice in (plain, chat | {"message": {"content": "a"}}):
        sent = json.dumps({"choices": [choice]}).encode()
        answer = read(parse("application/json", sent))
        assert dict(answer.first) == {}
        assert scores(answer, (1, 2), ["b", "c"]) == (-math.inf, -math.inf)


def test_whole_numbers_and_minus_infinity_are_log_probabilities() -> None:
    top = {"b": 0, "c": -3, "d": -math.inf, "e": -0.5}
    answer = read({"choices": [{"text": "a", "logprobs": {"tokens": ["b"], "top_logprobs": [top]}}]})
    assert dict(answer.first) == top


@pytest.mark.parametrize("token_id", [HUGE, -1, 1 << 31, True, 1.0])
def test_what_is_no_token_id_is_not_taken(token_id: Any) -> None:
    answer = read({"choices": [{"text": "a", "token_ids": [1, token_id]}], "prompt_token_ids": [token_id]})
    assert (answer.token_ids, answer.prompt_ids) == ((), ())


@pytest.mark.parametrize("count", [HUGE, -1, True, 1.5, "3", None])
def test_a_count_that_is_none_is_charged_in_full(count: Any) -> None:
    meter = Meter(Endpoint("http://host", price_per_1k_prompt=1.0))
    assert meter.price({"prompt_tokens": count, "completion_tokens": 1}, 7.0) == 7.0
    assert meter.price({"prompt_tokens": 1, "completion_tokens": count}, 7.0) == 7.0
    assert (meter.prompt_tokens, meter.completion_tokens) == (0, 0)


def test_a_date_beyond_all_dates_is_no_time_to_wait() -> None:
    assert _seconds("Fri, 31 Dec 2999 23:59:59 +99999999999999") == 0.0
    assert _seconds("nan") == 0.0


@pytest.mark.parametrize("content", [r'"a\ud800b"', r'"<think>\udfff</think>a\ud800b"'])
def test_lone_surrogates_are_replaced(content: str) -> None:
    thought = r'"c\ud800"'
    whole = f'{{"model": {thought}, "choices": [{{"message": {{"content": {content}, "reasoning": {thought}}}}}]}}'
    delta = f'{{"delta": {{"content": {content}, "reasoning": {thought}}}, "finish_reason": "stop"}}'
    for kind, sent in (("application/json", whole), ("text/event-stream", f'data: {{"choices": [{delta}]}}')):
        answer = read(parse(kind, sent.encode()))
        assert (answer.text, answer.reasoning) == ("a?b", "c?")
    (answer.text + answer.reasoning + answer.model).encode()


@pytest.mark.parametrize(
    ("content", "reasoning", "text"),
    [
        ("<think>a</think>b", "a", "b"),
        ("a\n</think>\n\nb", "a", "b"),  # the template opened the block
        ("<think>a", "a", ""),  # the length ended before the thought
        ("b", "", "b"),
        (" b", "", " b"),
    ],
)
def test_thoughts_in_the_text(content: str, reasoning: str, text: str) -> None:
    answer = read({"choices": [{"message": {"content": content}}]})
    assert (answer.reasoning, answer.text) == (reasoning, text)


def test_a_meter_holds_back_the_worst_case() -> None:
    meter = Meter(Endpoint("http://host", price_per_1k_prompt=1000.0, budget=10.0))
    assert meter.fits(6)
    meter.hold(6)
    assert not meter.fits(6)  # and does not refuse: what is in flight may cost less
    meter.settle(6, 1)
    assert meter.fits(9)
    with pytest.raises(BudgetSpentError, match="1 of the budget of 10 is spent"):
        meter.fits(9.5)


def test_a_budget_that_pays_for_exactly_so_many() -> None:
    meter = Meter(Endpoint("http://host", price_per_1k_prompt=1.0, budget=0.3))
    for _ in range(3):
        assert meter.fits(0.1)
        meter.hold(0.1)
        meter.settle(0.1, 0.1)
    with pytest.raises(BudgetSpentError):
        meter.fits(0.1)
