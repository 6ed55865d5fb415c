"""False convictions and misses of every test, simulated: 10^6 verdicts a suspect, with optional stopping.

`python bench/error_rates.py [--verdicts N]` writes bench/results/error_rates.json. The suspects are innocent and
hostile (`error_suspects.py`): they know every earlier draw and the evidence so far, and answer as suits them. Evidence
is looked at after each of 200 keys; a verdict is a false conviction as soon as E reaches 1 / rate. Five parts:

- sequential: every test, rule and suspect; factors by answer and draw come from the code under test, as do the stakes.
  On the first paths of each case a real SequentialTest must give the same E after each key, and the same verdict.
- fixed: the exact tests on 24 keys, against suspects that cannot know earlier outcomes (with a fixed number of keys
  that is assumed: docs/verification.md).
- misses: a model with an FSR of exactly the smallest is called no_match.
- whole: secret.draw, a set, and verify(), with fresh secrets, fewer verdicts.
- expected: the largest expected factor of any bet on any answer, over all draws. It must be at most 1: then the rate
  holds by Ville's inequality for every suspect, also for those that nobody thought of.

A share of false positives is met where it is at most the rate plus 4 standard errors of a share that equals the rate.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from common import Figure, command, describe_run, finish, parser
from error_suspects import LEVELS, Config, Floats, Ints, Seen, Strategy, Table, configs, strategies, table
from sets import Scripted, inside, small_set
from tqdm import tqdm

from oml_fast.completer import CHOOSE, SCORE
from oml_fast.fingerprint import FingerprintSet
from oml_fast.verify import ExactMatch, verify
from oml_fast.verify.ranks import group_scores, log_rank_test
from oml_fast.verify.replay import fixed_log10_p
from oml_fast.verify.sequential import MISS_WEIGHTS, SequentialTest, log_miss_factors, log_weights
from oml_fast.verify.statistics import TESTS, convicts, null_of_asking, rank_test, window_test
from oml_fast.verify.trials import Ranks, Trial, count_null

RATES = tuple(1 / level for level in LEVELS)
KEYS, FIXED_KEYS, CHUNK, CHECKED = 200, 24, 1 << 15, 2
SMALLEST, FLUSHED_EVERY = 1e-290, 8  # stakes below count as lost: arithmetic on subnormal floats is slow
MISS_RATES, MISS_FSRS = (1e-1, 1e-2, 1e-3), (0.1, 0.5, 0.9)
WHOLE_VERDICTS, WHOLE_RATE, WHOLE_KEYS = 300, 0.1, 12
WHOLE_SETTINGS: tuple[dict[str, Any], ...] = (
    {"width": 4},
    {"width": 4, "responses_per_key": 2, "formats": ("raw", "chat")},
    {"width": 16, "responses_per_key": 4},
)
FIXED = [
    Config(test, ExactMatch(), width, responses)
    for test in ("window", "count", "forced_choice")
    for width, responses in ((3, 1), (16, 1), (16, 3))
]
FIXED_RANKS: tuple[tuple[tuple[int, ...], int], ...] = (
    *(((1,) * 3, 1), ((1,) * 16, 1), ((1,) * 16, 3), ((2, 1), 1), ((1, 4, 1, 8, 2), 1), ((3, 1, 1, 11), 3)),
    *(((1,) * 16, 2), ((1,) * 16, 4), ((1, 4, 1, 8, 2), 2), ((3, 1, 1, 11), 4)),
)
NAMES = {
    "sequential": "false convictions, {test} test, stopping at will",
    "fixed": "false convictions, {test} test, fixed number of keys",
    "misses": "models with just the smallest FSR called no_match, stopping at will",
    "whole": "false convictions, {test} test, secret.draw and verify() end to end",
}


def limit(rate: float, verdicts: int) -> float:
    """The largest share that is still called within the rate."""
    return rate + 4 * math.sqrt(rate * (1 - rate) / verdicts)


def shares(counts: Sequence[int], rates: Sequence[float], verdicts: int) -> dict[str, Any]:
    """Share, its standard error and whether it is within its rate, for each rate."""
    found = [count / verdicts for count in counts]
    return {
        "rates": list(rates),
        "shares": found,
        "standard_errors": [math.sqrt(share * (1 - share) / verdicts) for share in found],
        "met": all(share <= limit(rate, verdicts) for share, rate in zip(found, rates, strict=True)),
    }


def chunks(verdicts: int) -> Iterator[int]:
    for first in range(0, verdicts, CHUNK):
        yield min(CHUNK, verdicts - first)


def sequential(read: Table, strategy: Strategy, verdicts: int, rng: np.random.Generator) -> list[int]:
    """How many verdicts convict at each rate, at any of the keys."""
    crossed = np.zeros(len(RATES), dtype=np.int64)
    for place, size in enumerate(chunks(verdicts)):
        highest, answers, draws = paths(read, strategy, size, rng)
        crossed += [int(np.count_nonzero(convicted(highest, rate))) for rate in RATES]
        if place == 0:
            cross_check(read, highest, answers, draws)
    return crossed.tolist()


def convicted(highest: Floats, rate: float) -> npt.NDArray[np.bool_]:
    """Whether the largest E reached 1 / rate, with the allowance for rounding that SequentialTest makes."""
    return np.asarray(np.log(highest) >= -math.log(rate) * (1 - 1e-12))


def paths(read: Table, strategy: Strategy, size: int, rng: np.random.Generator) -> tuple[Floats, Ints, Ints]:
    """The largest E of each verdict; answers and draws (keys, CHECKED) of the first ones."""
    bets, answers, draws = read.log_factors.shape
    factors = np.exp(read.log_factors.reshape(bets, answers * draws))
    matched = read.matched.ravel()
    stakes = np.repeat(np.exp(log_weights(read.config.test))[:, None], size, axis=1)
    seen = Seen(rng, stakes, np.ones(size), np.ones(size), np.zeros(size, bool), np.zeros(size, np.int64))
    kept_answers, kept_draws = [], []
    for seen.key in range(KEYS):
        answer = strategy(read, seen)
        seen.draw = rng.integers(draws, size=size)
        code = answer * draws + seen.draw
        for stake, factor in zip(stakes, factors, strict=True):
            stake *= factor.take(code)
        if seen.key % FLUSHED_EVERY == 0:
            stakes[stakes < SMALLEST] = 0.0
        seen.e = stakes.sum(axis=0)
        np.maximum(seen.highest, seen.e, out=seen.highest)
        seen.matched = matched.take(code)
        kept_answers.append(answer[:CHECKED])
        kept_draws.append(seen.draw[:CHECKED])
    return seen.highest, np.array(kept_answers), np.array(kept_draws)


def cross_check(read: Table, highest: Floats, answers: Ints, draws: Ints) -> None:
    """The same paths through a real SequentialTest: the same largest E, and the same verdict at each rate."""
    for verdict in range(answers.shape[1]):
        test = SequentialTest(read.config.test, RATES[verdict % len(RATES)], 0.5, 1e-300)
        for answer, draw in zip(answers[:, verdict], draws[:, verdict], strict=True):
            reading = read.readings[answer][draw]
            test.add(reading.trials, bool(reading.matched_formats))
        assert abs(-test.log10_p - math.log10(highest[verdict])) < 1e-9, "the simulation and the test differ"
        same = (test.verdict() == "match") == convicted(highest[verdict], RATES[verdict % len(RATES)])
        assert same, "the verdicts differ"


def fixed_matches(config: Config, verdicts: int, rng: np.random.Generator) -> list[int]:
    """The exact tests of matches. Of the window test, answers that touch 0 to all candidates, key after key."""
    width, responses = config.width, config.responses
    accepted = np.ones(FIXED_KEYS, np.int64)
    if config.test == "window":
        accepted = np.arange(FIXED_KEYS) % (width + 1)
    nulls = [null_of_asking(int(c), width, responses) for c in accepted]
    if config.test == "count":
        nulls = [count_null(config.settings)] * FIXED_KEYS
    log10_p = [window_test(nulls, m) for m in range(sum(null > 0 for null in nulls) + 1)]
    convicting = np.array([[convicts(p, rate) for p in log10_p] for rate in RATES])
    counts = np.zeros(len(RATES), dtype=np.int64)
    for size in chunks(verdicts):
        best = best_places(width, responses, size, rng)
        counts += convicting[:, (best < accepted).sum(axis=1)].sum(axis=1)
    return [int(count) for count in counts]


def fixed_ranks(sizes: Sequence[int], responses: int, verdicts: int, rng: np.random.Generator) -> list[int]:
    """The exact rank test, with the same ties at every key. Verdicts whose scores have the same sum share a p-value."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    drawn = list(itertools.combinations(range(sum(sizes)), responses))
    ranks = [Ranks(tuple(sizes), tuple(int(place) for place in group[list(each)])) for each in drawn]
    best = [each.steps[0] for each in ranks]
    probs = np.asarray(best[0][0])
    middle = np.rint(96 * (np.cumsum(probs) - probs / 2)).astype(np.int64)
    tests: list[tuple[Ints, Callable[[Ints], float]]] = [
        (middle[[place for _, place in best]], lambda keys: rank_test(best[key] for key in keys))
    ]
    if responses > 1:
        scores = np.array(group_scores(tuple(sizes)))
        sums = np.array([scores[list(each.places)].sum() for each in ranks])
        tests.append((sums, lambda keys: log_rank_test((ranks[key].sizes, ranks[key].places) for key in keys)))
    known: list[dict[int, float]] = [{} for _ in tests]
    counts = np.zeros(len(RATES), dtype=np.int64)
    for size in chunks(verdicts):
        keys = rng.integers(len(drawn), size=(size, FIXED_KEYS))
        log10_p = np.min([_looked_up(keys, *test, of) for test, of in zip(tests, known, strict=True)], axis=0)
        log10_p = np.minimum(log10_p + math.log10(len(tests)), 0)
        for told, of_key in zip(log10_p[:CHECKED], keys, strict=False):
            trials = [ranks[key] if responses > 1 else Trial(*best[key]) for key in of_key]
            assert abs(fixed_log10_p("rank", [trials]) - told) < 1e-9, "the simulation and the test differ"
        for p, times in zip(*np.unique(log10_p, return_counts=True), strict=True):
            counts += times * np.array([convicts(float(p), rate) for rate in RATES])
    return [int(count) for count in counts]


def _looked_up(keys: Ints, scores: Ints, p_value: Callable[[Ints], float], known: dict[int, float]) -> Floats:
    """(verdicts,) log10 p of each verdict's keys, by the sum of their scores; `known` gains those that are new."""
    sums, first, places = np.unique(scores[keys].sum(axis=1), return_index=True, return_inverse=True)
    for value, verdict in zip(sums.tolist(), first, strict=True):
        if value not in known:
            known[value] = p_value(keys[verdict])
    return np.array([known[value] for value in sums.tolist()])[places]


def best_places(width: int, responses: int, verdicts: int, rng: np.random.Generator) -> Ints:
    """(verdicts, FIXED_KEYS) the least of the places drawn, without replacement."""
    least = np.array([min(drawn) for drawn in itertools.combinations(range(width), responses)])
    return least[rng.integers(len(least), size=(verdicts, FIXED_KEYS))]


def misses(fsr: float, never_less: bool, verdicts: int, rng: np.random.Generator) -> list[int]:
    """How many verdicts of a model with that FSR exclude it, at any of the keys.

    never_less: it matches with a greater chance whenever the evidence against it is low. A no_match also waits until
    E <= 1; here nothing waits, so the shares of every test are at most these.
    """
    crossed = np.zeros(len(MISS_RATES), dtype=np.int64)
    factors = np.exp(log_miss_factors(fsr)).T
    for size in chunks(verdicts):
        stakes = np.repeat(MISS_WEIGHTS[:, None], size, axis=1)
        highest, now = np.ones(size), np.ones(size)
        outcomes = np.empty((KEYS, CHECKED), dtype=bool)
        for key in range(KEYS):
            chance = np.where(now < 0.5, (1 + fsr) / 2, fsr) if never_less else fsr
            missed = rng.random(size) >= chance
            for stake, factor in zip(stakes, factors, strict=True):
                stake *= factor.take(missed)
            now = stakes.sum(axis=0)
            np.maximum(highest, now, out=highest)
            outcomes[key] = ~missed[:CHECKED]
        for verdict in range(min(CHECKED, size)):
            test = SequentialTest("window", 1e-6, fsr, 1e-2)
            for matched in outcomes[:, verdict]:
                test.add((), bool(matched))
            assert abs(-test.log10_miss - math.log10(highest[verdict])) < 1e-9, "the simulation and the test differ"
        crossed += [int(np.count_nonzero(convicted(highest, rate))) for rate in MISS_RATES]
    return [int(count) for count in crossed]


def whole(test: str, mode: str, settings: dict[str, Any], verdicts: int) -> list[int]:
    """verify() on sets with fresh secrets, and an innocent that answers inside the windows and has its own ranks."""
    convictions = 0
    suspect: Scripted | None = None
    for number in range(verdicts):
        made = small_set(WHOLE_KEYS, secret=number.to_bytes(32, "big"), key_length=2, **settings)
        if suspect is None:
            suspect = innocent(made)
        verification = verify(made, suspect, test=test, mode=mode, false_positive_rate=WHOLE_RATE)
        convictions += verification.verdict == "match"
    return [convictions]


def innocent(fingerprints: FingerprintSet) -> Scripted:
    """Names a candidate of most windows, the same whatever was drawn, and can do all that a test may ask."""
    width = fingerprints.settings.width
    places = [number % (width + 1) - 1 for number in range(len(fingerprints))]
    suspect = inside(fingerprints, places)
    prompts = [asking.prompt_ids for fingerprint in fingerprints for asking in fingerprint.askings.values()]
    rng = np.random.default_rng(0)
    scores = {prompt: tuple(rng.integers(0, width, width).astype(float)) for prompt in prompts}
    return replace(suspect, capabilities=frozenset({SCORE, CHOOSE}), scores=scores)


def parts(verdicts: int) -> Iterator[dict[str, Any]]:
    """One dict for each case: its part, test, setting, shares and whether they are within their rates."""
    rng = np.random.default_rng(2026)
    cases = [(config, strategy) for config in configs() for strategy in strategies(config)]
    read: Table | None = None
    for config, strategy in tqdm(cases, unit="case", mininterval=10, disable=verdicts < 100_000):
        if read is None or read.config != config:
            read = table(config)
        of = {"part": "sequential", "test": config.test, "setting": str(config), "suspect": strategy.__name__}
        yield {**of, "expected": read.expected, **shares(sequential(read, strategy, verdicts, rng), RATES, verdicts)}
    for config in FIXED:
        of = {"part": "fixed", "test": config.test, "setting": f"{config}, {FIXED_KEYS} keys"}
        yield {**of, **shares(fixed_matches(config, verdicts, rng), RATES, verdicts)}
    for sizes, responses in FIXED_RANKS:
        of = {"part": "fixed", "test": "rank", "setting": f"ties {sizes}, r = {responses}, {FIXED_KEYS} keys"}
        yield {**of, **shares(fixed_ranks(sizes, responses, verdicts, rng), RATES, verdicts)}
    for fsr, never_less in itertools.product(MISS_FSRS, (False, True)):
        of = {"part": "misses", "test": "all", "setting": f"FSR {fsr}" + " or more" * never_less}
        yield {**of, **shares(misses(fsr, never_less, verdicts, rng), MISS_RATES, verdicts)}
    repeats = min(WHOLE_VERDICTS, verdicts)
    for test, mode, settings in itertools.product(TESTS, ("sequential", "fixed"), WHOLE_SETTINGS):
        of = {"part": "whole", "test": test, "setting": f"{mode}, {settings}"}
        yield {**of, **shares(whole(test, mode, settings, repeats), (WHOLE_RATE,), repeats)}


def summary(cases: Sequence[Mapping[str, Any]], verdicts: int) -> list[Figure]:
    """The worst case of each part and test, as a row."""
    rows = []
    for part, test in dict.fromkeys((case["part"], case["test"]) for case in cases):
        of = [case for case in cases if (case["part"], case["test"]) == (part, test)]
        worst = [max(case["shares"][place] for case in of) for place in range(len(of[0]["rates"]))]
        count = min(verdicts, WHOLE_VERDICTS) if part == "whole" else verdicts
        setting = f"{len(of)} cases of {count:,} verdicts each, the worst at each rate"
        bar = "<= " + ", ".join(f"{rate:g}" for rate in of[0]["rates"]) + " (and 4 standard errors)"
        value = ", ".join(f"{share:.2g}" for share in worst)
        rows.append(Figure(NAMES[part].format(test=test), setting, value, bar, all(c["met"] for c in of), command()))
    expected = max(case["expected"] for case in cases if case["part"] == "sequential")
    rows.append(
        Figure(
            "largest expected factor of a bet on an innocent suspect's answer",
            "every bet, answer and case, over all draws",
            f"1 + {max(0.0, expected - 1):.0e}",
            "<= 1 (and 1e-12 for rounding)",
            expected <= 1 + 1e-12,
            command(),
        )
    )
    return rows


def main() -> int:
    options = parser(__doc__, "error_rates")
    options.add_argument("--verdicts", type=int, default=1_000_000, help="simulated verdicts a case (default: 1000000)")
    arguments = options.parse_args()
    run = describe_run(arguments.threads)
    cases = list(parts(arguments.verdicts))
    rows = summary(cases, arguments.verdicts)
    finish(arguments.out, run, rows, {"verdicts": arguments.verdicts, "keys": KEYS, "cases": cases})
    return int(not all(row.met for row in rows))


if __name__ == "__main__":
    sys.exit(main())
