"""The completer over HTTP: every key answered through faults and interruptions, and nothing received is ever lost."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from endpoint_completers import CHAT, TEXT, VLLM, candidates_of, completer, expected, prompts
from faulty_server import FAULTS, Behaviour, FaultyServer, decode, encode
from sets import carrier, small_set

from oml_fast.completer import Completion
from oml_fast.errors import InvalidArgumentError
from oml_fast.verify import Verification, verify
from oml_fast.verify.endpoint import EndpointCompleter, EndpointError, RefusedError
from oml_fast.verify.endpoint.capabilities import Way
from oml_fast.verify.journal import Journal


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


def test_an_endless_answer_is_not_read_to_its_end() -> None:
    with FaultyServer() as server:
        suspect = completer(server)
        choice = server._choice
        server._choice = lambda *given: choice(*given) | {"text": "a" * (9 << 20)}  # type: ignore[method-assign]
        with pytest.raises(EndpointError, match="more than 8 MiB"):
            suspect.complete(prompts(1), 1)


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
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
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
