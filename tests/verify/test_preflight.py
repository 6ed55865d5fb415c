"""What the preflight learns of endpoints that can and cannot, and what it says of those that cannot be asked at all."""

from __future__ import annotations

import json
import re
import socket
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from certificates import self_signed
from faulty_server import MODEL, Behaviour, FaultyServer, encode

from oml_fast.completer import CHOOSE, SCORE, TOP_SCORES, Prompt
from oml_fast.errors import CompleterError, InvalidArgumentError, OmlError
from oml_fast.verify.endpoint import Endpoint, EndpointCompleter, Meter
from oml_fast.verify.endpoint.capabilities import Capabilities, Way
from oml_fast.verify.endpoint.preflight import QUESTIONS, preflight

OPENAI = Behaviour(
    takes_ids=False, returns_ids=False, candidate_logprobs=False, constraints=("logit_bias",), strict=True, logprobs=5
)


def endpoint(server: FaultyServer, **settings: Any) -> Endpoint:
    return Endpoint(server.url, **{"retries": 1, "backoff_s": 0.001, "timeout_s": 10} | settings)


def learn(behaviour: Behaviour, **settings: Any) -> Capabilities:
    with FaultyServer(behaviour) as server:
        return preflight(endpoint(server, **settings), tokenizer_encode=encode)


def way(behaviour: Behaviour, path: str = "completions", **settings: Any) -> Way:
    found = learn(behaviour, **settings).way(path)
    assert found is not None
    return found


def test_a_server_like_vllm() -> None:
    learnt, behind_chat = learn(Behaviour()), learn(Behaviour(), kind="chat")
    assert (learnt.model, learnt.served_models, learnt.answered_as) == (MODEL, (MODEL,), MODEL)
    assert learnt.same_tokenizer is True
    assert learnt.formats() == ("raw", "chat")
    (completions,) = learnt.ways  # chat need not be learnt: token ids ask every format
    (chat,) = behind_chat.ways
    assert completions == Way(
        "completions",
        takes_ids=True,
        ids_field="return_token_ids",
        trims=False,
        template_tokens=1,
        logprobs=20,
        logprobs_by_id=True,
        candidate_logprobs=True,
        constraint="allowed_token_ids",
        deterministic=True,
        streams=True,
    )
    assert not completions.templated
    assert chat == replace(completions, path="chat", takes_ids=False, trims=None, template_tokens=9)
    assert chat.templated
    assert learnt.way_for("raw") is learnt.way_for("chat") is completions
    assert json.loads(json.dumps(learnt.to_json()))["ways"][0]["templated"] is False
    assert any("forces a choice (allowed_token_ids)" in line for line in learnt.lines())


def test_a_server_like_openai() -> None:
    learnt = learn(OPENAI)
    completions, chat = learnt.ways
    assert (completions.takes_ids, completions.ids_field, completions.logprobs) == (False, "", 5)
    assert (completions.constraint, completions.candidate_logprobs) == ("logit_bias", False)
    assert learnt.same_tokenizer is True  # by its count of token ids
    assert (learnt.way_for("raw"), learnt.way_for("chat")) == (completions, chat)
    assert EndpointCompleter(Endpoint(learnt.url), learnt).capabilities == {TOP_SCORES, CHOOSE}


def test_without_a_tokenizer_the_endpoint_tells_its_own_ids() -> None:
    with FaultyServer() as server:
        learnt = preflight(endpoint(server))
    assert learnt.same_tokenizer is None
    assert learnt.ways[0].takes_ids
    assert learnt.ways[0].constraint == "allowed_token_ids"
    completer = EndpointCompleter(Endpoint(learnt.url), learnt, tokenizer_digest="ab" * 32)
    assert (completer.capabilities, completer.tokenizer_digest) == ({SCORE, CHOOSE}, "")


def test_another_tokenizer_is_asked_by_text_alone() -> None:
    with FaultyServer() as server:
        learnt = preflight(endpoint(server), tokenizer_encode=lambda text: [ord(letter) for letter in text])
    assert learnt.same_tokenizer is False
    assert not learnt.ways[0].takes_ids
    assert not learnt.ways[0].logprobs_by_id
    assert learnt.ways[0].constraint == "structured_outputs"


@pytest.mark.parametrize(
    ("behaviour", "facts"),
    [
        (Behaviour(constraints=("logit_bias", "structured_outputs")), {"constraint": "logit_bias"}),
        (Behaviour(constraints=("structured_outputs",)), {"constraint": "structured_outputs"}),
        (Behaviour(constraints=("guided_choice",)), {"constraint": "guided_choice"}),
        (Behaviour(constraints=()), {"constraint": ""}),
        (Behaviour(logprobs=0), {"logprobs": 0, "candidate_logprobs": False}),
        (Behaviour(logprobs=100), {"logprobs": 40}),  # as many as the server has words
        (Behaviour(echo=True), {"echoes": True, "logprobs": 0, "constraint": ""}),
        (Behaviour(trim=True), {"trims": True}),
        (Behaviour(template=True), {"template_tokens": 9, "takes_ids": True}),
        (Behaviour(takes_ids=False), {"takes_ids": False, "ids_field": "return_token_ids"}),
        (Behaviour(drifts=True), {"deterministic": False}),
        (Behaviour(stream=""), {"streams": False}),
        (Behaviour(stream="always"), {"streams": True, "streams_unasked": True, "ids_field": "return_token_ids"}),
        (Behaviour(limit_field="max_completion_tokens"), {"limit_field": "max_completion_tokens"}),
        (Behaviour(usage=False, returns_ids=False), {"template_tokens": None, "takes_ids": False}),
        (Behaviour(faults=0.1, late_s=0.0), {"constraint": "allowed_token_ids", "logprobs": 20, "takes_ids": True}),
    ],
)
def test_each_trait_is_learnt(behaviour: Behaviour, facts: dict[str, Any]) -> None:
    learnt = way(behaviour, kind="completions", retries=6)
    assert {name: getattr(learnt, name) for name in facts} == facts


@pytest.mark.parametrize("think", ["field", "tags"])
def test_thinking_first_is_seen_before_a_key_is_spent(think: str) -> None:
    learnt = learn(Behaviour(think=think, completions=False))
    assert learnt.ways[0].thinks_first
    assert (learnt.ways[0].logprobs, learnt.ways[0].constraint) == (0, "")
    with pytest.raises(CompleterError, match=r"thinks before it answers.*--reasoning-tokens"):
        EndpointCompleter(Endpoint(learnt.url), learnt, formats=["chat"])
    assert EndpointCompleter(Endpoint(learnt.url, reasoning_tokens=100), learnt).capabilities == frozenset()


def test_a_chat_that_thinks_does_not_stand_in_the_way_of_completions() -> None:
    learnt = Capabilities("", MODEL, (), "", None, (Way("completions"), Way("chat", thinks_first=True)), 0)
    completer = EndpointCompleter(Endpoint("http://host"), learnt)
    assert "chat" not in completer.name
    with pytest.raises(CompleterError, match="thinks before it answers"):
        completer.complete([Prompt((1,), "A key", "chat")], 1)


def test_a_format_that_cannot_be_asked_as_made_is_refused_before_a_key_is_spent() -> None:
    chat = learn(Behaviour(completions=False))
    assert chat.formats() == ("chat",)
    with pytest.raises(CompleterError, match=r"cannot ask the format raw .*chat template; give"):
        EndpointCompleter(Endpoint(chat.url), chat, formats=["raw"])
    text = learn(Behaviour(chat=False, takes_ids=False))
    with pytest.raises(CompleterError, match=r"cannot ask the format chat .*kind auto or chat"):
        EndpointCompleter(Endpoint(text.url), text, formats=["raw", "chat"])
    templated = learn(Behaviour(chat=False, takes_ids=False, template=True))
    assert templated.formats() == ("chat",)


def test_no_key_is_asked_and_every_prompt_is_plain() -> None:
    with FaultyServer() as server:
        meter = Meter(endpoint(server))
        learnt = preflight(endpoint(server), tokenizer_encode=encode, meter=meter)
        assert learnt.requests == meter.requests == len(server.bodies) < 60
        assert all(isinstance(body.get("prompt", ""), str | list) for body in server.bodies)
        assert json.dumps(QUESTIONS[0]) in server.asked


def test_no_such_model_names_those_that_are_served() -> None:
    with FaultyServer(Behaviour(models=("a", "b"))) as server:
        with pytest.raises(CompleterError, match=r"serves no model 'c'; it serves a, b\."):
            preflight(endpoint(server, model="c"))
        with pytest.raises(CompleterError, match=r"name the model; it serves a, b\."):
            preflight(endpoint(server))
    with FaultyServer(Behaviour(models=None)) as server, pytest.raises(CompleterError, match="lists none"):
        preflight(endpoint(server))


HOSTILE = "a\x1b]0;owned\x07\r\n\u202e\ud800"


def test_names_that_an_endpoint_tells_cannot_steer_a_terminal() -> None:
    with FaultyServer(Behaviour(models=(HOSTILE, "b"))) as server:
        for settings in ({}, {"model": "c"}):
            with pytest.raises(CompleterError, match="it serves a") as found:
                preflight(endpoint(server, **settings))
            assert str(found.value).isprintable()
    learnt = Capabilities("http://host", HOSTILE, (HOSTILE,), "", None, (Way("completions"),), 0)
    assert all(line.isprintable() for line in learnt.lines())
    assert r"model a\x1b]0;owned\x07\r\n\u202e\ud800, tokenizer" in learnt.lines()[0]
    assert EndpointCompleter(Endpoint(learnt.url), learnt).name.isprintable()


def test_an_endpoint_without_a_list_of_models_can_be_asked() -> None:
    assert learn(Behaviour(models=None), model=MODEL, kind="chat").model == MODEL


def test_a_wrong_path_is_named() -> None:
    with FaultyServer() as server, pytest.raises(CompleterError, match=r"completions \(404\).*most end in /v1"):
        preflight(Endpoint(server.url + "/deeper", model=MODEL))


def test_nobody_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(CompleterError, match=r"cannot be reached: cannot connect .*refused"):
            preflight(Endpoint(url, model=MODEL, retries=1, backoff_s=0.001))


def test_a_wrong_api_key_is_never_shown() -> None:
    with FaultyServer(Behaviour(api_key="right")) as server:
        for key in ("wrong-one", None):
            with pytest.raises(CompleterError, match=r"401: it refuses the API key; set OML_FAST_API_KEY") as found:
                preflight(endpoint(server), key)
            assert "wrong-one" not in str(found.value)
        assert preflight(endpoint(server, kind="chat"), "right").ways


@pytest.mark.parametrize(
    ("status", "says"), [(403, "forbids"), (402, "no money"), (500, "gives no answer: it answers 500")]
)
def test_a_server_that_always_refuses(status: int, says: str) -> None:
    with FaultyServer(Behaviour(status=status)) as server, pytest.raises(CompleterError, match=says):
        preflight(endpoint(server))


def test_a_redirect_is_not_followed() -> None:
    with FaultyServer() as other, FaultyServer(Behaviour(redirect=other.url + "/completions")) as server:
        with pytest.raises(CompleterError, match=r"redirect \(307\)"):
            preflight(endpoint(server))
        assert not other.bodies


def test_tls_is_verified(tmp_path: Path) -> None:
    certificate, private = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    with FaultyServer(tls=context) as server:
        with pytest.raises(CompleterError, match=r"cannot be trusted: self.signed certificate.*--ca-file"):
            preflight(endpoint(server))
        assert not server.bodies
        assert preflight(endpoint(server, ca_file=str(certificate), kind="chat")).ways
        with pytest.raises(CompleterError, match="cannot be trusted"):  # the name in it is another one
            preflight(
                replace(endpoint(server, ca_file=str(certificate)), url=server.url.replace("127.0.0.1", "localhost"))
            )


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_broken_file_of_authorities(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "authority.pem"
    if content:
        path.write_text(content)
    with pytest.raises(InvalidArgumentError, match="--ca-file wants a PEM file"):
        preflight(Endpoint("https://127.0.0.1:9", ca_file=str(path)))


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("https://host/v1/", "https://host/v1"),
        ("https://host/v1/chat/completions", "https://host/v1"),
        ("https://host/api/v1/completions", "https://host/api/v1"),
        ("https://host/v1?version=2", "https://host/v1?version=2"),
    ],
)
def test_urls_are_forgiven(url: str, base: str) -> None:
    assert Endpoint(url).url == base


def test_a_query_stays_at_the_end_and_out_of_reports() -> None:
    made = Endpoint("https://host/v1?version=2")
    assert made.address("/models") == "https://host/v1/models?version=2"
    assert made.shown == "https://host/v1"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"url": "host:8000"}, "give a URL"),
        ({"url": "ftp://host"}, "give a URL"),
        ({"url": "http://host:99999"}, "give a URL"),
        ({"url": "https://me:secret@host/v1"}, "user name or password"),
        ({"kind": "responses"}, "'responses': one of auto, completions, chat"),
        ({"concurrency": 0}, "concurrency 0"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"retries": -1}, "retries -1"),
        ({"requests_per_second": 0.0}, "requests_per_second"),
        ({"max_requests": 0}, "max_requests"),
        ({"budget": 1.0}, "needs the prices"),
        ({"headers": {"authorization": "Bearer secret"}}, "from the environment"),
        ({"headers": {"X-Key": "secret"}, "key_header": "x-key"}, "from the environment"),
        ({"headers": {"X": "a\r\nb"}}, "line break"),
        ({"extra_body": {"temperature": 1, "seed": 0}}, "temperature is set"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(says)) as found:
        Endpoint(**{"url": "https://host/v1"} | settings)
    assert isinstance(found.value, OmlError)
    assert "secret" not in str(found.value)


def test_nothing_secret_is_in_the_representation() -> None:
    made = Endpoint("https://host", headers={"X": "secret"}, proxy="http://me:secret@proxy", extra_body={"k": "secret"})
    assert "secret" not in repr(made)
