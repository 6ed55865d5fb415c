"""What an endpoint is asked and what is read of its answer: ids or text, scores, choices, thoughts, streams, echoes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from endpoint_completers import CHAT, TEXT, VLLM, candidates_of, completer, expected, prompts
from faulty_server import WORDS, Behaviour, FaultyServer, decode, encode, greedy, logit, templated

from oml_fast.completer import CHOOSE, SCORE, TOP_SCORES, Completion, Prompt
from oml_fast.errors import CompleterError
from oml_fast.verify.endpoint.capabilities import Way


def test_text_is_asked_where_ids_are_not_taken() -> None:
    raw, chat = prompts(1)[0], prompts(1, "chat")[0]
    with FaultyServer(Behaviour(takes_ids=False, returns_ids=False)) as server:
        answers = completer(server, TEXT, CHAT).complete([raw, chat], 2)
        assert {path for body in server.bodies for path in ("prompt", "messages") if path in body} == {
            "prompt",
            "messages",
        }
    texts = [decode(greedy(encode("<")[:1] + tuple(raw), 2)), decode(greedy(templated(chat.key), 2))]
    assert answers == [Completion((), text) for text in texts]


def test_a_prompt_without_text_cannot_be_asked_as_text() -> None:
    with FaultyServer() as server:
        with pytest.raises(CompleterError, match=r"ask with Prompt\(ids, key, format\)"):
            completer(server, TEXT).complete([(1, 2, 3)], 1)
        with pytest.raises(CompleterError, match="cannot ask the format chat"):
            completer(server, TEXT).complete([*prompts(3), *prompts(1, "chat")], 1)
        assert not server.bodies  # nothing is spent


def test_scores_are_the_log_probabilities_of_the_candidates() -> None:
    candidates = [encode(" purple green water window") for _ in range(3)]
    asked = prompts(3)
    with FaultyServer() as server:
        suspect = completer(server)
        assert suspect.capabilities == {SCORE, CHOOSE}
        answers = suspect.score(asked, candidates, 2)
        assert server.bodies[0]["logprob_token_ids"] == sorted(candidates[0])
    for prompt, answer in zip(asked, answers, strict=True):
        assert answer is not None
        assert answer.token_ids == expected(prompt, 2)
        assert answer.scores == pytest.approx([logit(tuple(prompt), each) - 9 for each in candidates[0]])


@pytest.mark.parametrize("format_name", ["raw", "chat"])
def test_candidates_that_are_not_listed_share_minus_infinity(format_name: str) -> None:
    likely = sorted(WORDS, key=lambda each: -logit(_ids_of(prompts(1, format_name)[0]), each))
    candidates = candidates_of([likely[7], likely[1], likely[0], likely[9]])
    with FaultyServer(Behaviour(takes_ids=False, returns_ids=False, logprobs=5)) as server:
        suspect = completer(server, TEXT, CHAT)
        assert suspect.capabilities == {TOP_SCORES, CHOOSE}
        (answer,) = suspect.score(prompts(1, format_name), [candidates], 1)
    assert answer is not None
    assert answer.scores is not None
    assert [score == -math.inf for score in answer.scores] == [True, False, False, True]
    assert answer.scores[2] > answer.scores[1]


def _ids_of(prompt: Prompt) -> tuple[int, ...]:
    return templated(prompt.key) if prompt.format == "chat" else (*encode("<"), *prompt)


@pytest.mark.parametrize("constraint", ["allowed_token_ids", "logit_bias", "structured_outputs", "guided_choice"])
def test_a_choice_is_the_likeliest_candidate(constraint: str) -> None:
    asked, candidates = prompts(20), candidates_of(encode(" purple green water window"))
    with FaultyServer(Behaviour(constraints=(constraint,))) as server:
        suspect = completer(server, replace(VLLM, constraint=constraint))
        answers = suspect.choose(asked, [candidates] * 20)
        assert str(sorted(candidates)[0] in candidates) == "True"
    best = [max(candidates, key=lambda each: logit(tuple(prompt), each)) for prompt in asked]
    by_text = constraint in ("structured_outputs", "guided_choice")
    assert [answer.text for answer in answers if answer] == [decode([each]) for each in best]
    assert [answer.token_ids for answer in answers if answer] == [() if by_text else (each,) for each in best]


def test_the_order_of_candidates_in_a_request_tells_nothing() -> None:
    ids = sorted(encode(" purple green water window"))
    texts = sorted(decode([token_id]) for token_id in ids)
    with FaultyServer() as server:
        for constraint in ("allowed_token_ids", "logit_bias", "structured_outputs", "guided_choice"):
            completer(server, replace(VLLM, constraint=constraint)).choose(prompts(1), [candidates_of(ids[::-1])])
        sent = server.bodies
    assert sent[0]["allowed_token_ids"] == ids
    assert list(sent[1]["logit_bias"].items()) == [(str(token_id), 100) for token_id in ids]
    assert sent[2]["structured_outputs"] == {"choice": texts}
    assert sent[3]["guided_choice"] == texts


def test_what_an_endpoint_cannot_do_is_refused() -> None:
    with FaultyServer() as server:
        plain = completer(server, Way("completions"))
        assert plain.capabilities == frozenset()
        with pytest.raises(CompleterError, match="lists no log-probabilities: choose another test"):
            plain.score(prompts(1), [(1, 2)], 1)
        with pytest.raises(CompleterError, match="lets nobody constrain its answer"):
            plain.choose(prompts(1), [(1, 2)])
        with pytest.raises(CompleterError, match=r"give Candidates\(ids, texts\)"):
            completer(server, TEXT).score(prompts(1), [(1, 2)], 1)
        assert not server.bodies


@pytest.mark.parametrize("stream", ["asked", "always"])
@pytest.mark.parametrize("think", ["field", "tags"])
def test_thoughts_are_told_apart(think: str, stream: str) -> None:
    way = replace(CHAT, thinks_first=True, ids_field="return_token_ids")
    with FaultyServer(Behaviour(think=think, stream=stream)) as server:
        (answer,) = completer(server, way, reasoning_tokens=30).complete(prompts(1, "chat"), 2)
        assert server.bodies[0]["max_tokens"] == 32
    assert answer is not None
    assert (answer.reasoning, answer.token_ids) == ("hm, hm", ())
    assert answer.text.strip() == decode(greedy(templated(prompts(1)[0].key), 32)).strip()


def test_an_endpoint_that_streams_though_not_asked() -> None:
    with FaultyServer(Behaviour(stream="always", faults=0.2, kinds=("cut", "cut json"))) as server:
        answers = completer(server).complete(prompts(40), 3)
        assert sum(server.failed.values()) > 3
    assert [answer.token_ids for answer in answers if answer] == [expected(prompt, 3) for prompt in prompts(40)]


def test_an_echo_is_cut_off() -> None:
    with FaultyServer(Behaviour(echo=True, returns_ids=False)) as server:
        (answer,) = completer(server, replace(TEXT, echoes=True)).complete(prompts(1), 2)
    assert answer == Completion((), decode(greedy(_ids_of(prompts(1)[0]), 2)))


def test_more_ids_than_were_asked_for_are_cut() -> None:
    body = {"choices": [{"text": "a b c", "token_ids": [1, 2, 3]}]}
    with FaultyServer() as server:
        question = completer(server)._completion(prompts(1)[0], 2)
    assert question.read(body).token_ids == (1, 2)


def test_no_text_with_scores_of_candidates_is_an_answer() -> None:
    (prompt,), candidates = prompts(1), (7, 8)
    top = {"token_id:7": -1.0}
    body = {"choices": [{"text": "", "logprobs": {"tokens": ["token_id:5"], "top_logprobs": [top]}}]}
    with FaultyServer() as server:
        read_scored = completer(server)._completion(prompt, 1, candidates).read
        read_plain = completer(server)._completion(prompt, 1).read
    scored, nothing = read_scored(body), {"choices": [{"text": ""}]}
    assert scored is not None
    assert scored.scores == (-1.0, -math.inf)
    assert (read_scored(nothing), read_plain(nothing)) == (None, None)
    assert read_plain({"choices": [{"text": "", "token_ids": [2]}]}) == Completion((2,), "")  # it ended at once
