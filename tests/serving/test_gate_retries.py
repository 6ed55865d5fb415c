"""Single-use permissions: one generation, whatever happens to the connection, and its answer again for a retry."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from gating import CHAT, CHAT_PATH, Owner, Stub, asked, event, request, running, scope_of

from oml_fast.permission.stores import MOST_ANSWER_BYTES


@pytest.mark.parametrize("parts", [(), (event(a=1), event(a=2), b"data: [DONE]\n\n") * 5])
def test_a_retry_gets_the_first_answer_and_nothing_is_generated_again(owner: Owner, parts: tuple[bytes, ...]) -> None:
    stub = Stub(parts=parts)
    once = owner.token(use="once")
    first, retry = asked(owner, {"body": CHAT, "token": once}, {"body": CHAT, "token": once}, app=stub)
    assert (first.status, first.content) == (retry.status, retry.content)
    assert retry.headers["content-type"] == first.headers["content-type"]
    assert len(stub.seen) == 1


def test_the_same_token_with_another_body_is_a_replay(owner: Owner) -> None:
    stub = Stub()
    once = owner.token(use="once")
    _, other = asked(owner, {"body": CHAT, "token": once}, {"body": CHAT | {"seed": 1}, "token": once}, app=stub)
    assert (other.status, other.code) == (403, "replayed_nonce")
    assert len(stub.seen) == 1


def test_a_retry_waits_for_the_first_try(owner: Owner) -> None:
    async def ask() -> None:
        stub = Stub(going=asyncio.Event())
        once = owner.token(use="once")
        async with running(owner, stub) as gate:
            first = asyncio.create_task(request(gate, body=CHAT, token=once))
            retry = asyncio.create_task(request(gate, body=CHAT, token=once))
            await asyncio.sleep(0.2)
            assert not first.done()
            assert not retry.done()
            assert stub.going is not None
            stub.going.set()
            answers = await asyncio.gather(first, retry)
        assert [answer.status for answer in answers] == [200, 200]
        assert answers[0].content == answers[1].content
        assert len(stub.seen) == 1

    asyncio.run(ask())


def test_a_retry_does_not_wait_for_ever(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oml_fast.serving.permission_gate.SECONDS_TO_WAIT", 0.1)

    async def ask() -> None:
        stub = Stub(going=asyncio.Event())
        once = owner.token(use="once")
        async with running(owner, stub) as gate:
            first = asyncio.create_task(request(gate, body=CHAT, token=once))
            await asyncio.sleep(0.05)
            retry = await request(gate, body=CHAT, token=once)
            assert (retry.status, retry.code, retry.headers["retry-after"]) == (409, "in_progress", "1")
            assert stub.going is not None
            stub.going.set()
            await first

    asyncio.run(ask())


def test_only_so_many_retries_wait_at_once(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oml_fast.serving.permission_gate.MOST_WAITING", 3)

    async def ask() -> None:
        stub = Stub(going=asyncio.Event())
        once = owner.token(use="once")
        async with running(owner, stub) as gate:
            tries = [asyncio.create_task(request(gate, body=CHAT, token=once)) for _ in range(6)]
            await asyncio.sleep(0.3)
            refused = [task.result() for task in tries if task.done()]
            assert [answer.code for answer in refused] == ["in_progress"] * 2
            assert stub.going is not None
            stub.going.set()
            answers = await asyncio.gather(*tries)
        assert sorted(answer.status for answer in answers) == [200] * 4 + [409] * 2

    asyncio.run(ask())


def test_the_answer_is_made_and_kept_though_the_client_went_away(owner: Owner) -> None:
    """At the first message already, before the body of the answer."""

    async def ask() -> None:
        stub = Stub()
        once = owner.token(use="once")
        async with running(owner, stub) as gate:
            lost = await request(gate, body=CHAT, token=once, gone_after=0)
            retry = await request(gate, body=CHAT, token=once)
        assert lost.status == 0
        assert retry.json["answer"] == 1
        assert len(stub.seen) == 1

    asyncio.run(ask())


def test_an_app_that_listens_for_the_client_is_not_told_that_it_left(owner: Owner) -> None:
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        listening = asyncio.create_task(receive())
        await asyncio.sleep(0.05)
        if listening.done():
            told.append(listening.result()["type"])
        listening.cancel()
        await Stub().answer(send)

    for use, expected in (("once", []), ("session", ["http.disconnect"])):

        async def ask(use: str = use) -> None:
            sent: list[Any] = []
            messages = [{"type": "http.request", "body": json.dumps(CHAT).encode()}, {"type": "http.disconnect"}]

            async def receive() -> Any:
                return messages.pop(0)

            async def send(message: Any) -> None:
                sent.append(message)

            headers = [(b"authorization", f"Bearer {owner.token(use=use)}".encode())]
            async with running(owner, app) as gate:
                await gate(scope_of("POST", CHAT_PATH, headers), receive, send)

        asyncio.run(ask())
        assert told == expected


def test_a_refusal_of_the_server_is_repeated_too(owner: Owner) -> None:
    stub = Stub(status=400)
    once = owner.token(use="once")
    answers = asked(owner, {"body": CHAT, "token": once}, {"body": CHAT, "token": once}, app=stub)
    assert [answer.status for answer in answers] == [400, 400]
    assert len(stub.seen) == 1


def test_an_answer_too_large_to_keep_is_gone(owner: Owner) -> None:
    stub = Stub(parts=[b"data: " + b"x" * (MOST_ANSWER_BYTES // 2) + b"\n\n"] * 3)
    once = owner.token(use="once")
    first, retry = asked(owner, {"body": CHAT, "token": once}, {"body": CHAT, "token": once}, app=stub)
    assert first.status == 200
    assert (retry.status, retry.code, retry.headers["x-should-retry"]) == (409, "answer_lost", "false")
    assert len(stub.seen) == 1


def test_a_hundred_at_once_are_one_generation(owner: Owner) -> None:
    async def ask() -> None:
        stub = Stub()
        once = owner.token(use="once")
        async with running(owner, stub) as gate:
            answers = await asyncio.gather(*(request(gate, body=CHAT, token=once) for _ in range(100)))
        assert {answer.status for answer in answers} == {200}
        assert {answer.content for answer in answers} == {answers[0].content}
        assert len(stub.seen) == 1

    asyncio.run(ask())
