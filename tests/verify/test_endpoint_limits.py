"""Limits kept while an endpoint is asked: rate, concurrency, requests and budget; and what a dry run says of them."""

from __future__ import annotations

import json
import time

import pytest
from endpoint_completers import TEXT, VLLM, completer, expected, prompts
from faulty_server import MODEL, Behaviour, FaultyServer

from oml_fast.completer import Completion
from oml_fast.verify.endpoint import BudgetSpentError, Endpoint, dry_run
from oml_fast.verify.endpoint.capabilities import Capabilities


def test_retry_after_is_honoured_by_all() -> None:
    with FaultyServer(Behaviour(faults=0.5, kinds=("429",), retry_after="0.2")) as server:
        before = time.monotonic()
        completer(server, concurrency=4).complete(prompts(4), 1)
        waited = time.monotonic() - before
        assert not server.failed or waited >= 0.2
        assert server.failed["429"] > 0


def test_the_rate_is_kept() -> None:
    with FaultyServer() as server:
        before = time.monotonic()
        completer(server, requests_per_second=100.0).complete(prompts(21), 1)
        assert time.monotonic() - before >= 0.2


def test_concurrency_is_kept() -> None:
    with FaultyServer() as server:
        completer(server, concurrency=3).complete(prompts(60), 1)
        assert server.most_at_once <= 3


def test_a_budget_is_kept_and_what_came_before_is_not_lost() -> None:
    heard: dict[int, Completion] = {}
    asked = prompts(100)
    with FaultyServer(Behaviour(faults=0.1, late_s=0.0)) as server:
        suspect = completer(server, price_per_1k_prompt=1000.0, price_per_1k_completion=1000.0, budget=100.5)
        suspect.on_answer = heard.__setitem__
        with pytest.raises(BudgetSpentError, match=r"of the budget of 100\.5 is spent, and the next .* raise") as found:
            suspect.complete(asked, 1)  # a request costs 6
    assert suspect.meter.spent <= 100.5
    assert suspect.meter.spent > 100.5 - 6
    assert found.value.answers == heard
    assert 10 <= len(heard) <= 16
    assert all(answer.token_ids == expected(asked[number], 1) for number, answer in heard.items())


def test_a_worst_case_that_did_not_come_true_leaves_room_for_more() -> None:
    with FaultyServer() as server:  # held back: a byte each and more; billed: 6 token ids
        suspect = completer(server, TEXT, price_per_1k_prompt=1000.0, budget=200.0)
        with pytest.raises(BudgetSpentError) as found:
            suspect.complete(prompts(100), 1)
    assert len(found.value.answers) > 200 // len(prompts(1)[0].key)
    assert suspect.meter.spent <= 200


def test_the_number_of_requests_is_kept() -> None:
    with FaultyServer() as server:
        with pytest.raises(BudgetSpentError, match="all 7 requests are made") as found:
            completer(server, max_requests=7).complete(prompts(30), 1)
        assert len(server.bodies) == 7
    assert len(found.value.answers) == 7


def test_an_answer_without_usage_is_charged_in_full() -> None:
    with FaultyServer(Behaviour(usage=False)) as server:
        suspect = completer(server, price_per_1k_completion=1000.0, budget=9.0)
        suspect.complete(prompts(3), 3)
    assert suspect.meter.spent == 9.0


def test_a_dry_run_sends_nothing_and_hides_the_key() -> None:
    with FaultyServer() as server:
        endpoint = Endpoint(
            server.url, MODEL, requests_per_second=2.0, price_per_1k_prompt=1.0, price_per_1k_completion=2.0, budget=5.0
        )
        supposed = dry_run(endpoint, prompts(10), 4)
        learnt = Capabilities("", MODEL, (), "", None, (VLLM,), 0)
        known = dry_run(endpoint, prompts(10), 4, learnt)
        assert not server.bodies
    assert (supposed["supposed"], known["supposed"]) == (True, False)
    assert (known["requests"], known["prompt_tokens_at_most"], known["completion_tokens_at_most"]) == (10, 50, 40)
    assert known["worst_case_cost"] == pytest.approx(0.05 + 0.08)
    assert known["seconds_at_the_rate_limit"] == 5.0
    assert known["example"]["body"]["prompt"] == "<the key>"
    assert supposed["prompt_tokens_at_most"] == sum(len(prompt.key) for prompt in prompts(10))
    assert "Key number" not in json.dumps([supposed, known])
