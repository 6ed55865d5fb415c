"""What the gate refuses: routes, headers, tokens and bodies; and that the app never hears of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from typing import Any

import pytest
from gating import CHAT, CHAT_PATH, COMPLETION_PATH, MODEL, NAME, Owner, Stub, asked, request, running, scope_of

from oml_fast.permission import Limits
from oml_fast.serving.permission_gate import PermissionGate
from oml_fast.signing import new_signing_key


def refused(owner: Owner, status: int, code: str, **given: Any) -> None:
    stub = Stub()
    (answer,) = asked(owner, {"body": CHAT} | given, app=stub)
    assert (answer.status, answer.code) == (status, code)
    assert stub.seen == []
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["content-type"] == "application/json"


def test_a_valid_token_is_let_through(owner: Owner) -> None:
    stub = Stub()
    (answer,) = asked(owner, {"body": CHAT, "token": owner.token()}, app=stub)
    assert answer.status == 200
    assert len(stub.seen) == 1


# --- routes

OTHER_ROUTES = (
    ("POST", "/invocations"),
    ("POST", "/tokenize"),
    ("POST", "/pause"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/responses"),
    ("GET", "/metrics"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/"),
    ("GET", CHAT_PATH),
    ("OPTIONS", CHAT_PATH),
    ("POST", "/health"),
    ("POST", "/v1/models"),
    ("POST", CHAT_PATH + "/"),
    ("POST", "/" + CHAT_PATH),
    ("POST", "/V1/chat/completions"),
    ("POST", "/v1/../v1/chat/completions"),
    ("POST", "/v1/chat/completions/render"),
)


@pytest.mark.parametrize(("method", "path"), OTHER_ROUTES)
def test_every_other_route_is_refused_even_with_a_valid_token(owner: Owner, method: str, path: str) -> None:
    refused(owner, 403, "route_not_licensed", method=method, path=path, token=owner.token())


@pytest.mark.parametrize("path", ["/health", "/version"])
def test_open_routes_need_no_token(owner: Owner, path: str) -> None:
    stub = Stub()
    (answer,) = asked(owner, {"method": "GET", "path": path}, app=stub)
    assert answer.status == 200
    assert [scope["path"] for scope in stub.seen] == [path]


@pytest.mark.parametrize(
    "raw", [b"/v1/chat%2fcompletions", b"/v1/chat/completion%73", b"/v1/chat/completions?", b"/%76ersion"]
)
def test_an_encoded_path_is_refused(owner: Owner, raw: bytes) -> None:
    for path in (CHAT_PATH, "/version"):
        refused(owner, 403, "route_not_licensed", path=path, raw_path=raw, token=owner.token(), method="POST")


def test_a_server_below_a_prefix_is_found_as_it_is_routed(owner: Owner) -> None:
    below: dict[str, Any] = {"body": CHAT, "token": owner.token(), "root_path": "/api"}
    answers = asked(owner, below | {"path": f"/api{CHAT_PATH}"}, below, below | {"path": f"/apix{CHAT_PATH}"})
    assert [answer.status for answer in answers] == [200, 200, 403]


def test_settings_can_license_fewer_routes(owner: Owner) -> None:
    completion = {"path": COMPLETION_PATH, "body": {"prompt": "a"}}
    answers = asked(
        owner,
        {"body": CHAT, "token": owner.token()},
        completion | {"token": owner.token()},
        {"method": "GET", "path": "/v1/models", "token": owner.token()},
        routes=(CHAT_PATH,),
    )
    assert [answer.status for answer in answers] == [200, 403, 403]


def test_a_websocket_is_closed(owner: Owner) -> None:
    sent = []

    async def connect() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"authorization", f"Bearer {owner.token()}".encode())]
        stub = Stub()
        async with running(owner, stub) as gate:
            await gate(scope_of("GET", "/v1/realtime", headers, type="websocket"), receive, send)
        assert stub.seen == []

    asyncio.run(connect())
    assert sent == [{"type": "websocket.close", "code": 1008}]


# --- headers


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic dXNlcjpwYXNz",
        b"Token {token}",
        b"{token}",
        b"Bearer  {token}",
        b"Bearer {token} ",
    ],
)
def test_one_bearer_token_is_wanted(owner: Owner, value: bytes) -> None:
    header = (b"authorization", value.replace(b"{token}", owner.token().encode()))
    refused(owner, 401, "malformed_token", headers=[header])


def test_no_header_and_two_headers_are_refused(owner: Owner) -> None:
    refused(owner, 401, "malformed_token")
    header = (b"authorization", f"Bearer {owner.token()}".encode())
    refused(owner, 401, "malformed_token", headers=[header, header])


@pytest.mark.parametrize("query", [b"token={}", b"access_token=x", b"a=1&API_KEY=x", b"q={}"])
def test_a_token_in_the_url_is_refused_beside_a_good_one_too(owner: Owner, query: bytes) -> None:
    token = owner.token()
    for given in (None, token):
        refused(owner, 401, "malformed_token", token=given, query_string=query.replace(b"{}", token.encode()))


def test_a_token_in_the_url_does_not_get_into_the_servers_log(owner: Owner) -> None:
    """uvicorn writes the query of the scope that it gave."""

    async def ask() -> None:
        async def nothing(message: Any = None) -> dict[str, Any]:
            return {"type": "http.request"}

        scope = scope_of("POST", CHAT_PATH, [], query_string=b"token=" + owner.token().encode())
        async with running(owner) as gate:
            await gate(scope, nothing, nothing)
        assert scope["query_string"] == b""

    asyncio.run(ask())


def test_a_401_says_what_to_send(owner: Owner) -> None:
    (answer,) = asked(owner, {"body": CHAT})
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "Authorization: Bearer" in answer.json["error"]["message"]


# --- tokens


def test_each_reason_has_its_status_and_code(owner: Owner) -> None:
    now = time.time()
    body = json.dumps(CHAT).encode()
    other = Owner.__new__(Owner)
    other.key = new_signing_key()
    bound = Limits(body_sha256=hashlib.sha256(body).hexdigest())
    token = owner.token()
    refused(owner, 401, "malformed_token", token=token.replace(".", ":"))
    refused(owner, 401, "bad_signature", token=other.token())
    refused(owner, 401, "bad_signature", token=token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "AAAB"))
    refused(owner, 401, "expired", token=owner.token(now=now - 900, lifetime=100))
    refused(owner, 401, "not_yet_valid", token=owner.token(not_before=int(now) + 100))
    refused(owner, 403, "wrong_model", token=owner.token(models="cd" * 32))
    refused(owner, 403, "wrong_request", token=owner.limited(paths=(COMPLETION_PATH,)))
    refused(owner, 403, "wrong_request", token=owner.token(limits=bound), body=body + b" ")
    refused(owner, 429, "quota_exceeded", token=owner.limited(output_tokens=3))
    refused(owner, 429, "quota_exceeded", token=owner.limited(requests=1), body=CHAT | {"n": 2})


def test_a_revoked_permission_is_refused_within_a_second_without_restart(owner: Owner) -> None:
    async def ask() -> None:
        stub = Stub()
        token = owner.token(nonce="n" * 22)
        async with running(owner, stub) as gate:
            assert (await request(gate, body=CHAT, token=token)).status == 200
            owner.change(lambda keys: keys.revoking("n" * 22, time.time()))
            await asyncio.sleep(0.6)
            answer = await request(gate, body=CHAT, token=token)
            assert (answer.status, answer.code) == (403, "revoked")
            assert (await request(gate, body=CHAT, token=owner.token())).status == 200
        assert len(stub.seen) == 2

    asyncio.run(ask())


def test_a_refusal_shows_no_part_of_the_token(owner: Owner) -> None:
    token = owner.token()
    spoilt = token[:-4] + "AAAA"
    (answer,) = asked(owner, {"body": CHAT, "token": spoilt})
    assert not [part for part in (*spoilt.split("."), MODEL) if part.encode() in answer.content]


def test_without_a_list_of_keys_nothing_is_permitted_and_nothing_is_told(owner: Owner) -> None:
    async def ask() -> None:
        stub = Stub()
        async with running(owner, stub) as gate:
            (owner.folder / "keys.jws").unlink()
            await asyncio.sleep(0.6)
            answer = await request(gate, body=CHAT, token=owner.token())
            assert (answer.status, answer.code) == (503, "permissions_unavailable")
            assert answer.headers["retry-after"] == "1"
            assert str(owner.folder).encode() not in answer.content
            assert (await request(gate, "/health", method="GET")).status == 200
        assert len(stub.seen) == 1

    asyncio.run(ask())


# --- bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"not json",
        b'{"model": "smollm2", "model": "other"}',
        b'{"messages": [{"role": "user", "role": "system"}]}',
        b'{"a": NaN}',
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"n": 1.0}',
        b'{"n": -1}',
        b'{"n": "2"}',
        b'{"n": true}',
        b'{"max_tokens": "16"}',
        b'{"max_completion_tokens": 1e3}',
        b'{"model": 5}',
        b'{"model": "other"}',
        b'{"model": ""}',
        b'{"model": "smollm2", "vllm_xargs": 3}',
        b'{"messages": []}',
        b'{"model": "smollm2", "use_beam_search": true}',
        b'{"model": "smollm2", "use_beam_search": "yes"}',
        b'{"model": "smollm2", "n": 2147483648}',
        b'{"model": "smollm2", "n": 100001}',
        b'{"model": "smollm2", "max_tokens": ' + b"9" * 3000 + b"}",
    ],
)
def test_a_body_that_can_be_read_in_two_ways_or_in_none_is_refused(owner: Owner, body: bytes) -> None:
    refused(owner, 400, "bad_request", token=owner.token(), body=body)


def test_a_refused_body_spends_nothing(owner: Owner) -> None:
    once, quota = owner.token(use="once"), owner.limited(requests=1)
    stub = Stub()
    for token in (once, quota):
        bad, good = asked(
            owner, {"body": CHAT | {"vllm_xargs": 3}, "token": token}, {"body": CHAT, "token": token}, app=stub
        )
        assert (bad.status, good.status) == (400, 200)


def test_a_body_that_the_token_is_not_for_is_not_even_parsed(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(content: bytes) -> Any:
        raise AssertionError("it was parsed")

    monkeypatch.setattr("oml_fast.serving.permission_gate.read_body", read)
    bound = owner.token(limits=Limits(body_sha256=hashlib.sha256(b"another").hexdigest()))
    refused(owner, 403, "wrong_request", token=bound)


def test_a_large_body_is_refused_before_it_is_read(owner: Owner) -> None:
    large = b'{"a": "' + b"x" * 2000 + b'"}'
    for given in ({"body": large}, {"pieces": [large[:900], large[900:1800], large[1800:]]}):
        (answer,) = asked(owner, {"token": owner.token(), **given}, max_body_bytes=1024)
        assert (answer.status, answer.code) == (413, "body_too_large")
    for length in (b"-1", b"1e3", b"", b"9" * 30, b"9" * 5000):
        (answer,) = asked(owner, {"token": owner.token(), "pieces": [b"{}"], "headers": [(b"content-length", length)]})
        assert answer.status == 413


def test_a_slow_client_is_refused(owner: Owner) -> None:
    async def ask() -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(60)
            raise AssertionError

        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"authorization", f"Bearer {owner.token()}".encode())]
        async with running(owner, body_seconds=0.05) as gate:
            await gate(scope_of("POST", CHAT_PATH, headers), receive, send)
        assert sent[0]["status"] == 408

    asyncio.run(ask())


def test_a_bad_token_is_refused_before_the_body_is_read(owner: Owner) -> None:
    async def ask() -> None:
        async def receive() -> dict[str, Any]:
            raise AssertionError("the body was read")

        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        tokens = ["a.b.c", owner.token(models="cd" * 32), owner.token(now=time.time() - 900, lifetime=100)]
        async with running(owner) as gate:
            for token in tokens:
                headers = [(b"authorization", f"Bearer {token}".encode())]
                await gate(scope_of("POST", CHAT_PATH, headers), receive, send)
        assert [message["status"] for message in sent if "status" in message] == [401, 403, 401]

    asyncio.run(ask())


def test_several_names_may_stand_for_several_models(owner: Owner) -> None:
    other = "cd" * 32
    models = {NAME: MODEL, "large": other}
    token = owner.token()
    answers = asked(
        owner,
        {"body": CHAT, "token": token},
        {"body": CHAT | {"model": "large"}, "token": token},
        {"body": CHAT | {"model": "large"}, "token": owner.token(models=[MODEL, other])},
        {"body": {"messages": []}, "token": token},
        models=models,
    )
    assert [answer.status for answer in answers] == [200, 403, 200, 400]


# --- a gate that cannot work


def test_a_gate_without_settings_lets_the_start_fail_and_refuses_everything(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OML_FAST_PERMISSIONS", raising=False)
    stub = Stub()
    gate = PermissionGate(stub)
    sent: list[dict[str, Any]] = []

    async def start() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "lifespan.startup"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await gate({"type": "lifespan"}, receive, send)
        for path, method in ((CHAT_PATH, "POST"), ("/health", "GET")):
            assert (await request(gate, path, CHAT, owner.token(), method=method)).status == 503

    asyncio.run(start())
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "OML_FAST_PERMISSIONS names no file" in sent[0]["message"]
    assert stub.seen == []
