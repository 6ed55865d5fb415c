"""What a permission costs: its check alone, the gate around an app that does nothing, and the gate before real vLLM.

Check: `Checker.admit` by kind of token and store. Gate: an app behind it and the same app alone are asked in turn in
one process, without sockets, each request in an order drawn anew; what the gate adds is the difference within a round,
until the gate is done with a request, which is after the client has its answer. All of it on one core, threads of the
gate included. Equality first: what is measured is admitted, spent, passed on and answered as it must be.

`python bench/bench_permission.py` prints a table and writes its part of bench/results/permission.json; PostgreSQL is
measured where its server is installed. `--loop uvloop` measures the gate on the event loop that vLLM serves with, and
`--vllm` a real `vllm serve` with the gate and without, where these are installed, beside the other parts.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import real_vllm
from common import ROOT, Figure, at_most, command, describe_run, parser, start
from parts import finish_part
from permission_stub import (
    BODIES,
    GATED,
    REMARKS,
    SQLITE,
    asked_in_turn,
    figures,
    measure_gate,
    run_on,
    summary,
    tokens,
)

sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "serving")]

from gating import MODEL, Owner
from postgres import find_binaries, fresh_database, running_server

from oml_fast.errors import ReplayedNonce
from oml_fast.permission import Checker, KeyFile, MemoryStore, Request, SqliteStore, Store, read_token
from oml_fast.registry import PermissionStore, upgrade

KINDS = ("session, cached", "session, first", "session, quota", "once")
BARS = {(SQLITE, "session, cached"): 5.0, (SQLITE, "once"): 200.0}  # microseconds, medians
ASKED = Request(output_tokens=16)
Found = Mapping[str, Mapping[str, Mapping[str, float]]]  # by store and kind
LONG_AGO = 1000.0  # seconds: a store knows nothing of what was issued before it began


@contextmanager
def one_core() -> Iterator[None]:
    """For a block: this process and the threads that it starts have one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextmanager
def registry() -> Iterator[str | None]:
    """The URL of a registry on a PostgreSQL server of our own; None where that is not installed."""
    binaries = find_binaries()
    if binaries is None:
        yield None
        return
    with running_server(binaries) as server:
        url = fresh_database(server)
        upgrade(url)
        PermissionStore(url, now=time.time() - LONG_AGO).close()
        yield url


@contextmanager
def opened(owner: Owner, url: str | None) -> Iterator[dict[str, Store]]:
    """The stores by name; that in the registry at `url` where there is one."""
    began = time.time() - LONG_AGO
    stores: dict[str, Store] = {
        "memory": MemoryStore(now=began),
        SQLITE: SqliteStore(owner.settings().store),
        f"{SQLITE}, durable": SqliteStore(owner.folder / "durable.sqlite", durable=True, now=began),
    }
    if url is not None:
        stores["PostgreSQL"] = PermissionStore(url)
    try:
        yield stores
    finally:
        for store in stores.values():
            store.close()


def checker(owner: Owner, store: Store) -> Checker:
    return Checker(KeyFile(owner.folder / "keys.jws", owner.owner.verification_key, store), MODEL, store)


def assert_admits(owner: Owner, made: Checker) -> None:
    """What the token says; and what is spent is not admitted again."""
    for kind in KINDS:
        (token,) = tokens(owner, kind, 1)
        admission = made.admit(token, request=ASKED)
        assert admission.permission == read_token(token, lambda kid: owner.key.verification_key)
        assert (admission.reserved is not None) == (kind == "session, quota")
        if kind == "once":
            with pytest.raises(ReplayedNonce):
                made.admit(token)


def measure_checks(owner: Owner, store: Store, rounds: int) -> dict[str, list[float]]:
    """Microseconds of each check, by kind."""
    made = checker(owner, store)
    assert_admits(owner, made)
    given = {kind: tokens(owner, kind, rounds) for kind in KINDS}
    taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
    made.admit(given["session, cached"][0])
    for kind, each in given.items():
        gc.collect()
        for token in each:
            began = time.perf_counter_ns()
            made.admit(token, request=ASKED)
            taken[kind].append((time.perf_counter_ns() - began) / 1000)
    made.close()
    return taken


def check_figures(found: Found, cpu: str) -> list[Figure]:
    return [
        Figure(
            f"permission check, {kind}",
            f"{store}{REMARKS.get(store, '')}; p99 {each['p99']:.1f} us; one core of {cpu}",
            *at_most(each["median"], BARS.get((store, kind)), 1, " us"),
            command(),
        )
        for store, kinds in found.items()
        for kind, each in kinds.items()
    ]


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["memory", SQLITE, f"{SQLITE}, durable"])
def bench_check(benchmark: Any, owner: Owner, name: str, kind: str) -> None:
    with opened(owner, None) as stores:
        made = checker(owner, stores[name])
        assert_admits(owner, made)
        left = iter(tokens(owner, kind, 200))
        benchmark.pedantic(made.admit, setup=lambda: ((next(left),), {"request": ASKED}), rounds=200)


@pytest.mark.parametrize("kind", GATED)
@pytest.mark.parametrize("body", BODIES)
def bench_gate(benchmark: Any, owner: Owner, body: str, kind: str) -> None:
    """A hundred requests, and as many to the app alone."""
    given = (owner, owner.settings(), BODIES[body], kind, 100)
    benchmark.pedantic(lambda: run_on("asyncio", asked_in_turn(*given)), rounds=3)


def main() -> None:
    options = parser(__doc__, "permission")
    options.add_argument("--rounds", type=int, help="measurements of each case (default: 4000; with --vllm 60 a start)")
    options.add_argument("--requests", type=int, help="of a saturated round (default: 4000), or of a batch (20)")
    options.add_argument("--starts", type=int, default=3, help="of the real servers (default: 3)")
    options.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio", help="the gate's event loop")
    options.add_argument("--vllm", action="store_true", help="measure the gate before a real server instead")
    arguments = options.parse_args()
    if arguments.vllm:
        if not real_vllm.importable():
            options.error("--vllm needs vLLM: make test-all installs it, into an environment of its own")
        import permission_vllm

        rounds, requests = arguments.rounds or 60, arguments.requests or 20
        run, rows, details = permission_vllm.measure(rounds, requests, arguments.starts, arguments.threads)
        finish_part(arguments.out, "vllm serve", run, rows, details)
        return
    start(arguments.threads)
    run = describe_run(arguments.threads)
    with tempfile.TemporaryDirectory() as folder, registry() as url, one_core():
        owner = Owner(Path(folder))
        checks = checked(owner, url, arguments.rounds or 4000) if arguments.loop == "asyncio" else {}
        cases = gated(owner, url, arguments)
    rows = check_figures(checks, run["cpu"])
    rows += [row for case in cases for row in figures(case, f"{arguments.loop}, one core of {run['cpu']}")]
    finish_part(arguments.out, f"stub on {arguments.loop}", run, rows, {"checks": checks, "cases": cases})


def checked(owner: Owner, url: str | None, rounds: int) -> Found:
    with opened(owner, url) as stores:
        taken = {name: measure_checks(owner, store, rounds) for name, store in stores.items()}
    return {name: {kind: summary(each) for kind, each in kinds.items()} for name, kinds in taken.items()}


def gated(owner: Owner, url: str | None, arguments: Any) -> list[dict[str, Any]]:
    places = {SQLITE: owner.settings()} | ({} if url is None else {"PostgreSQL": owner.settings(store=url)})
    rounds, requests = arguments.rounds or 4000, arguments.requests or 4000
    return [
        measure_gate(owner, settings, name, body, arguments.loop, rounds, requests)
        for name, settings in places.items()
        for body in BODIES
    ]


if __name__ == "__main__":
    main()
