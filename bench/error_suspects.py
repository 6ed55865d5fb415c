"""Innocent suspects for `error_rates.py`: what each may answer, how it chooses, and what every answer is worth.

One key stands for all: the window's content changes nothing. Each case lists the answers that its suspect may give to a
key, and reads each of them against every draw that the owner may have made, with the code that reads real
verifications. So a simulated key is one row of a table: the factor of each bet by answer and draw.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oml_fast.completer import Completion
from oml_fast.fingerprint import Asking, Fingerprint, Response, Settings, Window
from oml_fast.verify import ExactMatch, MatchRule, PrefixMatch, WithinMatch
from oml_fast.verify.sequential import log_gains, log_weights
from oml_fast.verify.trials import Reading, read

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Answer = Mapping[str, Completion | None]
OUTSIDE, TAIL = 1, 2  # token ids in no window
LEVELS = (1e2, 1e3, 1e4)  # of E: the rates 1e-2, 1e-3 and 1e-4
MOST_TIES = 40


@dataclass(frozen=True, slots=True)
class Config:
    """A test with its rule and settings, and how the suspect is read: by "ids" or by texts of one kind.

    texts: "plain" differ; "chained" begin each other; "spaced" are alike in pairs but for a space.
    """

    test: str
    rule: MatchRule
    width: int
    responses: int = 1
    formats: int = 1
    length: int = 1
    texts: str = "ids"
    windows: bool = True

    @property
    def settings(self) -> Settings:
        return Settings(
            width=self.width,
            responses_per_key=self.responses,
            response_length=self.length,
            formats=("raw", "chat")[: self.formats],
        )

    def __str__(self) -> str:
        parts = [self.test, self.rule.name, f"k = {self.width}", f"r = {self.responses}", f"{self.formats} formats"]
        parts += [f"{self.length} ids"] * (self.length > 1) + [f"{self.texts} texts"] * (self.texts != "ids")
        return ", ".join(parts + ["no windows"] * (not self.windows))


@dataclass(frozen=True, slots=True)
class Table:
    """Every answer against every draw. log_factors (J, answers, draws); matched (answers, draws); place (draws,).

    readings: the same, as the code under test read them. inside: answers that name one candidate, by its place.
    rising: answers that tell something, from the least to the greatest chance of their most telling outcome;
    best (J, rising): their factors there. outside, silent: the answer that names none, and no answer.
    """

    config: Config
    readings: Sequence[Sequence[Reading]]
    log_factors: Floats
    matched: npt.NDArray[np.bool_]
    place: Ints
    inside: Ints
    rising: Ints
    best: Floats
    outside: int
    silent: int

    @property
    def expected(self) -> float:
        """The largest expected factor of any bet on any answer, exactly: every draw is as likely as another."""
        return float(np.exp(self.log_factors).mean(axis=2).max())


@dataclass(slots=True)
class Seen:
    """All that a suspect may know: each earlier draw and outcome, and the evidence so far (one row a verdict)."""

    rng: np.random.Generator
    stakes: Floats  # (J, T)
    e: Floats
    highest: Floats
    matched: npt.NDArray[np.bool_]
    draw: Ints
    key: int = 0

    def uniform(self) -> Floats:
        return self.rng.random(len(self.e))


Strategy = Callable[[Table, Seen], Ints]


def never_inside(table: Table, seen: Seen) -> Ints:
    return np.full(len(seen.e), table.outside)


def fixed_place(table: Table, seen: Seen) -> Ints:
    return np.full(len(seen.e), table.inside[-1])


def another_owners(table: Table, seen: Seen) -> Ints:
    """Inside nine windows of ten, where another secret drew."""
    place = table.inside[seen.rng.integers(len(table.inside), size=len(seen.e))]
    return np.where(seen.uniform() < 0.9, place, table.outside)


def follows(table: Table, seen: Seen) -> Ints:
    """Answers what was drawn for the key before, inside more often while it gains."""
    last = table.inside[table.place[seen.draw]]
    share = np.where(seen.matched, 0.95, np.where(seen.e < 1, 0.3, 0.6))
    return np.where(seen.uniform() < share, last, table.outside)


def refuses(table: Table, seen: Seen) -> Ints:
    """Answers while it loses, and keeps silent or outside as soon as it is ahead, and the other way round."""
    ahead = seen.e > 1
    flip = (np.arange(len(seen.e)) % 2).astype(bool)
    quiet = np.where(seen.uniform() < 0.5, table.silent, table.outside)
    return np.where(ahead ^ flip, quiet, table.inside[seen.key % len(table.inside)])


def anything(table: Table, seen: Seen) -> Ints:
    return seen.rng.integers(len(table.readings), size=len(seen.e))


def bold(table: Table, seen: Seen) -> Ints:
    """The likeliest answer whose best outcome crosses the next limit; where none does, the one that gains most."""
    level = np.full(len(seen.e), LEVELS[-1])
    for lower in LEVELS[-2::-1]:
        level[seen.highest < lower] = lower
    crossing = (table.best.T @ seen.stakes >= level).sum(axis=0)
    return table.rising[np.maximum(crossing - 1, 0)]


def timid(table: Table, seen: Seen) -> Ints:
    """Likely gains while behind, unlikely ones while ahead."""
    middle = table.rising[len(table.rising) // 2]
    return np.where(seen.e < 1, table.rising[-1], np.where(seen.e < 10, middle, table.rising[0]))


STRATEGIES: tuple[Strategy, ...] = (
    *(another_owners, follows, bold),
    *(never_inside, fixed_place, refuses, anything, timid),
)


def strategies(config: Config) -> tuple[Strategy, ...]:
    """All of them where the case is a plain one; elsewhere the first three."""
    plain = (config.width, config.responses, config.formats, config.texts) == (16, 1, 1, "ids") and config.length == 1
    return STRATEGIES if plain else STRATEGIES[:3]


def configs() -> list[Config]:
    """Every test with every rule, by ids and by text, few and many candidates, several responses and formats."""
    exact, prefix, within = ExactMatch(), PrefixMatch(), WithinMatch(8)
    found = []
    for test in ("window", "count"):
        found += [
            Config(test, exact, 3),
            Config(test, exact, 16),
            Config(test, exact, 16, responses=3),
            Config(test, exact, 16, formats=2),
            Config(test, exact, 16, texts="spaced"),
            Config(test, prefix, 3, responses=2, formats=2),
            Config(test, prefix, 16, length=3),
            Config(test, prefix, 16, texts="chained"),
            Config(test, within, 3, texts="plain"),
            Config(test, within, 16),
            Config(test, within, 16, responses=3, texts="plain"),
        ]
    for test in ("forced_choice", "rank"):
        found += [
            Config(test, exact, 3),
            Config(test, exact, 16),
            Config(test, exact, 16, responses=3),
            Config(test, exact, 3, responses=2, formats=2),
            Config(test, exact, 16, formats=2),
        ]
    found += [
        Config("rank", exact, 16, responses=2),
        Config("rank", exact, 16, responses=4),
        Config("rank", exact, 4, responses=2, formats=2),
        Config("forced_choice", exact, 16, texts="spaced"),
        Config("count", exact, 3, windows=False),
        Config("count", within, 3, windows=False),
        Config("count", prefix, 3, texts="chained", windows=False),
    ]
    return found


def table(config: Config) -> Table:
    """Read every answer against every draw."""
    fingerprints = _drawn(config)
    answers, inside = _answers(config)
    readings = [
        [read(config.test, config.rule, config.settings, fingerprint, answer) for fingerprint, _ in fingerprints]
        for answer in answers
    ]
    factors = np.stack([np.stack([_factors(config.test, r) for r in of_answer]) for of_answer in readings])
    log_table = np.ascontiguousarray(factors.transpose(2, 0, 1))
    lead = log_table[len(log_table) // 2 if config.test == "rank" else 0]  # a bet on all responses of a key
    best_draw = lead.argmax(axis=1)
    best = log_table[:, np.arange(len(answers)), best_draw]
    highest = lead.max(axis=1)
    chances = (lead == highest[:, None]).mean(axis=1)
    telling = [i for i in np.argsort(chances, kind="stable") if highest[i] > 0]
    rising = [i for place, i in enumerate(telling) if place == 0 or chances[i] > chances[telling[place - 1]]]
    rising = rising or [0]  # no answer tells anything: an imported set, whose candidates nobody knows
    return Table(
        config,
        readings,
        log_table,
        np.array([[bool(r.matched_formats) for r in of_answer] for of_answer in readings]),
        np.array([place for _, place in fingerprints]),
        np.array(inside),
        np.array(rising),
        np.exp(best[:, rising]),
        outside=0,
        silent=1,
    )


def _factors(test: str, reading: Reading) -> Floats:
    """(J,) as SequentialTest.add sums them."""
    total: Floats = np.zeros(len(log_weights(test)))
    for trial in reading.trials:
        total = total + log_gains(test, trial)
    return total


def _window(config: Config) -> Window:
    ids = tuple(range(10, 10 + config.width))
    texts = {
        "chained": [" " + "abcdefghijklmnop"[: i + 1] for i in range(config.width)],
        "spaced": [" " * (i % 2) + f"w{i // 2}x" for i in range(config.width)],
    }
    return Window(ids, tuple(texts.get(config.texts, [f" w{i}x" for i in ids])), (0.01,) * config.width)


def _drawn(config: Config) -> list[tuple[Fingerprint, int]]:
    """The key with each joint draw that the owner may have made, all equally likely, and the first format's place."""
    window = _window(config)
    choices = list(itertools.combinations(range(config.width), config.responses))
    found = []
    for drawn in itertools.product(choices, repeat=config.formats):
        askings = {}
        for name, indices in zip(config.settings.formats, drawn, strict=True):
            responses = tuple(
                Response(
                    slot,
                    index if config.windows else None,
                    window.texts[index] + " tail" * (config.length - 1),
                    (window.token_ids[index],) + (TAIL,) * (config.length - 1),
                    (0.01,) * config.length,
                )
                for slot, index in enumerate(indices)
            )
            askings[name] = Asking((3, 4), window if config.windows else Window((), (), ()), 40, 0.8, responses)
        found.append((Fingerprint(0, "key", (3, 4), None, askings), drawn[0][0]))
    return found


def _answers(config: Config) -> tuple[list[Answer], list[int]]:
    """All answers of a suspect: outside, silent, one candidate each, then others; and where the one-candidate ones are.

    A format may also be answered alone, or outside its window.
    """
    names = config.settings.formats
    window = _window(config)
    single = [_naming(config, window, (place,)) for place in range(config.width)]
    more = _rankings(config) if config.test == "rank" else [_naming(config, window, c) for c in _several(config)]
    outside = _naming(config, window, ())
    if config.test == "rank":
        outside = Completion((OUTSIDE,), "", scores=(0.0,) * config.width)
        rotated = np.stack([np.roll(-np.arange(config.width, dtype=float), place) for place in range(config.width)])
        single = [
            Completion(ids.token_ids, "", scores=tuple(s.tolist())) for ids, s in zip(single, rotated, strict=True)
        ]
    answers: list[Answer] = [dict.fromkeys(names, outside), dict.fromkeys(names)]
    answers += [dict.fromkeys(names, one) for one in [*single, *more]]
    if len(names) > 1:
        answers += [{names[0]: one, names[1]: other} for one in (single[0], *more[:2]) for other in (outside, None)]
    if config.length > 1:  # the first id without the tail: it touches the window, and cannot match
        answers.append(dict.fromkeys(names, Completion((window.token_ids[0],) + (OUTSIDE,) * (config.length - 1), "")))
    return answers, list(range(2, 2 + config.width))


def _several(config: Config) -> list[tuple[int, ...]]:
    """Which candidates an answer may name together."""
    if config.rule.name.startswith("within") and config.test != "forced_choice":
        return [tuple(range(c)) for c in range(2, min(8, config.width) + 1)]
    return []


def _naming(config: Config, window: Window, places: Sequence[int]) -> Completion:
    """An answer that names these candidates one after the other; each with the tail of a longer response."""
    if config.texts != "ids":
        return Completion((), " ".join(window.texts[place] for place in places) if places else " none")
    ids = tuple(window.token_ids[place] for place in places) or (OUTSIDE,)
    return Completion(ids + (TAIL,) * (config.length - 1), "")


def _rankings(config: Config) -> list[Completion]:
    """Scores with ties: every pattern of 3 candidates; of 16, two groups of every size and others drawn once."""
    width = config.width
    patterns = [(c, width - c) for c in range(1, width)]
    if width <= 4:
        patterns = [sizes for n in range(2, width) for sizes in itertools.product(range(1, width), repeat=n)]
        patterns = [sizes for sizes in patterns if sum(sizes) == width]
    rng = np.random.default_rng(0)
    while width > 4 and len(patterns) < MOST_TIES:
        ends = np.flatnonzero(rng.random(width - 1) < rng.random()) + 1
        patterns.append(tuple(int(n) for n in np.diff([0, *ends, width])))
    tied = []
    for sizes in patterns:
        levels = -np.arange(len(sizes), dtype=float)
        levels[1:][-1:] = -math.inf  # what an endpoint with top log-probabilities tells nothing about
        scores = np.repeat(levels, sizes)
        said = (OUTSIDE, _window(config).token_ids[0])[len(tied) % 2]  # every other answer names a candidate
        tied.append(Completion((said,), "", scores=tuple(rng.permuted(scores).tolist())))
    return tied
