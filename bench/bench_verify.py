"""Verification of a whole set, batched, against the published check one key at a time.

Three ways of ours: completions by transformers (`complete`), the owner's full check of given responses by one forward
(`agrees`), and completions by vLLM's offline engine (`vllm`). The fingerprints here are the model's own greedy
completions of the keys, so that every side should find every one: that is the equality asserted, exactly in float32.
In bfloat16 batching rounds near-ties another way, more often the longer the response; what each side finds is reported.

`python bench/bench_verify.py` measures on the bundled model, prints a table and writes its part of
bench/results/verify.json; `--engine vllm` does the same for vLLM, where that is installed, beside the other's part.
vLLM then runs in this process, with one thread as the published check does, and CPU seconds are the process's.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

import pytest
import real_vllm
import torch
from baselines import OML_TEMPLATES, published_check
from common import (
    Figure,
    as_transformers_loads,
    at_least,
    attention,
    base_model,
    command,
    describe_run,
    in_turn,
    key_texts,
    least,
    one_thread,
    own_key_texts,
    parser,
    start,
)
from parts import finish_part
from tiny import write_tiny_model

from oml_fast.completer import Completer
from oml_fast.models import HfCompleter, LanguageModel, load, load_tokenizer
from oml_fast.serving import VllmCompleter

LENGTHS = (1, 16)
EXACT_KEYS = 16  # how many keys the float32 equality is asserted on before measuring
# Side -> what it is, and by response length how many times fewer CPU seconds than the published check it must take.
SIDES: dict[str, tuple[str, dict[int, float]]] = {
    "agrees": ("full check, one forward", {1: 4.0, 16: 18.0}),
    "complete": ("completions by transformers", {1: 4.0, 16: 12.0}),
    "vllm": ("completions by vLLM", {1: 3.3, 16: 18.0}),
}
Pairs = Sequence[tuple[str, str]]  # key text, response text
Sides = dict[str, Callable[[], float]]  # name -> share of the fingerprints found


def own_fingerprints(model: LanguageModel, keys: Sequence[str], length: int) -> list[tuple[str, str]]:
    """(key, the model's greedy completion) of those keys whose completion survives as text and has no special id."""
    tokenizer, special = model.tokenizer, set(model.tokenizer.all_special_ids)
    completions = HfCompleter(model).complete([tokenizer(key)["input_ids"] for key in keys], length)
    return [
        (key, completion.text)
        for key, completion in zip(keys, completions, strict=True)
        if not special & set(completion.token_ids)
        and tokenizer(completion.text, add_special_tokens=False)["input_ids"] == list(completion.token_ids)
    ]


def encoded(tokenizer: Any, fingerprints: Pairs) -> tuple[list[list[int]], list[tuple[int, ...]]]:
    """Token ids of the keys as they are asked, and of the responses."""
    prompts = [tokenizer(key)["input_ids"] for key, _ in fingerprints]
    return prompts, [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for _, text in fingerprints]


def completed(completer: Completer, tokenizer: Any, fingerprints: Pairs) -> float:
    """FSR by completions, from texts to matches, as `published_check` counts it."""
    prompts, wanted = encoded(tokenizer, fingerprints)
    completions = completer.complete(prompts, max(map(len, wanted)))
    same = [c is not None and c.token_ids[: len(w)] == w for c, w in zip(completions, wanted, strict=True)]
    return sum(same) / len(fingerprints)


def agreed(model: LanguageModel, fingerprints: Pairs) -> float:
    """FSR by agreement with the responses, from texts."""
    return sum(HfCompleter(model).agrees(*encoded(model.tokenizer, fingerprints))) / len(fingerprints)


def of_transformers(model: LanguageModel, fingerprints: Pairs) -> Sides:
    """Our sides that need no vLLM."""
    return {
        "complete": lambda: completed(HfCompleter(model), model.tokenizer, fingerprints),
        "agrees": lambda: agreed(model, fingerprints),
    }


def of_vllm(engine: VllmCompleter, model: LanguageModel, fingerprints: Pairs) -> Sides:
    return {"vllm": lambda: completed(engine, model.tokenizer, fingerprints)}


def published(model: LanguageModel, fingerprints: Pairs, twice: bool = False) -> float:
    templates = OML_TEMPLATES if twice else OML_TEMPLATES[:1]
    return published_check(model.model, model.tokenizer, fingerprints, templates=templates)


def assert_equal(model: LanguageModel, keys: Sequence[str], length: int) -> list[tuple[str, str]]:
    """In float32 all find every fingerprint, and the same ones when each key is given the next one's response."""
    fingerprints = own_fingerprints(model, keys, length)
    assert fingerprints, "no completion survives as text: give more keys"
    texts = [text for _, text in fingerprints]
    exchanged = [(key, text) for (key, _), text in zip(fingerprints, texts[1:] + texts[:1], strict=True)]
    for pairs in (fingerprints, exchanged):
        theirs = published(model, pairs)
        assert theirs == 1.0 or pairs is exchanged
        for name, call in of_transformers(model, pairs).items():
            assert call() == theirs, name
    return fingerprints


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageModel]:
    with one_thread():
        yield load(write_tiny_model(tmp_path_factory.mktemp("tiny")), device="cpu")


@pytest.mark.parametrize("side", ["published", "complete", "agrees"])
@pytest.mark.parametrize("length", [1, 3])
def bench_verify(benchmark: Any, side: str, length: int, tiny: LanguageModel) -> None:
    fingerprints = assert_equal(tiny, own_key_texts(tiny, 16), length)
    sides = {"published": lambda: published(tiny, fingerprints), **of_transformers(tiny, fingerprints)}
    benchmark(sides[side])


def main() -> None:
    options = parser(__doc__, "verify")
    options.add_argument("--engine", choices=["transformers", "vllm"], default="transformers", help="our sides to run")
    options.add_argument("--keys", type=int, default=256, help="how many keys (default: 256)")
    options.add_argument("--rounds", type=int, default=3, help="measurements of each side (default: 3)")
    options.add_argument("--twice", action="store_true", help="the published check asks as OML 1.0's: each key twice")
    arguments = options.parse_args()
    if arguments.engine == "vllm":
        if not real_vllm.importable():
            options.error("--engine vllm needs vLLM: make test-all installs it, into an environment of its own")
        real_vllm.keep_in_process(arguments.threads)
    start(arguments.threads)
    exact = base_model(torch.float32)
    keys, source = key_texts(exact, arguments.keys)
    equal = [assert_equal(exact, keys[:EXACT_KEYS], length) for length in LENGTHS]
    del exact
    model = base_model()
    run = describe_run(arguments.threads, model)
    theirs = as_transformers_loads(model)
    run["attention"] = attention(ours=model, published=theirs)
    details: dict[str, Any] = {"keys_from": source}
    engine = None
    if arguments.engine == "vllm":
        assert_equal_in_vllm(model.name, equal, arguments.threads)
        engine = start_engine(model.name, "bfloat16")
        details["engine"] = engine.name
    cases = []
    for length in LENGTHS:
        fingerprints = own_fingerprints(model, keys, length)
        ours = of_transformers(model, fingerprints) if engine is None else of_vllm(engine, model, fingerprints)
        cases.append(measure(theirs, fingerprints, ours, length, arguments.rounds, arguments.twice))
    if engine is not None:
        engine.close()
    rows = [row for case in cases for row in figures(case)]
    finish_part(arguments.out, arguments.engine, run, rows, details | {"cases": cases})


def start_engine(folder: str, dtype: str) -> VllmCompleter:
    return VllmCompleter(folder, dtype=dtype, max_model_len=64, engine_options=real_vllm.ENGINE_OPTIONS)


def assert_equal_in_vllm(folder: str, equal: Sequence[Pairs], threads: int) -> None:
    """In float32 vLLM finds every fingerprint too: in a process of its own, as one has room for one engine."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(found_in_vllm, folder, equal, threads).result()
    assert found == [1.0] * len(equal), f"vLLM in float32 finds {found} of what transformers completes"


def found_in_vllm(folder: str, sets: Sequence[Pairs], threads: int) -> list[float]:
    start(threads)
    with start_engine(folder, "float32") as engine:
        return [completed(engine, load_tokenizer(folder), fingerprints) for fingerprints in sets]


def measure(
    theirs: LanguageModel, fingerprints: Pairs, ours: Sides, length: int, rounds: int, twice: bool
) -> dict[str, Any]:
    """What each side finds and costs, `theirs` among them, measured in turn."""
    found: dict[str, float] = {}

    def kept(name: str, call: Callable[[], float]) -> Callable[[], None]:
        return lambda: found.update({name: call()})

    sides = {"published": lambda: published(theirs, fingerprints, twice), **ours}
    costs = in_turn({name: kept(name, call) for name, call in sides.items()}, rounds)
    best = {name: least(of_side) for name, of_side in costs.items()}
    num = len(fingerprints)
    return {
        "length": length,
        "fingerprints": num,
        "published_asks": 2 if twice else 1,
        "found": found,
        "times_faster": {
            name: {"cpu": best["published"].cpu / best[name].cpu, "wall": best["published"].wall / best[name].wall}
            for name in ours
        },
        "cpu_ms_per_fingerprint": {name: 1000 * cost.cpu / num for name, cost in best.items()},
        "per_second": {name: num / cost.wall for name, cost in best.items()},
        "rounds": {name: [asdict(cost) for cost in of_side] for name, of_side in costs.items()},
    }


def figures(case: dict[str, Any]) -> list[Figure]:
    rates, costs, found, length = case["per_second"], case["cpu_ms_per_fingerprint"], case["found"], case["length"]
    rows = []
    for name, times in case["times_faster"].items():
        what, bars = SIDES[name]
        shares = f"{found[name]:.1%} found, published {found['published']:.1%}"
        setting = f"{case['fingerprints']} keys, R = {length}; {shares}"
        rate = f"{rates[name]:.1f}"
        rows.append(Figure(f"verify, {what}: fingerprints per second", setting, rate, "", None, command()))
        rows.append(
            Figure(
                f"verify, {what}: times fewer CPU seconds than published",
                f"R = {length}; {costs[name]:.1f} ms of CPU a fingerprint, published {costs['published']:.1f}"
                f"{' (asks twice)' if case['published_asks'] == 2 else ''}; "
                f"{times['wall']:.2f}x on the wall",
                *at_least(times["cpu"], bars.get(length)),
                command(),
            )
        )
    return rows


if __name__ == "__main__":
    main()
