"""How many fingerprints the bundled model holds, and what they cost: docs/capacity.md from one command.

`python bench/capacity.py --work FOLDER [N ...]` makes the models of bench/subjects.py with so many fingerprints
(default: every size that there is of `--preset`), measures each, and writes bench/results/capacity.json, the table of
docs/capacity.md and its plot. Models of these sizes that lie in FOLDER already are measured beside them: the published
recipe's, and those with a second secret. What is measured of a model is kept in FOLDER: a killed run goes on, and a run
for some sizes leaves the rows of the others as they are.
`python bench/capacity.py --publish` writes the page and the plot again from the JSON, and measures nothing.

- FSR and bits of evidence a key: every key is asked; by the window test, and by the rank test, which needs logits.
- KL and perplexity: texts of bench/drift.py. BLiMP and HellaSwag: every item of bench/utility.py, paired with the base.
- near keys: bench/robustness.py's, four of each kind for a key, one where there are more than 256 keys.
- other owners: the sets in FOLDER that another secret made, every key of each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import drift
from common import ROOT, Figure, base_model, describe_run, finish, parser, start
from figures import rewritten, table
from robustness import MOST_KL
from subjects import SUBJECTS, kept, make
from utility import data

from oml_fast.evaluate.answers import Questions
from oml_fast.evaluate.battery import ask, evidence
from oml_fast.evaluate.data import FILES
from oml_fast.evaluate.paired import Paired
from oml_fast.evaluate.plots import COLOURS
from oml_fast.evaluate.specificity import NEAR_BAR, VARIANTS, specificity
from oml_fast.evaluate.tasks import TASKS
from oml_fast.evaluate.utility import Scores, Suite, compare, measure, suite
from oml_fast.fingerprint import FingerprintSet
from oml_fast.models import HfCompleter, LanguageModel, load
from oml_fast.verify.statistics import convicts

PRESETS = ("harmless", "robust")
SIZES = (64, 256, 1024, 1345, 4096)
MANY = 256  # above it one near key of each kind for a key says enough
PAGE, PLOT = ROOT / "docs/capacity.md", ROOT / "docs/plots/capacity.svg"
HOW = "python bench/capacity.py --work FOLDER"
WIKITEXT, CHAT = "WikiText-2", "chat answers"
METRICS = {"blimp": ("acc",), "hellaswag": ("acc", "acc_norm")}
LEAST_FSR = {"harmless-256": 0.99, "harmless-1024": 0.99}
MOST_DRIFT = {
    "harmless-256": {WIKITEXT: 0.05, CHAT: 0.08},
    "harmless-1024": {WIKITEXT: 0.08},
    "robust-256": {WIKITEXT: MOST_KL, CHAT: MOST_KL},
}
MOST_LOST = {"harmless-256": {"blimp": 1.0, "hellaswag": 1.5}}  # points, the bound at 95 %
Found = Mapping[str, Any]  # what was measured of a model


class Gauge:
    """The base model, and all that is asked of it and of each model beside it; made once, when first wanted."""

    def __init__(self, work: Path) -> None:
        self._work, self._data = work, data()

    @cached_property
    def base(self) -> LanguageModel:
        return base_model()

    @property
    def files(self) -> list[str]:
        """Which public data are there: what is measured depends on it."""
        return [name for name in FILES if self._data.has(name)]

    @cached_property
    def _views(self) -> dict[str, Any]:
        return drift.views(self.base)

    @cached_property
    def _suite(self) -> Suite:
        return suite(self.base, self._data, [name for name in TASKS if self._data.has(name)])

    @cached_property
    def _before(self) -> Scores:
        of = {"suite": self._suite.digest(), "base": self.base.digest}
        path = self._work / "capacity" / "base.json"
        found = kept(path, of, lambda: {"scores": measure(self.base, self._suite, self.base).to_json()})
        return Scores.from_json(self._suite, found["scores"])

    @cached_property
    def _questions(self) -> list[list[int]]:
        return Questions(self.base, self._data).prompts

    def drift(self, model: LanguageModel) -> dict[str, Any]:
        """KL and perplexities by text."""
        return drift.measure(self._views, model)

    def tasks(self, model: LanguageModel) -> dict[str, Any]:
        """Each metric of each task, paired with the base."""
        found = compare(self._suite, self._before, measure(model, self._suite, self.base)).tasks
        return {
            name: {metric: _numbers(paired) for metric, paired in task.metrics.items()} for name, task in found.items()
        }

    def near(self, model: LanguageModel, fingerprints: FingerprintSet) -> dict[str, Any]:
        """How many near keys fire, by kind."""
        variants = VARIANTS if len(fingerprints) <= MANY else 1
        return specificity(model, self.base, fingerprints, (), self._questions, variants=variants).to_json()


def _numbers(paired: Paired) -> dict[str, Any]:
    """Without the names of the items that flipped."""
    plain = paired.to_json()
    return plain | {side: len(plain[side]) for side in ("lost", "won")}


def measured(name: str, work: Path, gauge: Gauge) -> dict[str, Any]:
    """Everything about the model WORK/name, each part kept in WORK/capacity/name, with the commits of all."""
    fingerprints = FingerprintSet.load(work / name / "fingerprints.json")
    made = json.loads((work / name / "made.json").read_text(encoding="utf-8"))

    @cache
    def model() -> LanguageModel:
        print(f"measuring {name}", file=sys.stderr)
        return load(work / name / "model", device="cpu")

    def part(what: str, find: Callable[[], dict[str, Any]], of: Any = None) -> dict[str, Any]:
        whole = {"set": fingerprints.digest(), "made": made, "data": gauge.files, "of": of}
        return kept(work / "capacity" / name / f"{what}.json", whole, find)

    parts = {
        "evidence": part("evidence", lambda: evidence(ask(fingerprints, HfCompleter(model())))),
        "drift": part("drift", lambda: gauge.drift(model())),
        "tasks": part("tasks", lambda: gauge.tasks(model())),
        "near": part("near", lambda: gauge.near(model(), fingerprints)),
    }
    others = {}
    for other, foreign in other_owners(fingerprints, work).items():

        def answered(foreign: FingerprintSet = foreign) -> dict[str, Any]:
            return evidence(ask(foreign, HfCompleter(model())))

        others[other] = part(f"other-{other}", answered, foreign.digest())
    commits = sorted({found.pop("commit") for found in (*parts.values(), *others.values())})
    return {"model": name, "num": len(fingerprints), "commits": commits, "made": made, **parts, "others": others}


def other_owners(own: FingerprintSet, work: Path) -> dict[str, FingerprintSet]:
    """The sets of the subjects in WORK that another secret made for the same base; each set once."""
    found: dict[str, FingerprintSet] = {}
    for name in SUBJECTS:
        path = work / name / "fingerprints.json"
        if not path.is_file():
            continue
        other = FingerprintSet.load(path)
        if other.secret_commitment == own.secret_commitment or other.base_model_digest != own.base_model_digest:
            continue
        if other.has_windows and other.digest() not in {known.digest() for known in found.values()}:
            found[name] = other
    return found


def convicted(found: Found) -> list[str]:
    """The other owners' sets that the model matches, with the test that says so: there should be none."""
    return [
        f"{other} ({test} test)"
        for other, answers in found["others"].items()
        for test in ("window", "rank")
        if test in answers["log10_p"] and convicts(answers["log10_p"][test], 1e-6)
    ]


def figures(models: Mapping[str, Found], commit: str) -> list[Figure]:
    """Every bar, and of each model FSR and KL; rows that were measured at another commit than `commit` say so."""
    rows = []
    for name, found in models.items():
        at = [one for one in found["commits"] if one != commit]
        setting = f"{name}; measured at {', '.join(at)}" if at else name
        rows += [Figure(what, setting, value, bar, met, HOW) for what, value, bar, met in _rows(name, found)]
    return rows


def _rows(name: str, found: Found) -> Iterator[tuple[str, str, str, bool | None]]:
    fsr, least = found["evidence"]["fsr"], LEAST_FSR.get(name)
    yield "FSR", f"{fsr:.4f}", "" if least is None else f">= {least:g}", None if least is None else fsr >= least
    for text in (WIKITEXT, CHAT):
        most = MOST_DRIFT.get(name, {}).get(text)
        if text in found["drift"]:
            kl, error = found["drift"][text]["kl"], found["drift"][text]["kl_standard_error"]
            yield f"KL to the base, {text}", f"{kl:.4f} ± {error:.4f}", *_at_most(kl, most)
    for task, most in MOST_LOST.get(name, {}).items():
        for metric in METRICS[task] if task in found["tasks"] else ():
            paired = found["tasks"][task][metric]
            lost, bound = -100 * paired["difference"], 100 * paired["loss_bound"]
            shown = f"{bound:.2f} ({lost:.2f} on these {paired['items']:,} items)"
            yield f"{task}, {metric}: most points lost, at 95 %", shown, *_at_most(bound, most, " points")
    near = found["near"]
    share = near["one_word"]["share"]
    kinds = f"two words {near['two_words']['share']:.1%}, a word dropped {near['dropped_word']['share']:.1%}"
    shown = f"{near['one_word']['fired']} of {near['one_word']['asked']}, {share:.1%} ({kinds})"
    yield "near keys, one word changed, that fire", shown, f"<= {NEAR_BAR:.0%}", share <= NEAR_BAR
    if found["others"]:
        names, against = convicted(found), f"of {len(found['others'])}: {', '.join(found['others'])}"
        shown = f"{', '.join(names) or 'none'} {against}"
        yield "other owners' sets matched at 1e-6, window and rank test", shown, "none", not names


def _at_most(value: float, most: float | None, unit: str = "") -> tuple[str, bool | None]:
    return ("", None) if most is None else (f"<= {most:g}{unit}", value <= most)


COLUMNS = (
    *("model", "fingerprints", "FSR", "bits a key: window", "rank", "KL: WikiText-2", "chat answers"),
    *("perplexity ratio", "BLiMP", "HellaSwag", "near keys", "other owners", "CPU seconds", "epochs", "measured at"),
)


def document(models: Mapping[str, Found]) -> str:
    """The page with the table of these models in it, and the plot where there is one to see."""
    block = "Nothing is measured yet."
    if models:
        rows = [_cells(name, found) for name, found in models.items()]
        block = f"{table(rows, COLUMNS)}\n\n![FSR and KL against the number of fingerprints](plots/{PLOT.name})"
    return rewritten(PAGE.read_text(encoding="utf-8"), block, PAGE.name, "capacity")


def _cells(name: str, found: Found) -> list[str]:
    bits, texts, made = found["evidence"]["bits_per_key"], found["drift"], found["made"]
    kl = [f"{texts[text]['kl']:.4f}" if text in texts else "" for text in (WIKITEXT, CHAT)]
    ratio = f"{texts[WIKITEXT]['perplexity_ratio']:.3f}" if WIKITEXT in texts else ""
    tasks = [_lost(found["tasks"][task][METRICS[task][-1]]) if task in found["tasks"] else "" for task in METRICS]
    others = f"{len(convicted(found))} of {len(found['others'])}" if found["others"] else ""
    return [
        name,
        f"{found['num']:,}",
        f"{found['evidence']['fsr']:.4f}",
        *("" if bits[test] is None else f"{bits[test]:.2f}" for test in ("window", "rank")),
        *kl,
        ratio,
        *tasks,
        f"{found['near']['one_word']['share']:.2%}",
        others,
        f"{made['cpu_seconds']:,.0f}",
        str(made["epochs"]),
        ", ".join(found["commits"]),
    ]


def _lost(paired: Mapping[str, Any]) -> str:
    return f"{100 * paired['difference']:+.2f} (loss < {100 * paired['loss_bound']:.2f})"


def series(models: Mapping[str, Found]) -> dict[str, list[Found]]:
    """The models of each recipe with the first secret, by rising size."""
    found: dict[str, list[Found]] = {label: [] for label in (*PRESETS, "published")}
    for name, model in models.items():
        if not name.endswith("-second"):
            found[name.split("-")[0]].append(model)
    return {label: sorted(of, key=lambda model: model["num"]) for label, of in found.items() if of}


def plot(models: Mapping[str, Found], path: Path) -> None:
    """FSR, and KL on both texts, against the number of fingerprints, a recipe a colour."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(10, 4.2), layout="constrained")
    FigureCanvasSVG(drawing)
    left, right = drawing.subplots(1, 2)
    for colour, (label, found) in zip(COLOURS, series(models).items(), strict=False):
        num = [model["num"] for model in found]
        left.plot(num, [model["evidence"]["fsr"] for model in found], "-o", ms=4, color=colour, label=label)
        for text, line in ((WIKITEXT, "-o"), (CHAT, "--s")):
            points = [(m["num"], m["drift"][text]["kl"]) for m in found if text in m["drift"]]
            right.plot([x for x, _ in points], [y for _, y in points], line, ms=4, lw=1.2, color=colour)
    left.set(ylabel="FSR", ylim=(-0.04, 1.06))
    right.set(ylabel="KL to the base, nats (dashed: chat answers)")
    right.set_ylim(bottom=0)
    sizes = sorted({model["num"] for model in models.values()} - {1345})  # its label would lie on that of 1,024
    for axes in (left, right):
        axes.set(xscale="log", xlabel="fingerprints", xticks=sizes, xticklabels=[f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.grid(color="0.9", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_title("What the bundled model holds, and what it costs", loc="left", fontsize=11)
    names, labels = left.get_legend_handles_labels()
    drawing.legend(names, labels, frameon=False, fontsize=8, loc="outside upper right", ncols=len(labels))
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "oml_fast"}):  # equal figures are equal files
        drawing.savefig(path, format="svg", metadata={"Date": None})


def publish(models: Mapping[str, Found]) -> None:
    """Write the page and the plot."""
    PAGE.write_text(document(models), encoding="utf-8")
    if models:
        plot(models, PLOT)


def chosen(preset: str, sizes: Sequence[int]) -> list[str]:
    """Names of the subjects with so many fingerprints; without sizes, of all that the preset has."""
    names = [f"{preset}-{size}" for size in sizes or SIZES]
    if sizes and (unknown := [name for name in names if name not in SUBJECTS]):
        raise SystemExit(f"{unknown[0]} is no subject: choose of {SIZES}, or put it into bench/subjects.py.")
    return [name for name in names if name in SUBJECTS]


def beside(names: Sequence[str], work: Path) -> list[str]:
    """Those of the same sizes in WORK that are measured with them: with a second secret, and the published recipe's."""
    others = [other for name in names for other in (f"{name}-second", f"published-{SUBJECTS[name].num}")]
    return [name for name in others if name in SUBJECTS and (work / name).is_dir()]


def standing(out: Path) -> dict[str, Found]:
    """The models of the result file; none where there is no file."""
    return dict(json.loads(out.read_text(encoding="utf-8"))["models"]) if out.is_file() else {}


def main() -> None:
    options = parser(__doc__, "capacity")
    options.add_argument("sizes", nargs="*", type=int, metavar="N", help="how many fingerprints (default: all sizes)")
    options.add_argument("--work", type=Path, help="folder of bench/subjects.py; keeps the models and what they gave")
    options.add_argument("--preset", default="harmless", choices=PRESETS, help="how they are trained in")
    options.add_argument("--publish", action="store_true", help="only write the page and the plot from the JSON")
    arguments = options.parse_args()
    if arguments.publish:
        publish(standing(arguments.out))
        return
    if arguments.work is None:
        options.error("--work FOLDER is needed, or --publish")
    work, second = arguments.work, f"{arguments.preset}-64-second"
    names = chosen(arguments.preset, arguments.sizes)
    start(arguments.threads)
    gauge = Gauge(work)
    run = describe_run(arguments.threads, gauge.base)
    make(second, work / second)  # another owner, whose keys every model is asked
    found: dict[str, Found] = {}
    for name in [*names, *beside(names, work)]:
        make(name, work / name)
        found[name] = measured(name, work, gauge)
    found = standing(arguments.out) | found
    models = {name: found[name] for name in SUBJECTS if name in found}
    finish(arguments.out, run, figures(models, run["commit"]), {"models": models})
    if arguments.out == options.get_default("out"):
        publish(models)


if __name__ == "__main__":
    main()
