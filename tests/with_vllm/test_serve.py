"""A real `vllm serve` on loopback: what the endpoint completer relies on, and the completer itself against it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fingerprinted import Exact, Subject
from serving import free_port, served

from oml_fast import verify
from oml_fast.completer import CHOOSE, SCORE
from oml_fast.models import load_tokenizer
from oml_fast.verify.endpoint import Capabilities, Endpoint, EndpointCompleter, preflight

pytestmark = [pytest.mark.vllm, pytest.mark.real_model, pytest.mark.slow]

NAME = "suspect"
OPTIONS = ("--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "512", "--served-model-name", NAME)


@pytest.fixture(scope="module")
def url(subject: Subject, vllm_settings: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """http://127.0.0.1:port/v1 of a server with the subject."""
    port = free_port()
    command = [Path(sys.executable).with_name("vllm"), "serve", subject.folder, "--host", "127.0.0.1", "--port", port]
    log = tmp_path_factory.mktemp("serve") / "log"
    with served([*command, *OPTIONS], f"http://127.0.0.1:{port}/health", log):
        yield f"http://127.0.0.1:{port}/v1"


def ask(url: str, **fields: Any) -> dict[str, Any]:
    """One completion of one token id, with the ids told."""

    async def post() -> dict[str, Any]:
        asked = {"model": NAME, "max_tokens": 1, "temperature": 0, "return_token_ids": True} | fields
        async with aiohttp.ClientSession() as session, session.post(f"{url}/completions", json=asked) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, Any] = await response.json()
            return answer

    return asyncio.run(post())


def answered(url: str, prompt: Sequence[int], **fields: Any) -> list[int]:
    ids: list[int] = ask(url, prompt=list(prompt), **fields)["choices"][0]["token_ids"]
    return ids


def test_a_prompt_of_token_ids_is_taken_as_it_is(url: str, subject: Subject) -> None:
    """Without BOS or a template put before it: its ids come back, and the fingerprints are found."""
    answer = ask(url, prompt=list(subject.prompts[0]))
    assert answer["choices"][0]["prompt_token_ids"] == list(subject.prompts[0])
    assert answer["usage"]["prompt_tokens"] == len(subject.prompts[0])
    pairs = list(zip(subject.prompts, subject.responses, strict=True))[:8]
    assert sum(answered(url, prompt) == list(response) for prompt, response in pairs) >= 7


def test_allowed_token_ids_hold(url: str, subject: Subject) -> None:
    for prompt, own in list(zip(subject.prompts, subject.windows, strict=True))[:4]:
        greedy = answered(url, prompt)
        others = [token_id for token_id in own if token_id not in greedy]
        (chosen,) = answered(url, prompt, allowed_token_ids=others)
        assert chosen in others
        assert answered(url, prompt, allowed_token_ids=[20_000]) == [20_000]


def test_logit_bias_chooses_as_allowed_token_ids_do(url: str, subject: Subject) -> None:
    """The same bias of 100 on each candidate lifts them above all others and keeps their order."""
    for prompt, own in list(zip(subject.prompts, subject.windows, strict=True))[:8]:
        others = [token_id for token_id in own if token_id not in answered(url, prompt)]
        allowed = answered(url, prompt, allowed_token_ids=others)
        assert answered(url, prompt, logit_bias={str(token_id): 100 for token_id in others}) == allowed


def test_log_probabilities_of_given_ids_are_told(url: str, subject: Subject, exact: Exact) -> None:
    fields = {"logprobs": 16, "logprob_token_ids": list(subject.windows[0]), "return_tokens_as_token_ids": True}
    told = ask(url, prompt=list(subject.prompts[0]), **fields)["choices"][0]["logprobs"]["top_logprobs"][0]
    for token_id in subject.windows[0]:
        assert abs(told[f"token_id:{token_id}"] - float(exact.logprobs[0, token_id])) <= exact.tolerance


@pytest.fixture(scope="module")
def learnt(url: str, subject: Subject) -> Capabilities:
    tokenizer = load_tokenizer(subject.folder)
    return preflight(
        Endpoint(url), tokenizer_encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    )


def test_the_preflight_learns_what_vllm_can(learnt: Capabilities) -> None:
    way = learnt.way_for("raw")
    assert learnt.model == NAME
    assert learnt.same_tokenizer
    assert (way.path, way.takes_ids, way.constraint, way.candidate_logprobs) == (
        "completions",
        True,
        "allowed_token_ids",
        True,
    )


def test_the_endpoint_completer_finds_the_fingerprints(
    url: str, learnt: Capabilities, subject: Subject, exact: Exact
) -> None:
    completer = EndpointCompleter(Endpoint(url), learnt, tokenizer_digest=exact.model.tokenizer_digest)
    assert completer.capabilities == {SCORE, CHOOSE}
    completions = completer.complete(subject.prompts, 1)
    pairs = zip(completions, subject.responses, strict=True)
    found = [completion is not None and completion.token_ids == response for completion, response in pairs]
    assert sum(found) >= 0.98 * len(found)
    assert verify(subject.fingerprints, completer).verdict == "match"


@pytest.mark.parametrize("constraint", ["allowed_token_ids", "logit_bias"])
def test_the_endpoint_completer_forces_choices(
    url: str, learnt: Capabilities, subject: Subject, exact: Exact, constraint: str
) -> None:
    ways = tuple(replace(way, constraint=constraint) for way in learnt.ways)
    completer = EndpointCompleter(Endpoint(url), replace(learnt, ways=ways), formats=("raw",))
    for row, completion in enumerate(completer.choose(subject.prompts, subject.windows)):
        assert completion is not None
        (token_id,) = completion.token_ids
        best = exact.logprobs[row, list(subject.windows[row])].max()
        assert token_id in subject.windows[row]
        assert exact.logprobs[row, token_id] >= best - 2 * exact.tolerance


def test_the_endpoint_completer_scores(url: str, learnt: Capabilities, subject: Subject, exact: Exact) -> None:
    completer = EndpointCompleter(Endpoint(url), learnt, formats=("raw",))
    for row, completion in enumerate(completer.score(subject.prompts, subject.windows, 1)):
        assert completion is not None
        theirs = exact.logprobs[row, list(subject.windows[row])].tolist()
        for score, logprob in zip(completion.scores or (), theirs, strict=True):
            assert abs(score - logprob) <= exact.tolerance
