"""What fingerprinting costs in utility, paired with the base; agreement with lm-evaluation-harness; time of BLiMP.

`python bench/utility.py --work FOLDER [NAME ...]` measures the models that `python bench/subjects.py --work FOLDER`
made (those named, or all that are there) on sampled text, WikiText-2, BLiMP and HellaSwag, prints a table and writes
bench/results/utility.json. What each model scored is kept in FOLDER/utility/NAME.json: a run that was stopped goes on.

- base against base: scored twice, so every difference must be exactly 0.
- ours-64 against ours-64-second: two seeds of one recipe, to show what is noise.
- agreement: the largest difference of a log-probability from lm-evaluation-harness's on the same items. In float64
  with attention and norms in float64 too (transformers computes both in float32 otherwise), and in float32.
- time: 3,300 BLiMP pairs; the bar is set for two threads.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from common import Figure, at_most, base_model, command, commit, describe_run, finish, parser, start, timed
from subjects import SUBJECTS

from oml_fast import settings
from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate import harness
from oml_fast.evaluate.data import Data
from oml_fast.evaluate.tasks import Task, blimp, hellaswag, score
from oml_fast.evaluate.utility import Scores, Suite, Utility, compare, measure, suite
from oml_fast.files import write_json
from oml_fast.models import LanguageModel, load

BLIMP_SECONDS, AGREEMENT = 240.0, 1e-6
AGREED_BLIMP, AGREED_HELLASWAG = 66, 20
SECOND = ("ours-64", "ours-64-second")


def data() -> Data:
    """The folder that OML_FAST_DATA names, or the one beside the checkout."""
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    return Data(settings.data_dir() or (beside if beside.is_dir() else None))


def scored(name: str, model: LanguageModel | None, base: LanguageModel, asked: Suite, work: Path) -> Scores:
    """What a model scored, from WORK/utility/NAME.json where that is of the same suite, base and precision."""
    path = work / "utility" / f"{name}.json"
    made = work / name / "made.json"
    of = {
        "suite": asked.digest(),
        "base": base.digest,
        "model": made.read_text(encoding="utf-8") if made.is_file() else None,
        "commit": commit(),
    }
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["of"] == of:
            return Scores.from_json(asked, kept["scores"])
    print(f"measuring {name}", file=sys.stderr)
    found = measure(model or load(work / name / "model", device="cpu"), asked, base)
    write_json(path, {"of": of, "scores": found.to_json()})
    return found


def in_float64(model: LanguageModel) -> LanguageModel:
    """Changed in place: attention that keeps float64, and RMS norms that do not pass through float32."""

    def norm(self: Any, states: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (states * scale)

    model.model.set_attn_implementation("sdpa")
    for module in model.model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(norm, module)
    return model


def disagreement(model: LanguageModel, task: Task) -> float:
    """The largest difference of a choice's log-probability between lm-evaluation-harness and us."""
    peer = harness.peer(task)
    (samples,) = harness.run(model, [peer]).samples.values()
    theirs = {sample["doc_id"]: [log_prob for log_prob, _ in sample["filtered_resps"]] for sample in samples}
    ours = score(model, task).likelihoods
    return max(
        abs(mine.log_prob - other)
        for place, choices in enumerate(ours)
        for mine, other in zip(choices, theirs[place], strict=True)
    )


def agreement(public: Data) -> list[Figure]:
    """One figure for each task and precision; none where lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        print("lm_eval is not installed: no agreement is measured", file=sys.stderr)
        return []
    rows = []
    tasks = (blimp(public, AGREED_BLIMP), hellaswag(public, AGREED_HELLASWAG))
    for precision, bar in (("float64", AGREEMENT), ("float32", None)):
        model = base_model(getattr(torch, precision))
        model = in_float64(model) if precision == "float64" else model
        for task in tasks:
            most = disagreement(model, task)
            setting = f"{len(task.items)} items, {precision}"
            met = None if bar is None else most <= bar
            shown = "" if bar is None else f"<= {bar:g}"
            name = f"{task.name}: largest difference of a log-probability from lm-evaluation-harness"
            rows.append(Figure(name, setting, f"{most:.1e} nats", shown, met, command()))
    return rows


def blimp_time(base: LanguageModel, public: Data, work: Path) -> list[Figure]:
    """Seconds of one scoring of all pairs, kept in WORK/utility/blimp_time.json."""
    threads, path = torch.get_num_threads(), work / "utility" / "blimp_time.json"
    task = blimp(public)
    of = {"threads": threads, "pairs": len(task.items), "commit": commit()}
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if kept.get("of") != of:
        _, cost = timed(lambda: score(base, task))
        kept = {"of": of, "cpu": cost.cpu, "wall": cost.wall}
        write_json(path, kept)
    setting = (
        f"{len(task.items):,} pairs, bfloat16, {threads} thread{'s' if threads > 1 else ''}, {kept['cpu']:.0f} CPU s"
    )
    return [Figure("BLiMP, time", setting, *at_most(kept["wall"], BLIMP_SECONDS, 0, " s"), command())]


def figures(name: str, against: str, found: Utility) -> list[Figure]:
    """Rows of one comparison."""
    setting, rows = f"{name} against {against}", []
    for text, part in found.texts.items():
        kl = f"{part.kl:.4f} ± {part.kl_standard_error:.4f}"
        ratio = f"{part.perplexity / part.perplexity_base:.4f}x (base {part.perplexity_base:.2f})"
        rows.append(Figure(f"{text}: KL to the base", setting, kl, "", None, command()))
        rows.append(Figure(f"{text}: perplexity", setting, ratio, "", None, command()))
    return rows + [Figure(label, setting, str(paired), "", None, command()) for label, paired in found.rows()]


def nothing_differs(found: Utility) -> Figure:
    """One row for a model against itself: every difference must be 0, and nothing may flip."""
    rows = [paired for _, paired in found.rows()]
    largest = max(abs(paired.difference) for paired in rows)
    same = largest == 0 and not any(paired.lost or paired.won for paired in rows)
    setting = f"base against base, {len(rows)} comparisons"
    return Figure("utility, largest difference", setting, f"{largest:g}", "exactly 0", same, command())


def measure_all(
    names: Sequence[str], base: LanguageModel, asked: Suite, work: Path
) -> tuple[list[Figure], dict[str, Any]]:
    before = scored("base", base, base, asked, work)
    again = compare(asked, before, scored("base-again", base, base, asked, work))
    rows, details, after = [nothing_differs(again)], {"base": again.to_json() | {"base": "base", "model": "base"}}, {}
    for name in names:
        after[name] = scored(name, None, base, asked, work)
        found = compare(asked, before, after[name])
        rows += figures(name, "base", found)
        details[name] = found.to_json() | {"base": "base", "model": name}  # where their folders lie says nothing
    if after.keys() >= set(SECOND):
        first, second = SECOND
        found = compare(asked, after[first], after[second])
        rows += [Figure(n, f"{second} against {first}", str(p), "", None, command()) for n, p in found.rows()]
        details[f"{second} against {first}"] = {name: paired.to_json() for name, paired in found.rows()}
    return rows, details


def main() -> None:
    options = parser(__doc__, "utility")
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SUBJECTS)} (default: all there)")
    options.add_argument("--work", type=Path, required=True, help="folder of bench/subjects.py; keeps the scores")
    options.add_argument("--limit", type=int, help="most items a task and sequences a text (default: all)")
    options.add_argument("--tasks", help="of sampled,text,blimp,hellaswag (default: all)")
    arguments = options.parse_args()
    start(arguments.threads)
    base, public, work = base_model(), data(), arguments.work
    run = describe_run(arguments.threads, base)
    names = arguments.names or [name for name in SUBJECTS if (work / name / "model").is_dir()]
    if absent := [name for name in names if not (work / name / "model").is_dir()]:
        raise SystemExit(f"{work / absent[0]} is not there: python bench/subjects.py --work {work} {absent[0]}")
    try:
        asked = suite(base, public, arguments.tasks.split(",") if arguments.tasks else None, arguments.limit)
    except InvalidArgumentError as error:
        raise SystemExit(str(error)) from error
    rows, details = measure_all(names, base, asked, work)
    if public.has("blimp"):
        rows += blimp_time(base, public, work)
        if public.has("hellaswag"):
            rows += agreement(public)
    finish(arguments.out, run, rows, {"skipped": asked.skipped, "limit": arguments.limit, "models": details})


if __name__ == "__main__":
    main()
