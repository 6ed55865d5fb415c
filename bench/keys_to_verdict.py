"""How many keys a verdict takes on real models: fingerprinted, eroded, and never fingerprinted.

`python bench/keys_to_verdict.py --work FOLDER` takes the models that `python bench/subjects.py --work FOLDER` made
(ours-256 at width 16, published-256 at width 3, and their base), asks each of them every key once, and then verifies
with the recorded answers in many random orders of keys, as `oml_fast.verify` does: sequentially, at 1e-6. Eroded models
are ours-256 with a share of its delta left, in float32: most deltas are one step of bfloat16, which rounds any share
above a half to the whole. The base model is also verified with 1,000 fresh secrets: same keys and
windows, other draws. Medians are over orders in which the verdict was reached; how many that were stands beside them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Figure, base_model, command, describe_run, finish, parser, start

from oml_fast.completer import CHOOSE, SCORE, Completion
from oml_fast.evaluate.attacks.scaling import blended, linear
from oml_fast.fingerprint import Asking, FingerprintSet, Response, draw_responses
from oml_fast.models import HfCompleter, LanguageModel, load
from oml_fast.secret import commitment
from oml_fast.verify import Verification, verify
from oml_fast.verify.trials import preferred

WIDE, NARROW = "ours-256", "published-256"
SHARES = (0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.3, 0.2, 0.1)
ERODED_FSR = 0.01  # the smallest FSR asked about where a model was eroded
WINDOW_KEYS = 80  # in which the window test decides at an FSR of 0.2, and the count test does not
TESTS = ("rank", "forced_choice", "window", "count")


@dataclass
class Recorded:
    """A suspect whose answers were recorded: every verification of it costs nothing."""

    name: str
    tokenizer_digest: str
    answers: dict[tuple[int, ...], Completion]
    askings: dict[tuple[int, ...], Asking]
    capabilities: frozenset[str] = field(default_factory=lambda: frozenset({SCORE, CHOOSE}))

    def complete(self, prompts: Sequence[Sequence[int]], length: int) -> list[Completion]:
        return [self.answers[tuple(prompt)] for prompt in prompts]

    def score(
        self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], length: int
    ) -> list[Completion]:
        return self.complete(prompts, length)

    def choose(self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]) -> list[Completion | None]:
        return [preferred(self.askings[tuple(prompt)], self.answers[tuple(prompt)]) for prompt in prompts]


def record(fingerprints: FingerprintSet, model: LanguageModel) -> Recorded:
    """Every key asked once, raw."""
    askings = {f.askings["raw"].prompt_ids: f.askings["raw"] for f in fingerprints}
    candidates = [asking.window.token_ids for asking in askings.values()]
    completer = HfCompleter(model)
    answers = completer.score(list(askings), candidates, fingerprints.settings.response_length)
    return Recorded(model.name, completer.tokenizer_digest, dict(zip(askings, answers, strict=True)), askings)


def redrawn(fingerprints: FingerprintSet, secret: bytes) -> FingerprintSet:
    """The same keys and windows with another owner's draws, for responses of one token id."""
    made = []
    for fingerprint in fingerprints:
        asking = fingerprint.askings["raw"]
        digests = (fingerprints.base_model_digest, fingerprints.tokenizer_digest)
        drawn = draw_responses(secret, *digests, fingerprints.settings, "raw", fingerprint.key_ids)
        window = asking.window
        responses = tuple(
            Response(slot, index, window.texts[index], (window.token_ids[index],), (window.probs[index],))
            for slot, index in enumerate(drawn)
        )
        made.append(replace(fingerprint, askings={"raw": replace(asking, responses=responses)}))
    return replace(fingerprints, secret_commitment=commitment(secret), fingerprints=tuple(made))


def in_orders(fingerprints: FingerprintSet, suspect: Recorded, test: str, orders: int, **how: Any) -> dict[str, Any]:
    """Verdicts and numbers of keys over random orders."""
    rng = np.random.default_rng(0)
    numbers = [fingerprint.number for fingerprint in fingerprints]
    found: list[Verification] = []
    for _ in range(orders):
        order = [int(number) for number in rng.permutation(numbers)]
        found.append(verify(fingerprints, suspect, test=test, order=order, **how))
    keys: dict[str, list[int]] = {}
    for verification in found:
        keys.setdefault(verification.verdict, []).append(verification.queried)
    return {
        "orders": orders,
        "verdicts": {verdict: len(counts) for verdict, counts in keys.items()},
        "median_keys": {verdict: statistics.median(counts) for verdict, counts in keys.items()},
        "most_keys": {verdict: max(counts) for verdict, counts in keys.items()},
    }


def fsr(fingerprints: FingerprintSet, suspect: Recorded) -> float:
    return verify(fingerprints, suspect, test="window", mode="fixed").fsr


def main() -> None:
    options = parser(__doc__, "keys_to_verdict")
    options.add_argument("--work", type=Path, required=True, help="folder of the models of bench/subjects.py")
    options.add_argument("--orders", type=int, default=100, help="random orders of the keys (default: 100)")
    options.add_argument("--secrets", type=int, default=1000, help="fresh secrets on the base model (default: 1000)")
    arguments = options.parse_args()
    start(arguments.threads)
    base = base_model()
    run = describe_run(arguments.threads, base)
    cases = {name: whole(arguments.work / name, base, arguments.orders) for name in (WIDE, NARROW)}
    exact = base_model(torch.float32)
    eroded = [erosion(arguments.work / WIDE, exact, share, arguments.orders) for share in SHARES]
    fresh = innocent(arguments.work / WIDE, base, arguments.secrets)
    rows = [*whole_figures(cases), *eroded_figures(eroded), *innocent_figures(fresh)]
    finish(arguments.out, run, rows, {"whole": cases, "eroded": eroded, "fresh_secrets": fresh})


def whole(folder: Path, base: LanguageModel, orders: int) -> dict[str, Any]:
    """The fingerprinted model and its base, by every test."""
    fingerprints = FingerprintSet.load(folder / "fingerprints.json")
    suspects = {"fingerprinted": record(fingerprints, load(folder / "model", device="cpu"))}
    suspects["base"] = record(fingerprints, base)
    return {
        "width": fingerprints.settings.width,
        "fsr": fsr(fingerprints, suspects["fingerprinted"]),
        **{
            name: {test: in_orders(fingerprints, suspect, test, orders) for test in TESTS}
            for name, suspect in suspects.items()
        },
    }


def erosion(folder: Path, base: LanguageModel, share: float, orders: int) -> dict[str, Any]:
    """What each test needs where a share of the delta is left."""
    fingerprints = FingerprintSet.load(folder / "fingerprints.json")
    model = load(folder / "model", device="cpu", dtype=torch.float32)
    suspect = record(fingerprints, blended(model, base, partial(linear, share=share), f"{share:g} of the delta"))
    tests = {test: in_orders(fingerprints, suspect, test, orders, smallest_fsr=ERODED_FSR) for test in TESTS}
    return {"share": share, "fsr": fsr(fingerprints, suspect), "tests": tests}


def innocent(folder: Path, base: LanguageModel, secrets: int) -> dict[str, Any]:
    """The base model against fresh secrets, at a rate of 1e-6 and, to see that the bound is not idle, at 1e-1."""
    fingerprints = FingerprintSet.load(folder / "fingerprints.json")
    suspect = record(fingerprints, base)
    cases = [*((test, 1e-6) for test in TESTS), ("rank", 0.1)]
    matches = {f"{test} at {rate:g}": 0 for test, rate in cases}
    for number in range(secrets):
        drawn = redrawn(fingerprints, number.to_bytes(32, "big"))
        for test, rate in cases:
            how = {"false_positive_rate": rate, "smallest_fsr": ERODED_FSR}
            matches[f"{test} at {rate:g}"] += verify(drawn, suspect, test=test, **how).verdict == "match"
    return {"secrets": secrets, "matches": matches}


def whole_figures(cases: dict[str, dict[str, Any]]) -> list[Figure]:
    rows = []
    for name, bar in ((WIDE, 7), (NARROW, 16)):
        case = cases[name]
        for test in TESTS:
            found = case["fingerprinted"][test]
            rows.append(
                _cost(
                    f"keys to a match at 1e-6, k = {case['width']}",
                    f"{name}, FSR {case['fsr']:.3f}",
                    test,
                    found,
                    "match",
                    bar,
                )
            )
        for test in ("rank", "window", "count"):  # a forced choice matches 1 in k by chance: at k = 3 near a half
            found = case["base"][test]
            rows.append(_cost(f"keys to no_match, k = {case['width']}", f"base of {name}", test, found, "no_match", 10))
    return rows


def eroded_figures(eroded: Sequence[dict[str, Any]]) -> list[Figure]:
    fifth = min(eroded, key=lambda case: abs(case["fsr"] - 0.2))
    gone = max((case for case in eroded if case["fsr"] <= 0.05), key=lambda case: case["share"])
    tenth = eroded[-1]
    bars = [(fifth, "window", WINDOW_KEYS), (gone, "forced_choice", 40), (gone, "rank", 30), (tenth, "rank", 250)]
    rows = []
    for case, test, bar in bars:
        setting = f"{case['share']:g} of the delta left, FSR {case['fsr']:.3f}"
        rows.append(_cost("keys to a match at 1e-6, eroded", setting, test, case["tests"][test], "match", bar))
    count = fifth["tests"]["count"]["median_keys"].get("match")
    setting = f"{fifth['share']:g} of the delta left, FSR {fifth['fsr']:.3f}, count test"
    met = count is None or count > WINDOW_KEYS
    value = "never" if count is None else f"{count:g}"
    rows.append(Figure("keys that the count test takes there", setting, value, f"> {WINDOW_KEYS}", met, command()))
    return rows


def innocent_figures(fresh: dict[str, Any]) -> list[Figure]:
    rows = []
    for name, matches in fresh["matches"].items():
        bar = "0" if name.endswith("1e-06") else ""
        met = matches == 0 if bar else None
        setting = f"{name}, {fresh['secrets']} fresh secrets, up to 256 keys each"
        rows.append(Figure("base model convicted", setting, str(matches), bar, met, command()))
    return rows


def _cost(what: str, setting: str, test: str, found: dict[str, Any], verdict: str, bar: int) -> Figure:
    reached, keys = found["verdicts"].get(verdict, 0), found["median_keys"].get(verdict)
    value = "never" if keys is None else f"{keys:g}"
    told = f"{setting}, {test} test; {reached} of {found['orders']} orders"
    met = keys is not None and keys <= bar and reached * 2 > found["orders"]
    return Figure(what, told, value, f"<= {bar}", met, command())


if __name__ == "__main__":
    main()
