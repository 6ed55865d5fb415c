"""Many requests at a concurrency of 64, half of them invalid: every answer is right, and memory stays flat."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from typing import Any

import psutil
import pytest
from gating import CHAT, Owner, Stub, request, running

from oml_fast.permission import Limits

CONCURRENCY = 64
COUNT = 20_000 if os.environ.get("OML_FAST_TEST_ALL") else 2_000


def requests_of(owner: Owner, count: int) -> list[tuple[dict[str, Any], int, str]]:
    """(what is asked, status, code), in an order of chance. Each single-use token is asked once and replayed once."""
    order = random.Random(1)  # noqa: S311
    sessions = [owner.token(licensee=f"licensee {number}") for number in range(50)]
    quota = owner.token(limits=Limits(requests=10**9, output_tokens=10**9))
    expired = owner.token(now=time.time() - 900, lifetime=100)
    other = owner.token(models="cd" * 32)
    found: list[tuple[dict[str, Any], int, str]] = []
    while len(found) < count:
        session = order.choice(sessions)
        place = order.randrange(len(session) - 1)
        changed = session[:place] + ("A" if session[place] != "A" else "B") + session[place + 1 :]
        found += [
            ({"body": CHAT, "token": session}, 200, ""),
            ({"body": CHAT, "token": quota}, 200, ""),
            ({"body": CHAT, "token": owner.token(use="once")}, 200, ""),
            ({"body": CHAT, "token": session}, 200, ""),
            ({"body": CHAT, "token": changed}, 401, "malformed_token or bad_signature"),
            ({"body": CHAT, "token": expired}, 401, "expired"),
            ({"body": CHAT, "token": other}, 403, "wrong_model"),
            ({"body": CHAT, "token": session, "path": "/pause"}, 403, "route_not_licensed"),
        ]
    order.shuffle(found)
    return found


@pytest.mark.slow
def test_every_answer_is_right_and_memory_stays_flat(owner: Owner) -> None:
    wrong: Counter[tuple[int, str, int, str]] = Counter()
    stub = Stub()
    grown = 0

    async def one(gate: Any, asked: dict[str, Any], status: int, code: str) -> None:
        answer = await request(gate, **asked)
        found = "" if answer.status == 200 else answer.code
        if answer.status != status or (found != code and found not in code.split(" or ")):
            wrong[status, code, answer.status, found] += 1
        stub.seen.clear()
        stub.bodies.clear()

    async def ask(gate: Any, asked: list[tuple[dict[str, Any], int, str]]) -> None:
        left = iter(asked)

        async def work() -> None:
            for each in left:
                await one(gate, *each)

        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))

    async def run() -> None:
        nonlocal grown
        async with running(owner, stub) as gate:
            await ask(gate, requests_of(owner, 1_000))  # what is allocated once is there now
            asked = requests_of(owner, COUNT)
            before = psutil.Process().memory_info().rss
            await ask(gate, asked)
            grown = psutil.Process().memory_info().rss - before

    asyncio.run(run())
    assert wrong == {}
    assert grown < 16 << 20
