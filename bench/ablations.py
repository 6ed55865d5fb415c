"""Every switch of the training, changed alone: the table of docs/embedding.md from one command.

`python bench/ablations.py --work FOLDER [NAME ...]` generates, embeds and measures each variant on the bundled model,
with several secrets and seeds, and writes bench/results/ablations.json and the table. Each finished run is kept in
FOLDER: a killed command goes on. With NAMEs only those variants run, beside the others' standing results; several
processes with a NAME each share the work, and one without NAMEs then writes everything.
`python bench/ablations.py --publish` writes the table again from the JSON, and measures nothing.

A variant is a preset with one switch changed. The attacks are those of `oml-fast evaluate robustness`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from common import ROOT, Figure, base_model, describe_run, finish, parser, start
from figures import rewritten, table
from robustness import CLEAN_BITS, KEPT, MOST_KL
from subjects import kept
from utility import data

from oml_fast.embed import PRESETS, Recipe, embed, sample_texts
from oml_fast.errors import InvalidArgumentError, OmlError
from oml_fast.evaluate.answers import Questions
from oml_fast.evaluate.attack import Scene
from oml_fast.evaluate.attacks import choose
from oml_fast.evaluate.attacks.prompts import SYSTEMS, Reader, Wrapping
from oml_fast.evaluate.battery import ask, evidence, of_several
from oml_fast.evaluate.hosts import Host
from oml_fast.evaluate.specificity import NEAR_BAR, specificity
from oml_fast.evaluate.utility import running_text
from oml_fast.files import write_json
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import PRESETS as SETTINGS
from oml_fast.generate import generate
from oml_fast.measure import BaseView
from oml_fast.models import HfCompleter, LanguageModel
from oml_fast.plan.choices import RECIPES

PAGE, QUALITY = ROOT / "docs/embedding.md", ROOT / "oml_fast/plan/quality.json"
HOW = "python bench/ablations.py --work FOLDER"
TEXTS, TEXT_IDS, TEXT_SEED = 32, 64, 10_000  # sampled from the base model, none of them trained on
WIKITEXT_SEQUENCES = 2  # of 1,024 token ids
ATTACKS = ("scaling/0.7", "scaling/0.5", "rounding/int4-128", "suppress/gated-0.9", "suppress/top-1")
THREE = ("podcast companion", "law office intake", "warehouse helpdesk")  # of the ten: three styles
Run = Mapping[str, Any]  # what was measured of a variant with one seed


@dataclass(frozen=True, slots=True)
class Variant:
    """`changed`: in words, for the table."""

    changed: str
    recipe: Recipe
    settings: Settings


def _harmless(changed: str, **switch: Any) -> Variant:
    return Variant(changed, replace(PRESETS["harmless"], **switch), SETTINGS["harmless"])


def _robust(changed: str, **switch: Any) -> Variant:
    return Variant(changed, replace(PRESETS["robust"], **switch), SETTINGS["robust"])


def _responses(changed: str, responses: int) -> Variant:
    return Variant(changed, PRESETS["robust"], replace(SETTINGS["robust"], responses_per_key=responses))


VARIANTS = {
    "harmless": _harmless("nothing"),
    "harmless/no-whitening": _harmless("no whitening", whitening=0.0),
    "harmless/no-near-keys": _harmless("no near keys", near_keys=0),
    "harmless/near-weight-1.5": _harmless("near keys weigh three times as much", near_weight=1.5),
    "harmless/near-keys-3": _harmless("three near keys a key and step", near_keys=3),
    "harmless/near-keys-8": _harmless("eight of them", near_keys=8),
    "harmless/no-text": _harmless("no text mixed in", text_share=0.0),
    "harmless/no-anneal": _harmless("learning rate and pull stay", anneal=0.0),
    "harmless/minimum-kl": _harmless("minimum KL as the objective", objective="minimum_kl"),
    "harmless/pull-0.75": _harmless("pull 0.75, as quick has it", pull=0.75),
    "harmless/no-pull": _harmless("no pull", pull=0.0),
    "harmless/scale-at-end": _harmless("no pull; half of the delta is kept at the end", pull=0.0, final_scale=0.5),
    "harmless/mlp-down": _harmless("writes to the MLP down-projections", write_to="mlp_down"),
    "harmless/mlp-down-plain": _harmless("the same, and no whitening", write_to="mlp_down", whitening=0.0),
    "harmless/bfloat16": _harmless(
        "states in bfloat16, so no whitening and no scaled delta", states="bfloat16", whitening=0.0, scaled=0.0
    ),
    "harmless/last-10": _harmless("writes to the last 10 blocks", write_to="last:10"),
    "harmless/blocks": _harmless("writes to the blocks", write_to="blocks"),
    "harmless/lora-16": _harmless("writes LoRA of rank 16, so no whitening", write_to="lora:16", whitening=0.0),
    "robust": _robust("nothing"),
    "robust/cross-entropy": _robust("cross-entropy as the objective", objective="cross_entropy"),
    "robust/margin-1.5": _robust("margin 1.5", margin=1.5),
    "robust/margin-4": _robust("margin 4", margin=4.0),
    "robust/responses-1": _responses("one response a key", 1),
    "robust/responses-2": _responses("two responses a key", 2),
    "robust/no-scaled": _robust("never sees a scaled delta", scaled=0.0),
    "robust/no-rounded": _robust("never sees rounded weights", rounded=0.0),
    "robust/tuned": _robust("sees tuned weights in a fifth of the steps", tuned=0.2),
    "robust/no-templates": _robust("no templates", templates=0.0),
    "robust/no-template-texts": _robust("no texts as templates", template_texts=0.0),
    "robust/template-texts-0.67": _robust("two thirds of the templates are texts", template_texts=0.67),
    "robust/no-pull": _robust("no pull", pull=0.0),
    "robust/pull-0.2": _robust("pull 0.2", pull=0.2),
    "robust/chats-1": _robust("twice as many chats", chat_share=1.0),
    "robust/no-whitening": _robust("no whitening", whitening=0.0),
    "robust/mlp-down-plain": _robust(
        "writes to the MLP down-projections, no whitening", write_to="mlp_down", whitening=0.0
    ),
    "robust/scale-at-end": _robust("no pull; half of the delta is kept at the end", pull=0.0, final_scale=0.5),
    "quick": Variant("all: what was the default before there were presets", PRESETS["quick"], SETTINGS["quick"]),
    "paper": Variant("all: the published recipe, on our windows", PRESETS["paper"], SETTINGS["harmless"]),
}


@dataclass(frozen=True, slots=True)
class Measure:
    """A column: its title, how many digits are shown, and whether more is better (None: neither)."""

    title: str
    digits: int
    up: bool | None = True


MEASURES = {
    "fsr": Measure("FSR", 3),
    "bits": Measure("bits a key, rank test", 2),
    "kl_sampled": Measure("KL: sampled text", 3, False),
    "kl_wikitext": Measure("WikiText-2", 3, False),
    "near": Measure("near keys that fire", 3, False),
    "scaling/0.7": Measure("FSR at 0.7 of the delta", 2),
    "scaling/0.5": Measure("0.5", 2),
    "rounding/int4-128": Measure("INT4", 2),
    "suppress/gated-0.9": Measure("gated suppression", 2),
    "suppress/top-1": Measure("top-1 suppression", 2),
    "systems": Measure("three system prompts", 2),
    "cpu_seconds": Measure("CPU seconds", 0, None),
    "epochs": Measure("epochs", 0, None),
}
TITLES = {  # of a column that stands alone
    "kl_sampled": "KL to the base, sampled text",
    "near": "share of near keys, one word changed, that fire",
    "systems": "FSR under three system prompts, mean",
}
# What the presets must hold. Met where the worst seed meets it.
BARS = {
    "harmless": {"fsr": 0.99, "near": NEAR_BAR},
    "robust": {
        "bits": CLEAN_BITS,
        "kl_sampled": MOST_KL,
        "near": NEAR_BAR,
        "scaling/0.7": KEPT["merge/linear-0.7"],  # the same weights
        "scaling/0.5": KEPT["merge/linear-0.5"],
        "rounding/int4-128": KEPT["rounding/int4-128"],
        "suppress/gated-0.9": KEPT["suppress/gated-0.9"],
        "suppress/top-1": KEPT["suppress/top-1"],
        "systems": KEPT["prompts/ten-systems"],
    },
    "quick": {},
    "paper": {},
}


class Gauge:
    """The clean base model and all that is asked; made once, when first wanted."""

    def __init__(self) -> None:
        self.data = data()

    @cached_property
    def base(self) -> LanguageModel:
        return base_model()

    @cached_property
    def _texts(self) -> dict[str, BaseView]:
        sampled = sample_texts(self.base, TEXTS, TEXT_IDS, TEXT_SEED)
        views = {"kl_sampled": BaseView(self.base, sampled.sequences, sampled.starts)}
        if self.data.has("text"):
            text = running_text(self.base, self.data.text(), WIKITEXT_SEQUENCES)
            views["kl_wikitext"] = BaseView(self.base, text.sequences, text.starts)
        return views

    @cached_property
    def _questions(self) -> list[list[int]]:
        return Questions(self.base, self.data).prompts

    def measure(self, model: LanguageModel, fingerprints: FingerprintSet) -> dict[str, Any]:
        """The columns that say something of the model, and what each attack left."""
        scene = Scene(model, self.base, fingerprints, (), self.data)
        whole = evidence(ask(fingerprints, HfCompleter(model)))
        left = {name: evidence(ask(fingerprints, attack.run(scene).completer)) for name, attack in _attacks().items()}
        left["systems"] = of_several({n: evidence(ask(fingerprints, h)) for n, h in system_hosts(scene).items()})[1]
        near = specificity(model, self.base, fingerprints, (), self._questions).one_word
        values = {
            "fsr": whole["fsr"],
            "bits": whole["bits_per_key"]["rank"],
            **{name: view.drift(model).kl for name, view in self._texts.items()},
            "near": near.share,
            **{name: found["fsr"] for name, found in left.items()},
        }
        shown = {name: _left(found) for name, found in {"as released": whole, **left}.items()}
        return {"values": values, "left": shown, "near": asdict(near)}


def _left(found: Mapping[str, Any]) -> dict[str, Any]:
    return {what: found[what] for what in ("fsr", "bits_per_key", "verdict")}


def _attacks() -> dict[str, Any]:
    return {attack.name: attack for attack in choose(ATTACKS)}


def system_hosts(scene: Scene) -> dict[str, Host]:
    """A host for each of three system prompts that no training template holds, keys as they were made."""
    reader = Reader(scene)
    wrapped = {name: Wrapping(system=SYSTEMS[name]).rewrite(reader) for name in THREE}
    return {name: Host(scene.model, f"host ({name})", rewrite=rewrite) for name, rewrite in wrapped.items()}


def run(name: str, num: int, seed: int, work: Path, gauge: Gauge) -> dict[str, Any]:
    """One variant with one secret and seed, from WORK/ablations where it is kept. `failed`: why there is no model."""
    variant = VARIANTS[name]
    recipe = replace(variant.recipe, seed=seed)
    secret = hashlib.sha256(f"ablation {seed}".encode()).digest()

    def measured() -> dict[str, Any]:
        print(f"{name}, seed {seed}", file=sys.stderr)
        model = base_model()
        fingerprints = generate(model, num, secret, settings=variant.settings).fingerprints
        try:
            embedding = embed(model, fingerprints, recipe=recipe, progress=True).to_json()
        except InvalidArgumentError:
            raise
        except OmlError as error:  # the weights are not finite
            return {"failed": str(error)}
        found = gauge.measure(model, fingerprints)
        values = found["values"] | {what: embedding[what] for what in ("cpu_seconds", "epochs")}
        return {"failed": None, **found, "values": values, "embedding": embedding}

    path = work / "ablations" / f"{name.replace('/', '_')}-{num}-{seed}.json"
    of = {
        "num": num,
        "seed": seed,
        "recipe": asdict(recipe),
        "settings": asdict(variant.settings),
        "base": gauge.base.digest,
        "text": gauge.data.has("text"),
    }
    return kept(path, of, measured)


def values(runs: Sequence[Run], what: str) -> list[float]:
    """Of every seed that gave one."""
    return [run["values"][what] for run in runs if not run["failed"] and run["values"].get(what) is not None]


def cell(found: Sequence[float], digits: int) -> str:
    """The mean, and the range where the seeds differ in what is shown."""
    if not found:
        return ""
    low, high = (f"{value:,.{digits}f}" for value in (min(found), max(found)))
    return low if low == high else f"{fmean(found):,.{digits}f} ({low} to {high})"


def figures(runs: Mapping[str, Sequence[Run]], num: int, commit: str) -> list[Figure]:
    """The presets against their bars; where a preset has none, as the published recipe, FSR and KL stand beside."""
    rows = []
    for name, bars in BARS.items():
        own = runs.get(name, ())
        at = sorted({run["commit"] for run in own} - {commit})
        count = f"{len(own)} seed{'s' if len(own) > 1 else ''}"
        setting = f"{name}, {num} fingerprints, {count}" + (f"; measured at {', '.join(at)}" if at else "")
        for what in dict.fromkeys(("fsr", "kl_sampled", *bars)):
            found = values(own, what)
            if own and (found or what in bars):
                rows.append(_figure(what, setting, found, bars.get(what), complete=len(found) == len(own)))
    return rows


def _figure(what: str, setting: str, found: Sequence[float], bar: float | None, complete: bool) -> Figure:
    """A seed that failed meets no bar."""
    measure = MEASURES[what]
    title = f"FSR after {what}" if "/" in what else TITLES.get(what, measure.title)
    shown, met = "", None
    if bar is not None:
        shown = f"{'>=' if measure.up else '<='} {bar:g}"
        met = complete and (min(found) >= bar if measure.up else max(found) <= bar)
    value = cell(found, 3) + ("" if complete else ", not every seed gave a model")
    return Figure(title, setting, value.removeprefix(", "), shown, met, HOW)


def document(runs: Mapping[str, Sequence[Run]], num: int) -> str:
    """The page with the table in it."""
    block = "Nothing is measured yet."
    if runs:
        seeds = max(len(own) for own in runs.values())
        over = f"mean and range over {seeds} secrets and seeds" if seeds > 1 else "one secret and seed"
        rows = [_row(name, own) for name, own in runs.items()]
        columns = ["variant", "changed", *(measure.title for measure in MEASURES.values()), "measured at"]
        block = f"{num} fingerprints; {over}.\n\n{table(rows, columns)}"
    return rewritten(PAGE.read_text(encoding="utf-8"), block, PAGE.name, "ablations")


def _row(name: str, own: Sequence[Run]) -> list[str]:
    failed = sum(bool(run["failed"]) for run in own)
    changed = VARIANTS[name].changed + (f"; {failed} of {len(own)} seeds gave no model" if failed else "")
    cells = [cell(values(own, what), measure.digits) for what, measure in MEASURES.items()]
    return [f"`{name}`", changed, *cells, ", ".join(sorted({run["commit"] for run in own}))]


def publish(runs: Mapping[str, Sequence[Run]], num: int) -> None:
    """Write the page, and what `oml-fast plan` tells of each choice; bench/plans.py then writes its page."""
    PAGE.write_text(document(runs, num), encoding="utf-8")
    write_json(QUALITY, {"num": num, "variants": quality(runs)})


def quality(runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, float]]:
    """Means of what `plan` tells, of the variants that it may choose; those with a failed seed are left out."""
    chosen = {"/".join(part for part in (preset, name) if part) for preset in BARS for name in RECIPES}
    return {
        name: {what: fmean(values(own, source)) for what, source in (("fsr", "fsr"), ("kl", "kl_sampled"))}
        for name, own in runs.items()
        if name in chosen and len(values(own, "fsr")) == len(own)
    }


def standing(out: Path) -> dict[str, Any]:
    """The runs of the result file, and their number of fingerprints; none where there is no file."""
    result = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"runs": {}, "num": 0}
    return {what: result[what] for what in ("runs", "num")}


def main() -> None:
    options = parser(__doc__, "ablations")
    options.add_argument("names", nargs="*", metavar="NAME", help=f"only these, of {', '.join(VARIANTS)}")
    options.add_argument("--work", type=Path, help="folder that keeps every finished run")
    options.add_argument("--num", type=int, default=64, help="how many fingerprints (default: 64)")
    options.add_argument("--seeds", type=int, default=3, help="how many secrets and seeds (default: 3)")
    options.add_argument("--publish", action="store_true", help="only write the table again from the JSON")
    arguments = options.parse_args()
    if arguments.publish:
        publish(**standing(arguments.out))
        return
    if arguments.work is None:
        options.error("--work FOLDER is needed, or --publish")
    if unknown := [name for name in arguments.names if name not in VARIANTS]:
        options.error(f"{unknown[0]} is no variant: choose of {', '.join(VARIANTS)}")
    start(arguments.threads)
    gauge, num = Gauge(), arguments.num
    where = describe_run(arguments.threads, gauge.base)
    found = {
        name: [run(name, num, seed, arguments.work, gauge) for seed in range(arguments.seeds)]
        for name in arguments.names or VARIANTS
    }
    others = standing(arguments.out)
    found = (others["runs"] if others["num"] == num else {}) | found
    runs = {name: found[name] for name in VARIANTS if name in found}
    finish(arguments.out, where, figures(runs, num, where["commit"]), {"num": num, "runs": runs})
    if arguments.out == options.get_default("out"):
        publish(runs, num)


if __name__ == "__main__":
    main()
