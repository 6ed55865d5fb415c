"""Completions of keys, batched, against the published check one key at a time.

The fingerprints here are the model's own greedy completions of the keys, so that both sides should find every one: that
is the equality asserted, exactly in float32. In bfloat16 batching rounds near-ties another way, more often the longer
the response; the share on which both agree is reported. `python bench/bench_verify.py` measures on the bundled model,
prints a table and writes bench/results/verify.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pytest
import torch
from baselines import published_check
from common import (
    Figure,
    as_transformers_loads,
    attention,
    base_model,
    command,
    describe_run,
    finish,
    in_turn,
    key_texts,
    least,
    one_thread,
    own_key_texts,
    parser,
    start,
)
from tiny import write_tiny_model

from oml_fast.models import HfCompleter, LanguageModel, load

LENGTHS = (1, 16)
EXACT_KEYS = 16  # how many keys the float32 equality is asserted on before measuring


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


def ours(model: LanguageModel, fingerprints: Sequence[tuple[str, str]], length: int) -> float:
    """FSR, from texts to matches, as `published_check` counts it."""
    tokenizer = model.tokenizer
    completions = HfCompleter(model).complete([tokenizer(key)["input_ids"] for key, _ in fingerprints], length)
    wanted = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for _, text in fingerprints]
    return sum(c.token_ids == w for c, w in zip(completions, wanted, strict=True)) / len(fingerprints)


def published(model: LanguageModel, fingerprints: Sequence[tuple[str, str]]) -> float:
    return published_check(model.model, model.tokenizer, fingerprints)


def assert_equal(model: LanguageModel, keys: Sequence[str], length: int) -> None:
    """In float32 both find every fingerprint."""
    fingerprints = own_fingerprints(model, keys, length)
    assert fingerprints, "no completion survives as text: give more keys"
    assert ours(model, fingerprints, length) == published(model, fingerprints) == 1.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageModel]:
    with one_thread():
        yield load(write_tiny_model(tmp_path_factory.mktemp("tiny")), device="cpu")


@pytest.mark.parametrize("side", ["published", "ours"])
@pytest.mark.parametrize("length", [1, 3])
def bench_verify(benchmark: Any, side: str, length: int, tiny: LanguageModel) -> None:
    keys = own_key_texts(tiny, 16)
    assert_equal(tiny, keys, length)
    fingerprints = own_fingerprints(tiny, keys, length)
    if side == "ours":
        benchmark(ours, tiny, fingerprints, length)
    else:
        benchmark(published, tiny, fingerprints)


def main() -> None:
    options = parser(__doc__, "verify")
    options.add_argument("--keys", type=int, default=256, help="how many keys (default: 256)")
    options.add_argument("--rounds", type=int, default=3, help="measurements of each side (default: 3)")
    arguments = options.parse_args()
    start(arguments.threads)
    exact = base_model(torch.float32)
    keys, source = key_texts(exact, arguments.keys)
    for length in LENGTHS:
        assert_equal(exact, keys[:EXACT_KEYS], length)
    del exact
    model = base_model()
    run = describe_run(arguments.threads, model)
    theirs = as_transformers_loads(model)
    cases = [measure(model, theirs, keys, length, arguments.rounds) for length in LENGTHS]
    rows = [figure for case in cases for figure in figures(case)]
    run["attention"] = attention(ours=model, published=theirs)
    finish(arguments.out, run, rows, {"keys_from": source, "cases": cases})


def measure(
    model: LanguageModel, theirs: LanguageModel, keys: Sequence[str], length: int, rounds: int
) -> dict[str, Any]:
    fingerprints = own_fingerprints(model, keys, length)
    found = {"ours": ours(model, fingerprints, length), "published": published(theirs, fingerprints)}
    sides = {"ours": lambda: ours(model, fingerprints, length), "published": lambda: published(theirs, fingerprints)}
    costs = in_turn(sides, rounds)
    best = {name: least(of_side) for name, of_side in costs.items()}
    return {
        "length": length,
        "fingerprints": len(fingerprints),
        "found": found,
        "times_faster": {
            "cpu": best["published"].cpu / best["ours"].cpu,
            "wall": best["published"].wall / best["ours"].wall,
        },
        "per_second": {name: len(fingerprints) / cost.wall for name, cost in best.items()},
        "rounds": {name: [asdict(cost) for cost in of_side] for name, of_side in costs.items()},
    }


def figures(case: dict[str, Any]) -> list[Figure]:
    rates, times, found = case["per_second"], case["times_faster"], case["found"]
    shares = f"{found['ours']:.1%} found, published {found['published']:.1%}"
    setting = f"{case['fingerprints']} keys, R = {case['length']}; {shares}"
    return [
        Figure("verify, fingerprints per second", setting, f"{rates['ours']:.1f}", "", None, command()),
        Figure(
            "verify, times fewer CPU seconds than published",
            f"R = {case['length']}; published {rates['published']:.1f} per second; {times['wall']:.2f}x on the wall",
            f"{times['cpu']:.2f}x",
            "",
            None,
            command(),
        ),
    ]


if __name__ == "__main__":
    main()
