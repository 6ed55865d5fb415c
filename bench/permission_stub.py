"""The permission gate around an app that does nothing, and the app alone: what the gate adds to a request.

Both are asked in turn in one process, without sockets, each request in an order drawn anew; what the gate adds is the
difference within a round. It is counted until the gate is done with a request, which is after the client has its
answer; how long that takes is told, too. Equality first: what is measured is admitted, passed on and answered as it
must be.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from common import ROOT, Figure, at_most, command

sys.path.append(str(ROOT / "tests" / "serving"))

from gating import CHAT_PATH, NAME, Owner, scope_of

from oml_fast.permission import Limits
from oml_fast.serving.gate_settings import GateSettings
from oml_fast.serving.permission_gate import PermissionGate

ALONE = "alone"
QUOTA = Limits(requests=10**9, output_tokens=10**12)
GATED = ("session", "session, quota", "once")
BARS = {"session": 35.0, "session, quota": 35.0, "once": 150.0}  # microseconds, medians; SQLite and the short body
P99_BAR = 1000.0  # of sessions
CONCURRENCY = 64
SHORT, LONG = "short", "long"
SQLITE = "SQLite"
REMARKS = {"PostgreSQL": " on loopback without fsync"}
ANSWER = json.dumps({"usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}).encode()
Scope = dict[str, Any]


@dataclass(slots=True)
class Stub:
    """An app that reads the body, and answers."""

    body: bytes = b""

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        message = await receive()
        parts = [message["body"]]
        while message["more_body"]:
            message = await receive()
            parts.append(message["body"])
        self.body = b"".join(parts)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": ANSWER})


@dataclass(slots=True)
class Asked:
    """One request to an app. Nanoseconds until the last part of its answer, and until the app was done with it.

    late: others have their turn before the body is there.
    """

    body: bytes
    late: bool = False
    sent: list[dict[str, Any]] = field(default_factory=list)
    answered: int = 0
    done: int = 0

    async def of(self, app: Any, scope: Scope) -> Asked:
        began = time.perf_counter_ns()
        await app(scope, self._receive, self._send)
        self.done = time.perf_counter_ns() - began
        self.answered -= began
        return self

    async def _receive(self) -> dict[str, Any]:
        if self.late:
            await asyncio.sleep(0)
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        self.answered = time.perf_counter_ns()

    @property
    def answer(self) -> tuple[int, bytes]:
        return self.sent[0]["status"], self.sent[1]["body"]


def chat(length: int) -> bytes:
    """A chat request of at least `length` bytes."""
    messages = [{"role": "system", "content": "You are a helpful assistant."}]
    text = "Name the capital of France, and say in one sentence what it is known for. "
    body = {"model": NAME, "messages": messages, "max_tokens": 16, "temperature": 0, "stream": False}
    messages.append({"role": "user", "content": text * (1 + length // len(text))})
    return json.dumps(body).encode()


BODIES = {SHORT: chat(80), LONG: chat(99_700)}  # a few hundred bytes, and 100 kB


def tokens(owner: Owner, kind: str, count: int) -> list[str]:
    """One for each request; all are the same where the kind says so."""
    given: dict[str, Any] = {"use": "once"} if kind == "once" else {}
    if kind == "session, quota":
        given["limits"] = QUOTA
    if kind in ("once", "session, first"):
        return [owner.token(**given) for _ in range(count)]
    return [owner.token(**given)] * count


def scope(token: str, body: bytes) -> Scope:
    """As a server makes it of a request of an SDK."""
    fields = {"host": "127.0.0.1:8000", "accept": "application/json", "content-type": "application/json"}
    fields |= {"user-agent": "OpenAI/Python", "authorization": f"Bearer {token}", "content-length": str(len(body))}
    return scope_of("POST", CHAT_PATH, [(name.encode(), value.encode()) for name, value in fields.items()])


async def assert_passes(owner: Owner, gate: PermissionGate, stub: Stub, body: bytes) -> None:
    """The gate's answer is the app's own, whose body names the licensee and is else the client's; or it refuses."""
    alone = await Asked(body).of(stub, scope("", body))
    for kind in GATED:
        (token,) = tokens(owner, kind, 1)
        behind = await Asked(body).of(gate, scope(token, body))
        assert behind.answer == alone.answer == (200, ANSWER), behind.answer
        seen = json.loads(stub.body)
        assert seen.pop("vllm_xargs") == {"oml_licensee": "Bolt"}
        assert seen == json.loads(body)
    refused = await Asked(body).of(gate, scope("", body))
    assert refused.answer[0] == 401, refused.answer


async def asked_in_turn(
    owner: Owner, settings: GateSettings, body: bytes, kind: str, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Microseconds until the answer and until the end of each request: of the app alone and behind the gate."""
    drawn, stub = random.Random(0), Stub()  # noqa: S311 - the order of requests is no secret
    gate = PermissionGate(stub, settings)
    await assert_passes(owner, gate, stub, body)
    given = {ALONE: [scope("", body)] * rounds, kind: [scope(token, body) for token in tokens(owner, kind, rounds)]}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in given}
    gc.collect()
    for number in range(rounds):
        for name in drawn.sample(list(given), len(given)):
            await asyncio.sleep(0)  # the loop has its turn between requests, as in a server
            asked = await Asked(body).of(stub if name == ALONE else gate, given[name][number])
            taken[name].append((asked.answered / 1000, asked.done / 1000))
    await gate.close()
    return taken


async def saturated(
    owner: Owner, settings: GateSettings, body: bytes, requests: int, rounds: int
) -> dict[str, list[float]]:
    """Requests per second with 64 at once, in each round, of the app alone and behind the gate."""
    stub = Stub()
    gate = PermissionGate(stub, settings)
    rates: dict[str, list[float]] = {name: [] for name in (ALONE, *GATED)}
    for _ in range(rounds):
        for name, found in rates.items():
            app = stub if name == ALONE else gate
            given = [""] * requests if name == ALONE else tokens(owner, name, requests)
            found.append(requests / await seconds_of_all(app, [scope(token, body) for token in given], body))
    await gate.close()
    return rates


async def seconds_of_all(app: Any, scopes: Sequence[Scope], body: bytes) -> float:
    left = iter(scopes)

    async def work() -> None:
        for each in left:
            asked = await Asked(body, late=True).of(app, each)
            assert asked.answer[0] == 200, asked.answer

    gc.collect()
    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
    return time.perf_counter() - began


def run_on(loop: str, call: Any) -> Any:
    """Run a coroutine on an event loop of a kind: asyncio or uvloop."""
    factory = None if loop == "asyncio" else importlib.import_module(loop).new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(call)


def measure_gate(
    owner: Owner, settings: GateSettings, store: str, body: str, loop: str, rounds: int, requests: int
) -> dict[str, Any]:
    """One store and one body; with the short one also how many requests there can be."""
    content = BODIES[body]
    taken = {kind: run_on(loop, asked_in_turn(owner, settings, content, kind, rounds)) for kind in GATED}
    case = {
        "store": store,
        "body": body,
        "bytes": len(content),
        "alone": summary([done for each in taken.values() for _, done in each[ALONE]]),
        "added": {kind: added(each, kind) for kind, each in taken.items()},
    }
    return case if body == LONG else case | {"rates": run_on(loop, saturated(owner, settings, content, requests, 3))}


def summary(taken: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(taken)), "p99": float(np.quantile(taken, 0.99))}


def added(taken: Mapping[str, Sequence[tuple[float, float]]], kind: str) -> dict[str, dict[str, float]]:
    """What the gate adds to a request, by when that ends: of the differences within each round."""
    differences = np.array(taken[kind]) - np.array(taken[ALONE])
    return {"answered": summary(differences[:, 0]), "done": summary(differences[:, 1])}


def figures(case: Mapping[str, Any], where: str) -> list[Figure]:
    rows = []
    barred = case["store"] == SQLITE and case["body"] == SHORT
    what = f"{case['store']}{REMARKS.get(case['store'], '')}, body of {case['bytes']:,} bytes; {where}"
    for kind, each in case["added"].items():
        median, p99 = each["done"]["median"], each["done"]["p99"]
        until = f"{each['answered']['median']:.1f} us of it until the answer's end"
        setting = f"{kind}; {what}; {until}, p99 {p99:.0f} us; app alone {case['alone']['median']:.1f} us"
        bar = at_most(median, BARS[kind] if barred else None, 1, " us")
        rows.append(Figure("gate, added to a request, median", setting, *bar, command()))
        if barred and kind != "once":
            bar = at_most(p99, P99_BAR, 0, " us")
            rows.append(Figure("gate, added to a request, p99", f"{kind}; {what}", *bar, command()))
    return rows + [rate_figure(kind, case["rates"], what) for kind in GATED if "rates" in case]


def rate_figure(kind: str, rates: Mapping[str, Sequence[float]], what: str) -> Figure:
    alone, behind = float(np.median(rates[ALONE])), float(np.median(rates[kind]))
    setting = f"{kind}; {what}; app alone {alone:,.0f}, {alone / behind:.1f} times as many"
    name = f"gate, requests per second with {CONCURRENCY} at once"
    return Figure(name, setting, f"{behind:,.0f}", "", None, command())
