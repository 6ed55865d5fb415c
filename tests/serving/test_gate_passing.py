"""What goes on to the app, what comes back, and what is settled and metered of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from typing import Any

import pytest
from gating import CHAT, CHAT_PATH, COMPLETION_PATH, LICENSEE, MODEL, NAME, Owner, Stub, asked, event, request, running

from oml_fast.permission import Limits
from oml_fast.registry import UsageLog, Used
from oml_fast.serving.requests import PERMISSION

END = b"data: [DONE]\n\n"


def usage(prompt: int, output: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def stream(*, told: bool = True) -> list[bytes]:
    """Three token ids in three events, with the usage so far in each as vLLM tells it, or nowhere."""
    parts = [
        event(choices=[{"index": 0, "delta": {"content": "x"}}], **({"usage": usage(7, count)} if told else {}))
        for count in (1, 2, 3)
    ]
    return [*parts, *([event(choices=[], usage=usage(7, 3))] if told else []), END]


# --- on to the app


def test_the_app_gets_the_body_and_the_permission_but_not_the_token(owner: Owner) -> None:
    stub = Stub()
    token = owner.token()
    header = (b"x-request-id", b"7")
    asked(owner, {"body": CHAT, "token": token, "headers": [header]}, app=stub)
    (scope,), (body,) = stub.seen, stub.bodies
    names = [name for name, _ in scope["headers"]]
    assert body == CHAT | {"vllm_xargs": {"oml_licensee": LICENSEE}}
    assert scope[PERMISSION].licensee == LICENSEE
    assert header in scope["headers"]
    assert names.count(b"content-length") == 1
    assert b"authorization" not in names
    assert token.encode() not in repr(scope["headers"]).encode()


def test_the_length_is_that_of_the_body_that_goes_on(owner: Owner) -> None:
    stub = Stub()
    received: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        received.append((await receive())["body"])
        stub.seen.append(scope)
        await stub.answer(send)

    body = json.dumps(CHAT).encode()
    asked(
        owner,
        {
            "pieces": [body[:5], body[5:20], body[20:]],
            "headers": [(b"transfer-encoding", b"chunked")],
            "token": owner.token(),
        },
        {"body": body, "token": owner.token()},
        app=app,
    )
    for scope, content in zip(stub.seen, received, strict=True):
        headers = dict(scope["headers"])
        assert headers[b"content-length"] == str(len(content)).encode()
        assert b"transfer-encoding" not in headers
        assert json.loads(content)["messages"] == CHAT["messages"]


@pytest.mark.parametrize(
    "given", [None, {}, {"oml_licensee": "Somebody Else"}, {"oml_licensee": ["a"], "other": 3, "text": "é"}]
)
def test_a_client_that_names_a_licensee_is_overruled(owner: Owner, given: Any) -> None:
    stub = Stub()
    body = CHAT | {"vllm_xargs": given, "note": "\ud800 é 1e400", "big": 2**70}
    asked(owner, {"body": body, "token": owner.token()}, app=stub)
    assert stub.bodies == [body | {"vllm_xargs": (given or {}) | {"oml_licensee": LICENSEE}}]


@pytest.mark.parametrize(
    "body", [b'{"model":"smollm2"}', b' { "model": "smollm2" } \r\n\t ', '{"model": "smollm2", "é": "}"}'.encode()]
)
def test_the_licensee_enters_every_body(owner: Owner, body: bytes) -> None:
    stub = Stub()
    asked(owner, {"body": body, "token": owner.token(licensee='Ön "the" {x}')}, app=stub)
    assert stub.bodies == [json.loads(body) | {"vllm_xargs": {"oml_licensee": 'Ön "the" {x}'}}]


def test_settings_can_leave_the_body_as_it_is(owner: Owner) -> None:
    stub = Stub()
    asked(owner, {"body": CHAT, "token": owner.token()}, app=stub, tell_engine=False)
    assert stub.bodies == [CHAT]


def test_a_token_bound_to_the_body_means_the_body_as_the_client_sent_it(owner: Owner) -> None:
    body = json.dumps(CHAT).encode()
    bound = owner.token(use="once", limits=Limits(body_sha256=hashlib.sha256(body).hexdigest()))
    stub = Stub()
    (answer,) = asked(owner, {"body": body, "token": bound}, app=stub)
    assert answer.status == 200
    assert stub.bodies[0]["vllm_xargs"] == {"oml_licensee": LICENSEE}


def test_the_names_of_the_models_are_told_to_whoever_has_a_token(owner: Owner) -> None:
    stub = Stub()
    token = owner.token(use="once")
    listed = {"method": "GET", "path": "/v1/models"}
    answers = asked(owner, listed | {"token": token}, listed, {"body": CHAT, "token": token}, app=stub)
    assert [answer.status for answer in answers] == [200, 401, 200]  # asking spent nothing


def test_what_the_app_answers_comes_back_as_it_is(owner: Owner) -> None:
    plain, streamed = Stub(), Stub(parts=stream())
    (answer,) = asked(owner, {"body": CHAT, "token": owner.token()}, app=plain)
    assert answer.json == {"answer": 1, "usage": usage(7, 3)}
    (answer,) = asked(owner, {"body": CHAT | {"stream": True}, "token": owner.token()}, app=streamed)
    assert answer.content == b"".join(stream())


def test_a_fault_of_the_app_is_its_own(owner: Owner) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("broken")

    token = owner.limited(requests=1)

    async def ask() -> None:
        async with running(owner, app) as gate:
            with pytest.raises(RuntimeError, match="broken"):
                await request(gate, body=CHAT, token=token)

    asyncio.run(ask())


# --- quotas


def left_after(
    owner: Owner, app: Stub, asking: dict[str, Any] = CHAT, limit: int = 8, gone_after: int | None = None
) -> int:
    """How many output tokens are left of `limit` after one request, of at most 4 for each choice."""
    token = owner.limited(output_tokens=limit)

    async def ask() -> int:
        async with running(owner, app) as gate:
            with contextlib.suppress(OSError):  # the client goes away
                await request(gate, body=asking, token=token, gone_after=gone_after)
            left = 0
            for bound in range(limit, -1, -1):
                app.status = 400  # nothing is generated any more: what was reserved comes back
                app.parts = ()
                if (await request(gate, body=CHAT | {"max_tokens": bound}, token=token)).status == 400:
                    left = bound
                    break
            return left

    return asyncio.run(ask())


def test_what_was_not_used_of_a_quota_comes_back(owner: Owner) -> None:
    assert left_after(owner, Stub(output_tokens=3)) == 5


def test_a_stream_is_settled_by_its_last_usage(owner: Owner) -> None:
    assert left_after(owner, Stub(parts=stream())) == 5


def test_an_aborted_stream_is_settled_by_the_usage_so_far(owner: Owner) -> None:
    """Two events arrived, the third was lost on the way: three token ids were made."""
    assert left_after(owner, Stub(parts=stream()), gone_after=3) == 5
    assert left_after(owner, Stub(parts=stream(told=False)), gone_after=3) == 4


def test_several_choices_are_settled_by_what_all_of_them_have(owner: Owner) -> None:
    """As vLLM tells it: each event has the usage of one choice, and only the last one has that of all."""
    parts = [event(choices=[{"index": i}], usage=usage(7, count)) for count in (1, 2) for i in (0, 1)]
    whole = [*parts, event(choices=[], usage=usage(7, 4)), END]
    several = CHAT | {"n": 2, "stream": True}
    assert left_after(owner, Stub(parts=whole), asking=several, limit=16) == 12
    assert left_after(owner, Stub(parts=parts), asking=several, limit=16, gone_after=4) == 8  # all that was reserved
    held_back = CHAT | {"stream": True, "stream_interval": 100}
    assert left_after(owner, Stub(parts=stream()[:1]), asking=held_back, gone_after=2) == 4


def test_an_answer_without_usage_is_charged_in_full(owner: Owner) -> None:
    assert left_after(owner, Stub(parts=stream(told=False))) == 4


def test_what_the_server_refused_costs_nothing(owner: Owner) -> None:
    assert left_after(owner, Stub(status=400)) == 8


def test_a_quota_needs_a_bound(owner: Owner) -> None:
    limited = owner.limited(output_tokens=100)
    unbound = {name: value for name, value in CHAT.items() if name != "max_tokens"}
    answers = asked(
        owner,
        {"body": unbound, "token": limited},
        {"body": unbound | {"max_completion_tokens": 5}, "token": limited},
        {"body": unbound, "token": owner.limited(requests=5)},
        {"body": unbound, "token": owner.token()},
    )
    assert [answer.status for answer in answers] == [429, 200, 200, 200]


@pytest.mark.parametrize(
    ("path", "body", "requests", "output_tokens"),
    [
        (CHAT_PATH, {"n": 3, "max_tokens": 4}, 3, 12),
        (CHAT_PATH, {"max_tokens": 4, "max_completion_tokens": 6}, 1, 6),
        (CHAT_PATH, {"n": None, "max_tokens": 4, "max_completion_tokens": None}, 1, 4),
        (CHAT_PATH, {"n": 0, "max_tokens": 4}, 1, 4),
        (COMPLETION_PATH, {"prompt": "a", "max_tokens": 4}, 1, 4),
        (COMPLETION_PATH, {"prompt": ["a", "b"], "max_tokens": 4}, 2, 8),
        (COMPLETION_PATH, {"prompt": [5, 6, 7], "max_tokens": 4}, 1, 4),
        (COMPLETION_PATH, {"prompt": [[5, 6], [7]], "n": 2, "max_tokens": 4}, 4, 16),
        (COMPLETION_PATH, {"prompt": ["a", "b"], "n": 2, "best_of": 5, "max_tokens": 1}, 4, 4),
        (COMPLETION_PATH, {"prompt_embeds": ["x", "y", "z"], "max_tokens": 1}, 3, 3),
        (COMPLETION_PATH, {"prompt": "a", "prompt_embeds": "x", "max_tokens": 1}, 2, 2),
        (COMPLETION_PATH, {"prompt": [], "max_tokens": 2}, 1, 2),
        (COMPLETION_PATH, {"prompt": ["a", "b"], "max_tokens": 0, "echo": True}, 2, 2),
    ],
)
def test_prompts_times_choices_times_tokens_are_reserved(
    owner: Owner, path: str, body: dict[str, Any], requests: int, output_tokens: int
) -> None:
    """One more of either would be refused."""

    def status(**limits: int) -> int:
        (answer,) = asked(owner, {"path": path, "body": {"model": NAME} | body, "token": owner.limited(**limits)})
        return answer.status

    assert status(requests=requests) == 200
    assert status(output_tokens=max(output_tokens, 1)) == 200
    if requests > 1:
        assert status(requests=requests - 1) == 429
    if output_tokens > 1:
        assert status(output_tokens=output_tokens - 1) == 429


# --- metering


def metered(owner: Owner) -> list[Used]:
    log = UsageLog(owner.folder / "registry.sqlite")
    try:
        return log.total()
    finally:
        log.close()


def test_usage_is_recorded_by_licensee_and_model(owner: Owner) -> None:
    bolt, ajax = owner.token(), owner.token(licensee="Ajax")
    place = str(owner.folder / "registry.sqlite")
    asked(
        owner,
        {"body": CHAT | {"n": 2}, "token": bolt},
        {"body": CHAT, "token": bolt},
        {"body": CHAT, "token": ajax},
        {"body": CHAT, "token": "a.b.c"},
        registry=place,
    )
    asked(owner, {"body": CHAT | {"stream": True}, "token": bolt}, app=Stub(parts=stream()), registry=place)
    asked(owner, {"body": CHAT, "token": bolt}, app=Stub(status=400), registry=place)
    assert metered(owner) == [Used("Ajax", MODEL, 1, 1, 7, 3, 0), Used(LICENSEE, MODEL, 3, 4, 21, 9, 0)]


@pytest.mark.parametrize("told", [True, False])
def test_an_aborted_stream_is_metered(owner: Owner, told: bool) -> None:
    async def ask() -> None:
        stub = Stub(parts=stream(told=told))
        async with running(owner, stub, registry=str(owner.folder / "registry.sqlite")) as gate:
            with pytest.raises(OSError, match="went away"):
                await request(gate, body=CHAT | {"stream": True}, token=owner.token(), gone_after=3)

    asyncio.run(ask())
    assert metered(owner) == [Used(LICENSEE, MODEL, 1, 1, 7 if told else 0, 3, 1)]


def test_usage_is_flushed_while_the_server_runs_and_survives_a_registry_that_is_away(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oml_fast.serving.permission_gate.SECONDS_BETWEEN_TENDING", 0.02)
    place = owner.folder / "registry.sqlite"

    async def ask() -> None:
        async with running(owner, registry=str(place)) as gate:
            await request(gate, body=CHAT, token=owner.token())
            await asyncio.sleep(0.3)
            assert await asyncio.to_thread(metered, owner) == [Used(LICENSEE, MODEL, 1, 1, 7, 3, 0)]
            away = place.rename(place.with_name("away"))
            await request(gate, body=CHAT, token=owner.token())
            await asyncio.sleep(0.3)
            away.rename(place)

    asyncio.run(ask())
    assert metered(owner) == [Used(LICENSEE, MODEL, 2, 2, 14, 6, 0)]
