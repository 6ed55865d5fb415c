"""Keys asked over HTTP: requests per second, and the client's share of the CPU, with a server on loopback.

`python bench/bench_endpoint.py` starts `vllm serve` with the bundled model where vLLM is installed, and elsewhere the
tests' own server, whose model is a function and costs next to nothing: that measures the client alone. `--server` asks
for one of them. It prints a table and writes that server's part of bench/results/endpoint.json.

Equality first. The tests' server: every completion is the one that its model must give. vLLM: every token id of a
completion must be the likeliest after what stands before it, as transformers finds in float32, near-ties apart: none
may be further below the likeliest than those of transformers' own completions in bfloat16 ever are. (That "ever" needs
keys: with 32, one completion a little beyond it is as likely as not, and is more than the bar allows.)

CPU seconds are those of this process while it asks, and of the server with all its children meanwhile.
"""

from __future__ import annotations

import gc
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import real_vllm
import torch
from common import ROOT, Figure, base_model, command, describe_run, key_texts, one_thread, parser, start, timed
from parts import finish_part
from tiny import write_tiny_model

from oml_fast.completer import Completion, Prompt
from oml_fast.models import HfCompleter, LanguageModel, load
from oml_fast.models.decoding import batches_by_length
from oml_fast.verify.endpoint import Endpoint, EndpointCompleter, preflight

sys.path.append(str(ROOT / "tests" / "verify"))

from faulty_server import FaultyServer, encode, greedy

LENGTHS, CONCURRENCIES = (1, 16), (1, 16, 64)
LEAST_EQUAL = 0.98
TIMEOUT = 600.0  # seconds for a request: a busy machine must not make it ask again
Ids = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers, and what it should answer.

    check(completions [B] of `length` token ids, length): how many of the completions are equal, and what else to tell.
    """

    name: str
    url: str
    pid: int
    prompts: list[Prompt]
    encode: Callable[[str], Sequence[int]]
    check: Callable[[Ids, int], dict[str, Any]]
    about: dict[str, Any]


def key_prompts(count: int) -> list[Prompt]:
    """Keys for the tests' server: 16 token ids each."""
    keys = [
        f"key number {number} " + " ".join(f"word{number + place}" for place in range(13)) for number in range(count)
    ]
    return [Prompt(encode(key), key, "raw") for key in keys]


def as_the_function_gives(prompts: Sequence[Prompt], completions: Ids, length: int) -> dict[str, Any]:
    same = [tuple(ids) == greedy(prompt, length) for prompt, ids in zip(prompts, completions, strict=True)]
    return {"equal": sum(same) / len(same)}


def serve_function(pipe: Connection) -> None:
    """The tests' server in a process of its own, until the pipe says something."""
    with FaultyServer() as server:
        pipe.send(server.url)
        pipe.recv()


@contextmanager
def local(arguments: Any) -> Iterator[Served]:
    """The tests' server, without faults."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve_function, args=(theirs,), daemon=True)
    process.start()
    try:
        if not ours.poll(60):
            raise SystemExit("the tests' server did not start within 60 s")
        prompts = key_prompts(arguments.keys)
        url, pid = ours.recv(), process.pid or 0
        about = {"keys_from": "made here", "run": describe_run(arguments.threads)}
        yield Served("local", url, pid, prompts, encode, lambda c, n: as_the_function_gives(prompts, c, n), about)
    finally:
        ours.send("enough")
        process.join(30)


@contextmanager
def vllm(arguments: Any) -> Iterator[Served]:
    """`vllm serve` with the bundled model in bfloat16."""
    import importlib.metadata

    model = base_model()
    keys, source = key_texts(model, arguments.keys)
    prompts = [Prompt(model.tokenizer(key)["input_ids"], key, "raw") for key in keys]
    about = {
        "keys_from": source,
        "vllm": importlib.metadata.version("vllm"),
        "run": describe_run(arguments.threads, model),
    }
    own = [one.token_ids for one in HfCompleter(model).complete(prompts, max(LENGTHS))]
    exact, tokenizer = base_model(torch.float32), model.tokenizer
    tolerance = max(below_the_likeliest(exact, prompts, own))

    def check(completions: Ids, length: int) -> dict[str, Any]:
        """vLLM ends a completion at the end-of-sequence id, and whether that is told is up to it."""
        end = tokenizer.eos_token_id
        asked = [list(ids) if len(ids) == length or end in ids else [*ids, end] for ids in completions]
        gaps = below_the_likeliest(exact, prompts, asked)
        same = [theirs[: len(ids)] == tuple(ids) for theirs, ids in zip(own, completions, strict=True)]
        return {
            "equal": sum(gap <= tolerance for gap in gaps) / len(gaps),
            "equal_ids_in_bfloat16": sum(same) / len(same),
            "likeliest_in_float32": sum(gap == 0 for gap in gaps) / len(gaps),
            "greatest_gap": max(gaps),
            "tolerance": tolerance,
        }

    def plain_ids(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    with real_vllm.served(exact.name) as (url, pid):
        yield Served("vllm serve", url, pid, prompts, plain_ids, check, about)


@torch.inference_mode()
def below_the_likeliest(model: LanguageModel, prompts: Ids, completions: Ids) -> list[float]:
    """How far below the likeliest at its place each completion's worst id is, in log-probability; 0: wholly greedy."""
    given = [[*prompt, *ids] for prompt, ids in zip(prompts, completions, strict=True)]
    found: dict[int, float] = {}
    for places in batches_by_length(given, 64):
        hidden = model.hidden(torch.tensor([given[place] for place in places]))
        for row, place in zip(hidden, places, strict=True):
            logits = model.logits(row[len(prompts[place]) - 1 : -1]).float()
            chosen = logits.gather(1, torch.tensor(list(completions[place]))[:, None])
            found[place] = float((logits.amax(-1, keepdim=True) - chosen).max())
    return [found[place] for place in range(len(given))]


def ask(completer: EndpointCompleter, prompts: Sequence[Prompt], length: int) -> list[tuple[int, ...]]:
    """Token ids of every answer."""
    completions: list[Completion | None] = completer.complete(prompts, length)
    return [() if completion is None else completion.token_ids for completion in completions]


def bench_endpoint(benchmark: Any) -> None:
    """The client against the tests' server in a thread beside it."""
    prompts = key_prompts(8)
    with FaultyServer() as server:
        endpoint = Endpoint(server.url)
        completer = EndpointCompleter(endpoint, preflight(endpoint, tokenizer_encode=encode))
        found = benchmark(ask, completer, prompts, 3)
    assert as_the_function_gives(prompts, found, 3) == {"equal": 1.0}
    assert as_the_function_gives(prompts, [*found[1:], ()], 3) == {"equal": 0.0}


def test_a_completion_that_is_not_greedy_is_seen(tmp_path: Path) -> None:
    with one_thread():
        model = load(write_tiny_model(tmp_path / "tiny"), device="cpu")
        prompts = [[5, 6, 7], [8, 9], [10, 11, 12]]
        own = [one.token_ids for one in HfCompleter(model).complete(prompts, 3)]
        assert below_the_likeliest(model, prompts, own) == [0.0] * 3
        changed = [own[0], (own[1][0], own[1][1] ^ 1, own[1][2]), own[2][:1]]
        gaps = below_the_likeliest(model, prompts, changed)
    assert gaps[1] > 0
    assert gaps[0] == gaps[2] == 0.0


SERVERS = {"vllm": vllm, "local": local}


def main() -> None:
    options = parser(__doc__, "endpoint")
    options.add_argument("--server", choices=SERVERS, help="default: vllm where it is installed, else local")
    options.add_argument("--keys", type=int, default=256, help="how many keys, a request each (default: 256)")
    options.add_argument("--rounds", type=int, default=3, help="measurements of each setting (default: 3)")
    arguments = options.parse_args()
    if arguments.server == "vllm" and not real_vllm.importable():
        options.error("--server vllm needs vLLM: make test-all installs it, into an environment of its own")
    start(arguments.threads)
    with SERVERS[arguments.server or ("vllm" if real_vllm.importable() else "local")](arguments) as served:
        endpoints = {each: Endpoint(served.url, concurrency=each, timeout_s=TIMEOUT) for each in CONCURRENCIES}
        learnt = preflight(endpoints[1], tokenizer_encode=served.encode)
        completers = {each: EndpointCompleter(endpoint, learnt) for each, endpoint in endpoints.items()}
        equal = {length: served.check(ask(completers[16], served.prompts, length), length) for length in LENGTHS}
        assert all(each["equal"] >= LEAST_EQUAL for each in equal.values()), f"not equal, so not measured: {equal}"
        gc.collect()
        cases = [
            measure(served, completers[each], length, each, arguments.rounds)
            for length in LENGTHS
            for each in CONCURRENCIES
        ]
    rows = [row for length in LENGTHS for row in equality(served, length, equal[length])]
    rows += [row for case in cases for row in figures(served.name, case)]
    details = {name: value for name, value in served.about.items() if name != "run"}
    details |= {"server": served.name, "endpoint": completers[1].name.replace(served.url, "URL"), "equality": equal}
    finish_part(arguments.out, served.name, served.about["run"], rows, details | {"cases": cases})


def measure(served: Served, completer: EndpointCompleter, length: int, concurrency: int, rounds: int) -> dict[str, Any]:
    """Every prompt asked `rounds` times: the least time, and medians of the CPU seconds, which come in ticks."""
    costs, num = [], len(served.prompts)
    for _ in range(rounds):
        before = cpu_of_tree(served.pid)
        found, cost = timed(lambda: ask(completer, served.prompts, length))
        costs.append({"wall": cost.wall, "client_cpu": cost.cpu, "server_cpu": cpu_of_tree(served.pid) - before})
        assert all(found), "an answer has no token ids"
    wall = min(cost["wall"] for cost in costs)
    client, server = (median(cost[name] for cost in costs) for name in ("client_cpu", "server_cpu"))
    return {
        "length": length,
        "concurrency": concurrency,
        "requests": num,
        "requests_per_second": num / wall,
        "client_cpu_ms": 1000 * client / num,
        "server_cpu_ms": 1000 * server / num,
        "client_share": client / (client + server),
        "rounds": costs,
    }


def cpu_of_tree(pid: int) -> float:
    """CPU seconds of a process and those below it that are alive."""
    root = psutil.Process(pid)
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def equality(served: Served, length: int, found: dict[str, Any]) -> list[Figure]:
    setting = f"{served.name}, {len(served.prompts)} keys, R = {length}"
    if "tolerance" in found:
        setting += (
            f"; near-ties up to {found['tolerance']:.2f}, same ids as bfloat16's {found['equal_ids_in_bfloat16']:.1%}"
        )
    share, met = found["equal"], found["equal"] >= LEAST_EQUAL
    return [
        Figure("endpoint, completions as they must be", setting, f"{share:.3f}", f">= {LEAST_EQUAL}", met, command())
    ]


def figures(server: str, case: dict[str, Any]) -> list[Figure]:
    setting = f"{server}, R = {case['length']}, {case['concurrency']} at once"
    values = {
        "requests per second": (f"{case['requests']} requests", f"{case['requests_per_second']:.1f}"),
        "client's CPU a request": (f"server's {case['server_cpu_ms']:.2f} ms", f"{case['client_cpu_ms']:.2f} ms"),
        "client's share of the CPU": ("of client and server", f"{case['client_share']:.1%}"),
    }
    return [
        Figure(f"endpoint, {what}", f"{setting}; {more}", value, "", None, command())
        for what, (more, value) in values.items()
    ]


if __name__ == "__main__":
    main()
