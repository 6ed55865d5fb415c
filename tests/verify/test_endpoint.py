"""The completer over HTTP: every key answered through faults, budgets kept, and nothing received is ever lost."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faulty_server import FAULTS, MODEL, WORDS, Behaviour, FaultyServer, decode, encode, greedy, logit, templated
from sets import carrier, small_set

from oml_fast.completer import CHOOSE, SCORE, TOP_SCORES, Candidates, Completion, Prompt
from oml_fast.errors import CompleterError, InvalidArgumentError
from oml_fast.verify import Verification, verify
from oml_fast.verify.endpoint import (
    BudgetSpentError,
    Endpoint,
    EndpointCompleter,
    EndpointError,
    RefusedError,
    dry_run,
)
from oml_fast.verify.endpoint.capabilities import Capabilities, Way
from oml_fast.verify.journal import Journal

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


def told(verification: Verification) -> dict[str, Any]:
    """What does not depend on who was asked, or how fast."""
    return {
        name: value
        for name, value in verification.to_json().items()
        if name not in ("completer", "identity", "seconds", "fingerprints_per_second", "test_reason")
    }


def test_two_thousand_keys_through_every_fault() -> None:
    made = small_set(2000, key_length=8)
    suspect = carrier(made, kept=900)
    behaviour = Behaviour(faults=0.1, late_s=5.0)
    with FaultyServer(behaviour, carries=suspect.answers) as faulty, FaultyServer() as other:
        over_http = completer(faulty, timeout_s=1.0, concurrency=32)
        found = verify(made, over_http, test="window", mode="fixed")
        assert {kind: faulty.failed[kind] > 5 for kind in FAULTS} == dict.fromkeys(FAULTS, True)
        assert set(faulty.asked) == {json.dumps(list(each.askings["raw"].prompt_ids)) for each in made}
        assert over_http.meter.requests == len(faulty.bodies) == 2000 + sum(faulty.failed.values())
        assert not other.bodies  # a retry asks the same suspect
    assert told(found) == told(verify(made, suspect, test="window", mode="fixed"))
    assert (found.verdict, found.queried, found.matches) == ("match", 2000, 900)


class Interrupted(Journal):
    """A journal whose owner presses Ctrl-C as it keeps the 70th answer."""

    def keep(self, number: int, format_name: str, answer: Completion) -> None:
        super().keep(number, format_name, answer)
        if len(self) == 70:
            raise KeyboardInterrupt


def test_a_verification_interrupted_and_resumed_asks_nothing_twice_that_was_answered(tmp_path: Path) -> None:
    made = small_set(200)
    suspect = carrier(made, kept=40)
    with FaultyServer(Behaviour(faults=0.1, late_s=0.0), carries=suspect.answers) as server:
        over_http = completer(server)
        with Interrupted(tmp_path / "answers") as journal, pytest.raises(KeyboardInterrupt):
            verify(made, over_http, test="window", mode="fixed", journal=journal)
        asked, kept = len(server.bodies), len(journal)
        assert 70 <= kept <= 70 + 16
        with Journal(tmp_path / "answers") as journal:
            found = verify(made, over_http, test="window", mode="fixed", journal=journal)
        assert len({json.dumps(body["prompt"]) for body in server.bodies[asked:]}) == 200 - kept
    assert told(found) == told(verify(made, suspect, test="window", mode="fixed"))


def test_answers_as_without_faults() -> None:
    asked = prompts(300)
    with FaultyServer(Behaviour(faults=0.3, late_s=0.0)) as faulty, FaultyServer() as well:
        assert completer(faulty, retries=30).complete(asked, 2) == completer(well).complete(asked, 2)


def test_longer_answers_in_the_order_of_the_prompts() -> None:
    asked = prompts(50)
    with FaultyServer() as server:
        answers = completer(server).complete(asked, 4)
    assert answers == [Completion(ids := expected(prompt, 4), decode(ids)) for prompt in asked]


def test_no_prompts_is_no_request() -> None:
    with FaultyServer() as server:
        assert completer(server).complete([], 1) == []
        assert not server.bodies


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


def test_unanswered_is_none_and_asking_goes_on() -> None:
    heard: list[int] = []
    with FaultyServer(Behaviour(faults=0.3, kinds=("500",)), seed=3) as server:
        suspect = completer(server, retries=0, concurrency=1)
        suspect.on_answer = lambda number, _: heard.append(number)
        answers = suspect.complete(prompts(60), 1)
        assert answers.count(None) == server.failed["500"] > 5
    assert heard == [number for number, answer in enumerate(answers) if answer]


def test_an_endpoint_that_stops_answering_spends_no_more_keys() -> None:
    with FaultyServer(Behaviour(status=503)) as server:
        with pytest.raises(
            EndpointError, match=r"8 keys in a row got no answer after 1 retries.*it answers 503"
        ) as found:
            completer(server, retries=1, concurrency=2).complete(prompts(100), 1)
        assert len(server.bodies) <= 2 * 10
    assert set(found.value.answers.values()) == {None}


@pytest.mark.parametrize(("way", "format_name"), [(VLLM, "raw"), (TEXT, "raw"), (CHAT, "chat")])
@pytest.mark.parametrize("stream", ["asked", "always"])
def test_an_empty_answer_is_none_and_not_asked_for_again(way: Way, format_name: str, stream: str) -> None:
    with FaultyServer(Behaviour(silent=True, stream=stream)) as server:
        suspect = completer(server, way)
        suspect.on_answer = lambda *_: pytest.fail("there was no answer")
        asked, candidates = prompts(7, format_name), [candidates_of(encode(" purple green"))] * 7
        assert suspect.complete(asked, 2) == [None] * 7
        assert suspect.choose(asked, candidates) == [None] * 7
        assert len(server.bodies) == 14


def test_empty_answers_in_a_row_end_the_asking() -> None:
    with FaultyServer(Behaviour(silent=True)) as server:
        with pytest.raises(EndpointError, match="8 keys in a row got no answer but an empty one") as found:
            completer(server, concurrency=2).complete(prompts(100), 1)
        assert len(server.bodies) <= 10
    assert set(found.value.answers.values()) == {None}


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


def test_what_no_retry_mends_ends_the_asking_at_once_without_quoting_the_key() -> None:
    with FaultyServer(Behaviour(status=400)) as server:
        with pytest.raises(RefusedError, match="answers 400") as found:
            completer(server, concurrency=2).complete(prompts(100), 1)
        assert len(server.bodies) <= 4
    assert "Key number" not in str(found.value)


def test_a_server_that_asks_to_wait_too_long() -> None:
    behaviour = Behaviour(faults=1.0, kinds=("429",), retry_after="Fri, 31 Dec 2999 23:59:59 GMT")
    with FaultyServer(behaviour) as server, pytest.raises(EndpointError, match=r"asks to wait .* go on later"):
        completer(server).complete(prompts(1), 1)


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


class Stop(KeyboardInterrupt):
    """Ctrl-C, where a test presses it."""


@pytest.mark.parametrize("stop", [Stop, OSError])
def test_interrupted_in_the_middle_and_resumed_nothing_is_lost(stop: type[BaseException]) -> None:
    asked, kept = prompts(200), dict[int, Completion]()

    def keep(number: int, answer: Completion) -> None:
        kept[number] = answer
        if len(kept) == 70:
            raise stop

    with FaultyServer(Behaviour(faults=0.1, late_s=0.0)) as server:
        suspect = completer(server)
        suspect.on_answer = keep
        with pytest.raises(stop):
            suspect.complete(asked, 1)
        assert 70 <= len(kept) <= 70 + 16
        left = [number for number in range(200) if number not in kept]
        suspect.on_answer = lambda place, answer: kept.__setitem__(left[place], answer)
        suspect.complete([asked[number] for number in left], 1)
    assert {number: answer.token_ids for number, answer in kept.items()} == {
        number: expected(prompt, 1) for number, prompt in enumerate(asked)
    }


def test_control_c_leaves_every_answer_that_came() -> None:
    code = """
import sys
from oml_fast.completer import Prompt
from oml_fast.verify.endpoint import Endpoint, EndpointCompleter
from oml_fast.verify.endpoint.capabilities import Capabilities, Way
learnt = Capabilities("", "suspect", (), "", None, (Way("completions", takes_ids=True),), 0)
suspect = EndpointCompleter(Endpoint(sys.argv[1], concurrency=2), learnt)
suspect.on_answer = lambda number, answer: print(number, flush=True)
suspect.complete([Prompt((number,), "", "raw") for number in range(1000)], 1)
"""
    with FaultyServer(Behaviour(faults=0.05, kinds=("late",), late_s=30.0)) as server:
        command = [sys.executable, "-c", code, server.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
            deadline = time.monotonic() + 20
            while server.failed["late"] < 2 and time.monotonic() < deadline:  # then both workers wait
                time.sleep(0.01)
            time.sleep(0.1)
            asking.send_signal(signal.SIGINT)
            said, errors = asking.communicate(timeout=20)
        heard = {int(line) for line in said.split()}
        answered = sum(server.asked.values()) - server.failed["late"]
    assert asking.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert len(heard) == answered > 0


def test_inside_a_running_loop_it_says_how() -> None:
    async def ask(suspect: EndpointCompleter) -> Any:
        with pytest.raises(InvalidArgumentError, match=r"asyncio\.to_thread"):
            suspect.complete(prompts(1), 1)
        return await asyncio.to_thread(suspect.complete, prompts(1), 1)

    with FaultyServer() as server:
        assert asyncio.run(ask(completer(server)))[0].token_ids == expected(prompts(1)[0], 1)


def test_headers_and_the_api_key_are_sent_and_not_shown() -> None:
    with FaultyServer(Behaviour(api_key="k-secret")) as server:
        suspect = completer(server, api_key="k-secret", headers={"X-Team": "t-secret"})
        assert suspect.complete(prompts(1), 1) != [None]
        assert server.headers[0]["X-Team"] == "t-secret"
        assert server.headers[0]["Authorization"] == "Bearer k-secret"
        assert "secret" not in suspect.name + repr(vars(suspect)["_endpoint"])
        with pytest.raises(RefusedError) as found:
            completer(server, api_key="w-secret").complete(prompts(1), 1)
        assert "secret" not in str(found.value)
        with pytest.raises(RefusedError):  # an API key in a header of its own is sent as it is
            completer(server, api_key="k-secret", key_header="X-Key").complete(prompts(1), 1)
        assert server.headers[-1]["X-Key"] == "k-secret"


def test_a_proxy_is_used_when_named_and_never_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyServer() as proxy, FaultyServer() as server:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        completer(server).complete(prompts(1), 1)
        assert (len(proxy.bodies), len(server.bodies)) == (0, 1)
        completer(server, trust_env=True).complete(prompts(1), 1)
        completer(server, proxy=proxy.url.removesuffix("/v1")).complete(prompts(1), 1)
        assert (len(proxy.bodies), len(server.bodies)) == (2, 1)


def test_extra_fields_go_into_every_request() -> None:
    with FaultyServer() as server:
        completer(server, extra_body={"seed": 0}).complete(prompts(2), 1)
        assert [body["seed"] for body in server.bodies] == [0, 0]
        assert all(body["temperature"] == 0 and body["repetition_penalty"] == 1.0 for body in server.bodies)


def test_the_name_says_what_was_asked() -> None:
    with FaultyServer() as server:
        by_text = completer(server, TEXT, CHAT)
        assert (
            by_text.name == f"endpoint {server.url}, model {MODEL} (/chat/completions by text and /completions by text)"
        )
        assert by_text.tokenizer_digest == ""
        assert "/completions by token ids" in completer(server).name


def test_its_identity_is_who_was_asked_and_no_secret() -> None:
    learnt = Capabilities("https://host/v1", "m\x1b[2J", (), "", None, (VLLM, CHAT), 0)
    made = EndpointCompleter(Endpoint("https://host?key=q-secret", headers={"X": "h-secret"}), learnt, "k-secret")
    assert made.identity == "endpoint https://host/v1, model m\\x1b[2J"
    assert made.name.startswith(made.identity)
    asked_by_text = EndpointCompleter(Endpoint("https://host/v1/"), learnt, formats=["chat"])
    assert asked_by_text.identity == made.identity


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


def test_an_endless_answer_is_not_read_to_its_end() -> None:
    with FaultyServer() as server:
        suspect = completer(server)
        choice = server._choice
        server._choice = lambda *given: choice(*given) | {"text": "a" * (9 << 20)}  # type: ignore[method-assign]
        with pytest.raises(EndpointError, match="more than 8 MiB"):
            suspect.complete(prompts(1), 1)


def test_importing_the_completer_needs_no_aiohttp() -> None:
    code = "import oml_fast.verify.endpoint, sys; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
