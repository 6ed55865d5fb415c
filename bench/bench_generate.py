"""Perinucleus responses for given keys, forward included, against the published way: equal model, batch and threads.

`pytest bench/bench_generate.py` asserts equality on a tiny model; `python bench/bench_generate.py` measures 256 keys on
the bundled model, prints a table and writes bench/results/generate.json.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from baselines import CpuClock, published_generate
from common import (
    SECRET,
    Cost,
    Figure,
    as_transformers_loads,
    at_least,
    at_most,
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

from oml_fast.fingerprint import Asking, Settings, draw_responses
from oml_fast.generate.acceptance import Prompt, prompts_for
from oml_fast.generate.askings import Responder
from oml_fast.generate.keys import KeyCandidate
from oml_fast.generate.vocabulary import Vocabulary
from oml_fast.models import LanguageModel, batches_by_length, load, prefill
from oml_fast.ops import perinucleus

BATCH = 16
BARS = {1: 1.4, 16: 7.0}
SAMPLING_BAR = 0.05
BAND = 2e-7
# How far below the greedy choice a tail's logit may lie in another order of computing: rounding decides near-ties.
SLACK = {torch.float32: 1e-3, torch.bfloat16: 0.5}


class Checks:
    """`with Checks() as checks`: seconds that the acceptance checks of candidates take inside the block."""

    seconds = 0.0

    def __enter__(self) -> Checks:
        askings = importlib.import_module("oml_fast.generate.askings")
        self._patch = mock.patch.object(askings, "accepted", partial(self._timed, askings.accepted))
        self._patch.start()
        return self

    def _timed(self, accepted: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        texts = accepted(*arguments)
        self.seconds += time.perf_counter() - started
        return texts

    def __exit__(self, *exc: object) -> None:
        self._patch.stop()


def ours(
    model: LanguageModel, vocabulary: Vocabulary, keys: Sequence[str], settings: Settings
) -> tuple[list[Prompt], list[Asking | None], Responder]:
    """Responses as `generate` makes them: checks of keys, forward, op, acceptance checks, the draw, tails, texts."""
    prompts = [
        prompts_for(model.tokenizer, KeyCandidate(n, key, None), settings)[0]["raw"] for n, key in enumerate(keys)
    ]
    responder = Responder(model, vocabulary, settings, BATCH)
    draw = partial(draw_responses, SECRET, model.digest, model.tokenizer_digest, settings, "raw")
    return prompts, responder.respond(prompts, draw), responder


def assert_right(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompts: Sequence[Prompt],
    askings: Sequence[Asking | None],
    settings: Settings,
) -> dict[str, int]:
    """Windows hold the first accepted tokens just outside the float64 nucleus, tails are greedy. Counts what it saw.

    Logits come from the same forward, so that rounding is the same; the nucleus and the acceptance are done anew, one
    candidate at a time. A row whose nucleus the reference puts nearer to the threshold than 2e-7 may differ.
    """
    near = 0
    for places in batches_by_length([prompt.ids for prompt in prompts], BATCH):
        logits, _ = prefill(model, [prompts[place].ids for place in places], cache=settings.response_length > 1)
        right = perinucleus(logits, settings.threshold, logits.shape[1], vocabulary.admissible, backend="reference")
        for row, place in enumerate(places):
            asking, prompt = askings[place], prompts[place]
            if asking is None:
                continue
            if asking.nucleus_size != int(right.nucleus_size[row]):
                near += 1
                assert (
                    min(abs(m - settings.threshold) for m in (asking.nucleus_mass, float(right.nucleus_mass[row])))
                    < BAND
                )
                continue
            candidates = (c for c in right.token_ids[row].tolist() if c >= 0 and _accepted(model, prompt, c))
            assert asking.window.token_ids == tuple(next(candidates) for _ in range(settings.width))
    checked = [(p, a) for p, a in zip(prompts, askings, strict=True) if a is not None]
    tied = sum(_assert_greedy(model, vocabulary, prompt, asking) for prompt, asking in checked)
    return {"accepted": len(checked), "in_the_band": near, "tail_ids_of_near_ties": tied}


def _accepted(model: LanguageModel, prompt: Prompt, candidate: int) -> bool:
    tokenizer = model.tokenizer
    key, longer = tokenizer.decode(list(prompt.key_ids)), tokenizer.decode([*prompt.key_ids, candidate])
    text = longer.removeprefix(key)
    return (
        longer.startswith(key) and bool(text) and tokenizer(prompt.text + text)["input_ids"] == [*prompt.ids, candidate]
    )


@torch.inference_mode()
def _assert_greedy(model: LanguageModel, vocabulary: Vocabulary, prompt: Prompt, asking: Asking) -> int:
    """Every id after the first is the greedy choice of one plain forward over the whole; returns the near-ties."""
    ids = asking.responses[0].token_ids
    if len(ids) == 1:
        return 0
    logits = model.model(torch.tensor([[*prompt.ids, *ids[:-1]]])).logits[0, -len(ids) + 1 :].float()
    allowed = logits.masked_fill(~vocabulary.plain, -torch.inf)
    short = allowed.amax(-1) - allowed.gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)
    assert float(short.max()) <= SLACK[model.dtype], f"a tail is no greedy choice, by {float(short.max())}"
    return int((short > 0).sum())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageModel]:
    with one_thread():
        yield load(write_tiny_model(tmp_path_factory.mktemp("tiny")), device="cpu")


@pytest.mark.parametrize("side", ["published", "ours"])
@pytest.mark.parametrize("length", [1, 4])
def bench_generate(benchmark: Any, side: str, length: int, tiny: LanguageModel) -> None:
    settings = Settings(response_length=length)
    keys = own_key_texts(tiny, 8)
    vocabulary = Vocabulary(tiny.tokenizer, tiny.vocabulary, tiny.device)
    prompts, askings, _ = ours(tiny, vocabulary, keys, settings)
    assert assert_right(tiny, vocabulary, prompts, askings, settings)["accepted"] >= len(keys) // 2
    published = partial(published_generate, tiny.model, tiny.tokenizer, keys, response_length=length)
    assert [(key, len(ids)) for key, ids in published()] == [(key, length) for key in keys]
    benchmark(published if side == "published" else partial(ours, tiny, vocabulary, keys, settings))


def main() -> None:
    options = parser(__doc__, "generate")
    options.add_argument("--keys", type=int, default=256, help="how many keys (default: 256)")
    options.add_argument("--rounds", type=int, default=3, help="measurements of each side (default: 3)")
    options.add_argument("--lengths", type=int, nargs="+", default=list(BARS), help="response lengths (default: 1 16)")
    arguments = options.parse_args()
    start(arguments.threads)
    model = base_model()
    run = describe_run(arguments.threads, model)
    theirs = as_transformers_loads(model)
    vocabulary = Vocabulary(model.tokenizer, model.vocabulary, model.device)
    vocabulary.admissible, vocabulary.plain  # noqa: B018 - made once per model, and so before the clock starts
    keys, source = key_texts(model, arguments.keys)
    cases = [measure(model, theirs, vocabulary, keys, length, arguments.rounds) for length in arguments.lengths]
    figures = [figure for case in cases for figure in case_figures(case, len(keys))]
    details = {"keys": len(keys), "keys_from": source, "batch": BATCH, "cases": cases}
    finish(arguments.out, run | {"attention": attention(ours=model, published=theirs)}, figures, details)


def measure(
    model: LanguageModel,
    theirs: LanguageModel,
    vocabulary: Vocabulary,
    keys: Sequence[str],
    length: int,
    rounds: int,
) -> dict[str, Any]:
    """Both sides in turn, after our answers are asserted right."""
    settings = Settings(response_length=length)
    prompts, askings, _ = ours(model, vocabulary, keys, settings)
    equality = assert_right(model, vocabulary, prompts, askings, settings)
    sampled: list[tuple[float, float]] = []
    drawing = [CpuClock() for _ in range(rounds)]
    clocks = iter(drawing)

    def timed_ours() -> None:
        with Checks() as checks:
            sampled.append((ours(model, vocabulary, keys, settings)[2].sampling_seconds, checks.seconds))

    sides = {
        "ours": timed_ours,
        "published": lambda: published_generate(
            theirs.model,
            theirs.tokenizer,
            list(keys),
            width=settings.width,
            response_length=length,
            batch_size=BATCH,
            sampling=next(clocks),
        ),
    }
    costs = in_turn(sides, rounds)
    best = {name: least(of_side) for name, of_side in costs.items()}
    return {
        "length": length,
        "equality": equality,
        "times_faster": {
            "cpu": best["published"].cpu / best["ours"].cpu,
            "wall": best["published"].wall / best["ours"].wall,
        },
        "least": {name: asdict(cost) for name, cost in best.items()},
        "rounds": {name: [asdict(cost) for cost in of_side] for name, of_side in costs.items()},
        "sampling_share": sampling_share(costs["ours"], sampled),
        "published_sampling_cpu": [clock.seconds for clock in drawing],
    }


def sampling_share(costs: Sequence[Cost], sampled: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Medians over the rounds of shares of our time on the wall: sampling, and of it the checks and the op."""
    seen = [(whole / cost.wall, checks / cost.wall) for cost, (whole, checks) in zip(costs, sampled, strict=True)]
    whole, checks = (statistics.median(column) for column in zip(*seen, strict=True))
    return {"sampling": whole, "op": whole - checks, "acceptance_checks": checks}


def case_figures(case: dict[str, Any], keys: int) -> list[Figure]:
    length, times, share = case["length"], case["times_faster"], case["sampling_share"]
    setting = f"{keys} keys, R = {length}, batch {BATCH}, forward included"
    parts = f"op {share['op']:.2%}, acceptance checks {share['acceptance_checks']:.2%}"
    return [
        Figure(
            "generate, times fewer CPU seconds than published",
            setting,
            *at_least(times["cpu"], BARS.get(length)),
            command(),
        ),
        Figure("generate, times faster on the wall", setting, f"{times['wall']:.2f}x", "", None, command()),
        Figure(
            "sampling, share of our generation",
            f"{setting}; {parts}",
            *at_most(100 * share["sampling"], 100 * SAMPLING_BAR, 2, " %"),
            command(),
        ),
    ]


if __name__ == "__main__":
    main()
