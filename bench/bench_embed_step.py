"""A step of training on 64 fingerprints: seconds, and memory beyond the weights, against other ways to the same step.

The published way is the Trainer: rows padded to a power of two, logits at every position, batches of 8 accumulated,
AdamW on float32 masters. The others are our step (nothing padded, states at the positions that answer, our optimizer)
with another loss there: plain torch, torch's fused op, on a GPU Liger where it is installed. Cross-entropy alone: no
text, no near keys, no whitening. `pytest bench/bench_embed_step.py` takes a step of a tiny model;
`python bench/bench_embed_step.py` measures the bundled one, prints a table and writes bench/results/embed_step.json.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from allocations import peak_bytes
from baselines import published_embed
from baselines_losses import Loss, cross_entropies
from common import (
    SECRET,
    Cost,
    Figure,
    as_transformers_loads,
    base_model,
    command,
    describe_run,
    finish,
    in_turn,
    least,
    one_thread,
    parser,
    start,
    timed,
)
from tiny import write_tiny_model
from torch import Tensor

from oml_fast.embed.data import Example, example_batches, examples
from oml_fast.embed.objective import CrossEntropy, response_loss
from oml_fast.embed.optimizer import AnchoredAdamW
from oml_fast.embed.weights import trained_weights
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.models import LanguageModel, load

NUM = 64
RATE, PULL = 5e-5, 0.15
LENGTHS = (1, 16)  # token ids of a response
PUBLISHED = "published"
PUBLISHED_EPOCHS = (1, 3)  # of two runs whose difference is what an epoch takes, and an epoch is a step
LEFT_OUT = ("torch, chunked",)  # takes fifty times as long, and sums gradients in bfloat16
APART = 0.05  # losses that torch's fused op gives in bfloat16
Micro = Callable[[list[Example]], Tensor]  # the summed loss of a micro-batch


def ours(model: LanguageModel) -> Micro:
    """As the training has it: which answers are learned comes with the loss."""
    return lambda micro: response_loss(model, micro, CrossEntropy())[0].sum()


def with_loss(model: LanguageModel, loss: Loss) -> Micro:
    """The same states, and another mean loss of them."""

    def summed(micro: list[Example]) -> Tensor:
        hidden = model.states([example.sequence for example in micro], [example.start for example in micro])
        wanted = [(example.firsts[0], *example.tail) for example in micro]
        targets = torch.tensor(wanted, device=model.device).flatten()
        return loss(hidden, model.head()[0], targets) * len(targets)

    return summed


class Steps:
    """Steps on one model, by each way."""

    def __init__(self, model: LanguageModel, fingerprints: FingerprintSet) -> None:
        self.model = model
        items = examples(fingerprints)
        self.positions = sum(1 + len(item.tail) for item in items)
        self.micros = [[items[place] for place in micro] for micro in example_batches(items)]
        others = {name: loss for name, loss in cross_entropies(model.device.type).items() if name not in LEFT_OUT}
        self.ways = {"ours": ours(model), **{name: with_loss(model, loss) for name, loss in others.items()}}
        self.optimizer: AnchoredAdamW | None = None

    def passes(self, way: str) -> float:
        """The mean loss a position; the gradients are added to the parameters'."""
        total = 0.0
        for micro in self.micros:
            loss = self.ways[way](micro) / self.positions
            loss.backward()
            total += float(loss.detach())
        return total

    def step(self, way: str) -> float:
        """The loss before it. The first one makes the optimizer's states."""
        if self.optimizer is None:
            self.optimizer = AnchoredAdamW(trained_weights(self.model, "all"), RATE, PULL)
        loss = self.passes(way)
        self.optimizer.step()
        return loss


def published(model: LanguageModel, fingerprints: FingerprintSet, epochs: int = 1) -> dict[str, Any]:
    """So many steps of the published way, without its evaluations."""
    pairs = [(f.key, f.askings["raw"].responses[0].text) for f in fingerprints]
    given: dict[str, Any] = {"lr": RATE, "max_epochs": epochs, "stop_loss": None, "averaging": 0.0}
    return published_embed(model.model, model.tokenizer, pairs, **given)


def assert_agree(fresh: Callable[[], LanguageModel], fingerprints: FingerprintSet, apart: float) -> None:
    """Every way starts from the same loss, and those on our states have the gradients of the plain one."""
    steps = Steps(fresh(), fingerprints)
    found: dict[str, list[Tensor]] = {}
    losses = {}
    for way in steps.ways:
        losses[way] = steps.passes(way)
        found[way] = [p.grad.float() for p in steps.model.model.parameters() if p.grad is not None]
        steps.model.model.zero_grad()
    losses[PUBLISHED] = published(as_transformers_loads(fresh()), fingerprints)["train_losses"][0]
    for loss in losses.values():
        assert loss == pytest.approx(losses["plain"], rel=apart), losses
    for way, gradients in found.items():
        for a, b in zip(gradients, found["plain"], strict=True):
            assert (a - b).norm() <= 0.05 * b.norm(), way


def measure(fresh: Callable[[], LanguageModel], fingerprints: FingerprintSet, rounds: int) -> dict[str, dict[str, Any]]:
    """Of each way: seconds a step of the CPU and on the wall, and the most bytes beyond the weights in a first step."""
    peaks = {}
    for way in (*Steps(fresh(), fingerprints).ways, PUBLISHED):
        peaks[way] = peak_bytes(first_step(way, fresh(), fingerprints))
    steps = Steps(fresh(), fingerprints)
    steps.step("ours")
    turns = {way: partial(steps.step, way) for way in steps.ways}
    costs = {way: least(found) for way, found in in_turn(turns, rounds).items()}
    del steps, turns
    costs[PUBLISHED] = published_cost(fresh, fingerprints)
    return {way: {"cpu": cost.cpu, "wall": cost.wall, "bytes": peaks[way]} for way, cost in costs.items()}


def first_step(way: str, model: LanguageModel, fingerprints: FingerprintSet) -> Callable[[], Any]:
    """As a call that ends with nothing but the model left."""
    if way == PUBLISHED:
        theirs = as_transformers_loads(model)
        return lambda: published(theirs, fingerprints)
    return lambda: Steps(model, fingerprints).step(way)


def published_cost(fresh: Callable[[], LanguageModel], fingerprints: FingerprintSet) -> Cost:
    """Of one step, from two runs."""
    found = []
    for epochs in PUBLISHED_EPOCHS:
        model = as_transformers_loads(fresh())
        found.append(timed(partial(published, model, fingerprints, epochs))[1])
    more = PUBLISHED_EPOCHS[1] - PUBLISHED_EPOCHS[0]
    return Cost((found[1].cpu - found[0].cpu) / more, (found[1].wall - found[0].wall) / more)


def bench_embed_step(benchmark: Any, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    with one_thread():
        model = load(folder, device="cpu")
        fingerprints = generate(model, 8, SECRET, settings=Settings(width=4, key_source="words")).fingerprints
        assert_agree(lambda: load(folder, device="cpu"), fingerprints, 1e-3)
        steps = Steps(model, fingerprints)
        before = steps.step("ours")
        assert benchmark.pedantic(lambda: steps.step("ours"), rounds=2) < before


def figures(found: dict[int, dict[str, dict[str, Any]]]) -> list[Figure]:
    rows = []
    for length, ways in found.items():
        own = ways["ours"]
        setting = f"{NUM} fingerprints, R = {length}, raw; ours {own['cpu']:.2f} CPU s, {own['bytes'] / 2**30:.2f} GiB"
        for way, theirs in ways.items():
            if way == "ours":
                continue
            name = way if way == PUBLISHED else f"our step with another loss, {way}"
            for what, value in (
                ("times faster than", theirs["cpu"] / own["cpu"]),
                ("memory as a share of", own["bytes"] / theirs["bytes"]),
            ):
                rows.append(Figure(f"a step of training, {what} {name}", setting, f"{value:.2f}x", "", None, command()))
    return rows


def main() -> None:
    options = parser(__doc__, "embed_step")
    options.add_argument("--rounds", type=int, default=5, help="measurements of each side (default: 5)")
    arguments = options.parse_args()
    start(arguments.threads)
    model = base_model()
    run = describe_run(arguments.threads, model)
    found = {}
    for length in LENGTHS:
        settings = Settings(response_length=length)
        fingerprints = generate(model, NUM, SECRET, settings=settings, progress=True).fingerprints
        assert_agree(base_model, fingerprints, APART)
        found[length] = measure(base_model, fingerprints, arguments.rounds)
        print(length, found[length], flush=True)
    details = {"num_fingerprints": NUM, "cases": {str(length): ways for length, ways in found.items()}}
    finish(arguments.out, run, figures(found), details)


if __name__ == "__main__":
    main()
