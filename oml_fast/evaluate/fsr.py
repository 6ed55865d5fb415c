"""The owner's full check, before release: every fingerprint of a set in a grid of prompt templates and temperatures.

The set is split into n shards, which may run anywhere; each gives a part, and all parts together one result, the same
for every n. For owners only: it shows every key to the model, which must be one's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tqdm import tqdm

from .. import __version__
from ..completer import Prompt
from ..errors import InvalidArgumentError
from ..fingerprint import Fingerprint, FingerprintSet
from .fsr_engines import Engine
from .fsr_templates import BUILT_IN, Renderer, Template

_MOST_SAMPLES = 1000
PART = 1  # version of a part's layout


@dataclass(frozen=True, slots=True)
class Grid:
    """What is asked: every template at every temperature; `samples` tries at each above 0, one at 0."""

    templates: tuple[Template, ...] = BUILT_IN
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
    samples: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        names = [template.name for template in self.templates]
        _require(names, "no template: name at least one.")
        twice = sorted({name for name in names if names.count(name) > 1})
        _require(not twice, f"two templates are called {', '.join(twice)}: give each a name of its own.")
        _require(self.temperatures, "no temperature: name at least one.")
        for temperature in self.temperatures:
            good = math.isfinite(temperature) and 0 <= temperature <= 100
            _require(good, f"temperature {temperature}: between 0 and 100.")
        _require(len(set(self.temperatures)) == len(self.temperatures), "a temperature stands twice: name each once.")
        _require(1 <= self.samples <= _MOST_SAMPLES, f"{self.samples} samples: between 1 and {_MOST_SAMPLES}.")

    def tries(self, temperature: float) -> int:
        return self.samples if temperature > 0 else 1

    def to_json(self) -> dict[str, Any]:
        return {
            "templates": [template.to_json() for template in self.templates],
            "temperatures": list(self.temperatures),
            "samples": self.samples,
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True)
class Shard:
    """Share `index` of `count`, from 1: every count-th fingerprint in the set's order."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        _require(1 <= self.index <= self.count, f"shard {self.index}/{self.count}: write i/n with i between 1 and n.")

    def of(self, fingerprints: FingerprintSet) -> tuple[Fingerprint, ...]:
        return fingerprints.fingerprints[self.index - 1 :: self.count]


def identity(engine: Engine, fingerprints: FingerprintSet, grid: Grid) -> dict[str, Any]:
    """What parts must share to be parts of one result, as plain JSON values."""
    return {
        "set_digest": fingerprints.digest(),
        "model_digest": engine.model_digest,
        "tokenizer_digest": engine.tokenizer_digest,
        "engine": engine.name,
        "num_fingerprints": len(fingerprints),
        "formats": list(fingerprints.settings.formats),
        "skipped": dict(Renderer(engine.tokenizer, fingerprints).skipped(grid.templates)),
        **grid.to_json(),
    }


def check(
    engine: Engine, fingerprints: FingerprintSet, grid: Grid, shard: Shard, *, progress: bool = False
) -> dict[str, Any]:
    """Ask the shard's fingerprints in the whole grid: a part, as plain JSON values without key or response.

    A fingerprint matches in a try if any of its responses does, in any of its formats. Raises InvalidArgumentError and
    CompleterError.
    """
    require_set(engine.tokenizer_digest, fingerprints)
    started = time.perf_counter()
    known = identity(engine, fingerprints, grid)
    asked = shard.of(fingerprints)
    renderer = Renderer(engine.tokenizer, fingerprints)
    templates = [template for template in grid.templates if template.name not in known["skipped"]]
    _require(templates, "the tokenizer has no chat template, and every template needs one: name others.")
    cells = []
    with tqdm(total=len(templates) * len(grid.temperatures), desc="fsr", disable=None if progress else True) as bar:
        for template in templates:
            prompts = {
                name: renderer.prompts(template, [Prompt(f.askings[name].prompt_ids, f.key, name) for f in asked])
                for name in fingerprints.settings.formats
            }
            for temperature in grid.temperatures:
                bar.set_postfix_str(f"{template.name}, {temperature:g}")
                found = [_tries(engine, asked, prompts, grid, temperature, n) for n in range(grid.tries(temperature))]
                cells.append(_cell(template.name, temperature, found))
                bar.update()
    return {
        "part": PART,
        "identity": known,
        "shard": [shard.index, shard.count],
        "numbers": [fingerprint.number for fingerprint in asked],
        "cells": cells,
        "seconds": time.perf_counter() - started,
        "made_by": f"oml_fast {__version__}",
    }


def require_set(tokenizer_digest: str, fingerprints: FingerprintSet) -> None:
    """Refuse a set that this model cannot be asked, or whose parts could not be told apart."""
    _require(len(fingerprints), "the set holds no fingerprint: generate some first.")
    _require(
        tokenizer_digest == fingerprints.tokenizer_digest,
        f"the model's tokenizer (digest {tokenizer_digest[:12]}) is not the one the fingerprints were made with "
        f"(digest {fingerprints.tokenizer_digest[:12]}): name the model that oml-fast embed wrote for this set.",
    )
    numbers = {fingerprint.number for fingerprint in fingerprints}
    _require(len(numbers) == len(fingerprints), "two fingerprints have the same number: generate the set again.")


def _tries(
    engine: Engine,
    asked: Sequence[Fingerprint],
    prompts: dict[str, list[list[int]]],
    grid: Grid,
    temperature: float,
    number: int,
) -> dict[str, list[bool]]:
    """One try of every fingerprint in each format: whether it matched."""
    found = {}
    for name, of_format in prompts.items():
        responses = [[r.token_ids for r in fingerprint.askings[name].responses] for fingerprint in asked]
        if temperature > 0:
            length = max((len(ids) for own in responses for ids in own), default=1)
            answers = engine.sample(of_format, length, temperature, (grid.seed << 16) + number)
            found[name] = [tuple(ids) in own for ids, own in zip(answers, responses, strict=True)]
        else:
            pairs = [(prompt, ids) for prompt, own in zip(of_format, responses, strict=True) for ids in own]
            agreed = iter(engine.agrees([prompt for prompt, _ in pairs], [ids for _, ids in pairs]))
            found[name] = [any(tuple(islice(agreed, len(own)))) for own in responses]
    return found


def _cell(template: str, temperature: float, found: Sequence[dict[str, list[bool]]]) -> dict[str, Any]:
    """How many tries of each fingerprint matched, in any format and in each."""
    in_any = [[any(own) for own in zip(*of_try.values(), strict=True)] for of_try in found]
    return {
        "template": template,
        "temperature": temperature,
        "tries": len(found),
        "matched": [sum(own) for own in zip(*in_any, strict=True)],
        "by_format": {name: [sum(own) for own in zip(*(t[name] for t in found), strict=True)] for name in found[0]},
    }


def _require(condition: object, message: str) -> None:
    if not condition:
        raise InvalidArgumentError(message)
