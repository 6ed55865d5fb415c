"""Two real vLLM servers of the bundled model, one behind the permission gate: what the gate costs there.

Both run at the same time, and are asked in turn: in each round every side has one batch of requests, in an order drawn
anew. They are started several times, each of them first in turn, for two servers are not alike to the percent. Equality
first: for each prompt all sides complete the same, and the gate refuses who has no token.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import real_vllm
from bench_endpoint import cpu_of_tree
from common import ROOT, Figure, command, describe_run

from oml_fast import settings
from oml_fast.models import bundled_model, model_digest

sys.path.append(str(ROOT / "tests" / "serving"))

from gating import Owner

OFF, GATE, GATED = "no gate", "gate", ("session", "once")
LEAST, MOST = 0.95, 1.05  # of the throughput without a gate: where the 95 % interval must lie
MOST_CPU = 1.01
CONCURRENCY = 4
WARM_UP = 3  # batches of each side
SETTLING = 0.05  # seconds after a batch until all that it made the server do is done
DRAWS = 10_000
Tokens = Callable[[], str | None]
Rounds = Sequence[Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class Side:
    """A server, and the token that each request to it carries."""

    url: str
    pid: int
    token: Tokens


@contextmanager
def both(folder: Path, *, gate_first: bool) -> Iterator[dict[str, Side]]:
    """`oml-fast serve` and `vllm serve` with the same options."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        owner, digest = Owner(Path(name)), model_digest(folder)
        path = write_settings(owner, digest)
        programs = {GATE: [sys.executable, "-P", "-m", "oml_fast.cli", "serve", "--settings", str(path)], OFF: []}
        order = sorted(programs, key=lambda each: (each == GATE) != gate_first)
        found = {each: running.enter_context(real_vllm.served(folder, programs[each])) for each in order}
        session = owner.token(models=digest)
        yield {
            OFF: Side(*found[OFF], lambda: None),
            "session": Side(*found[GATE], lambda: session),
            "once": Side(*found[GATE], lambda: owner.token(models=digest, use="once")),
        }


def write_settings(owner: Owner, digest: str) -> Path:
    values = owner.settings()
    path = owner.folder / "gate.yaml"
    places = {"owner_key": str(values.owner_key), "keys": str(values.keys), "store": values.store}
    path.write_text(json.dumps({**places, "models": {real_vllm.NAME: digest}}))
    return path


class Client:
    """Asks for one token id each, with some requests at once."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def ask(self, side: Side, prompt: str, token: str | None) -> tuple[int, str]:
        """The status, and what was completed."""
        body = {"model": real_vllm.NAME, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with self._session.post(f"{side.url}/completions", json=body, headers=headers) as response:
            answer = await response.json()
            return response.status, answer["choices"][0]["text"] if response.status == 200 else ""

    async def batch(self, side: Side, prompts: Sequence[str]) -> dict[str, float]:
        """Seconds of the wall, and of the CPU of all the server's processes."""
        left = iter([(prompt, side.token()) for prompt in prompts])
        before = cpu_of_tree(side.pid)
        began = time.perf_counter()

        async def work() -> None:
            for prompt, token in left:
                status, _ = await self.ask(side, prompt, token)
                assert status == 200, f"{side.url} answers {status}"

        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        wall = time.perf_counter() - began
        await asyncio.sleep(SETTLING)
        return {"wall": wall, "cpu": cpu_of_tree(side.pid) - before}


@contextmanager
def alone(side: Side, sides: Iterable[Side]) -> Iterator[None]:
    """The other servers are stopped: an engine that has nothing to do spins for a second, on a core that counts."""
    others = {other.pid for other in sides} - {side.pid}
    try:
        for pid in others:
            os.killpg(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in others:
            os.killpg(pid, signal.SIGCONT)


def some_prompts(count: int) -> list[str]:
    return [f"Request {number} of {count}. The capital of France is" for number in range(count)]


async def assert_equal(client: Client, sides: Mapping[str, Side], prompts: Sequence[str]) -> None:
    for prompt in prompts:
        found = {name: await client.ask(side, prompt, side.token()) for name, side in sides.items()}
        assert {status for status, _ in found.values()} == {200}, found
        assert len({text for _, text in found.values()}) == 1, found
    status, _ = await client.ask(sides["session"], prompts[0], None)
    assert status == 401, f"without a token the gate answers {status}"


async def measured(
    sides: Mapping[str, Side], rounds: int, requests: int, seed: int
) -> list[dict[str, dict[str, float]]]:
    """Each round's batch of every side."""
    drawn, prompts = random.Random(seed), some_prompts(requests)  # noqa: S311 - the order of batches is no secret
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY)) as session:
        client = Client(session)
        await assert_equal(client, sides, prompts)
        found = []
        for number in range(WARM_UP + rounds):
            names = drawn.sample(list(sides), len(sides))
            costs = {}
            for name in names:
                with alone(sides[name], sides.values()):
                    costs[name] = await client.batch(sides[name], prompts)
            if number >= WARM_UP:
                found.append(costs)
        return found


def measure(
    rounds: int, requests: int, starts: int, threads: int
) -> tuple[dict[str, Any], list[Figure], dict[str, Any]]:
    """The run, the figures and the details."""
    folder = Path(bundled_model(settings.cache_dir()))
    run = describe_run(threads) | {"model": folder.name, "dtype": "bfloat16"}
    version = importlib.metadata.version("vllm")
    found: list[dict[str, dict[str, float]]] = []
    for number in range(starts):
        with both(folder, gate_first=number % 2 == 0) as sides:
            found += asyncio.run(measured(sides, rounds, requests, number))
    engine = f"vLLM {version} on {run['cores']} cores of {run['cpu']}, {folder.name} in bfloat16"
    cases = {name: compared(found, name, requests) for name in GATED}
    rows = [row for name, case in cases.items() for row in figures(name, case, f"{engine}, started {starts} times")]
    return run, rows, {"vllm": version, "requests": requests, "starts": starts, "cases": cases, "rounds": found}


def compared(rounds: Rounds, name: str, requests: int) -> dict[str, Any]:
    """One side against the server without a gate: ratios with their 95 % intervals, and milliseconds of CPU."""
    costs = {
        what: np.array([[costs[side][what] for side in (OFF, name)] for costs in rounds]) for what in ("wall", "cpu")
    }
    off, on = (1000 * float(costs["cpu"][:, column].sum()) / (len(rounds) * requests) for column in (0, 1))
    return {
        "pairs": len(rounds),
        "throughput": with_interval(costs["wall"], lambda pairs: np.median(pairs[..., 0] / pairs[..., 1], axis=-1)),
        "cpu": with_interval(costs["cpu"], lambda pairs: pairs[..., 1].sum(-1) / pairs[..., 0].sum(-1)),
        "cpu_ms": {"off": off, "on": on},
        "per_second": {
            side: requests / float(np.median(costs["wall"][:, column])) for column, side in enumerate(("off", "on"))
        },
    }


def with_interval(pairs: np.ndarray, statistic: Callable[[np.ndarray], Any]) -> dict[str, float]:
    """A statistic over pairs [..., P, 2], and its 95 % interval by the bootstrap over pairs."""
    drawn = np.random.default_rng(0).integers(len(pairs), size=(DRAWS, len(pairs)))
    low, high = np.quantile(statistic(pairs[drawn]), (0.025, 0.975))
    return {"value": float(statistic(pairs)), "low": float(low), "high": float(high)}


def figures(name: str, case: Mapping[str, Any], engine: str) -> list[Figure]:
    throughput, cpu, rates, costs = case["throughput"], case["cpu"], case["per_second"], case["cpu_ms"]
    session = name == "session"
    setting = f"{engine}; {name} tokens, 1 token id a request, {CONCURRENCY} at once, {case['pairs']} pairs of batches"
    return [
        Figure(
            "gate on a real server, throughput of that without",
            f"{setting}; {rates['on']:.1f} and {rates['off']:.1f} requests per second",
            shown(throughput),
            f"95 % interval in {LEAST:.0%} to {MOST:.0%}" if session else "",
            throughput["low"] >= LEAST and throughput["high"] <= MOST if session else None,
            command(),
        ),
        Figure(
            "gate on a real server, CPU a request of that without, all processes",
            f"{setting}; {costs['on']:.2f} and {costs['off']:.2f} ms",
            shown(cpu),
            f"<= {MOST_CPU:.0%}" if session else "",
            cpu["value"] <= MOST_CPU if session else None,
            command(),
        ),
    ]


def shown(found: Mapping[str, float]) -> str:
    return f"{found['value']:.1%} ({found['low']:.1%} to {found['high']:.1%})"
