"""Requests to an endpoint: headers, the API key, proxies and extra fields; and the name of who was asked."""

from __future__ import annotations

import subprocess
import sys

import pytest
from endpoint_completers import CHAT, TEXT, VLLM, completer, prompts
from faulty_server import MODEL, Behaviour, FaultyServer

from oml_fast.verify.endpoint import Endpoint, EndpointCompleter, RefusedError
from oml_fast.verify.endpoint.capabilities import Capabilities


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


def test_importing_the_completer_needs_no_aiohttp() -> None:
    code = "import oml_fast.verify.endpoint, sys; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
