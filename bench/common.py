"""What the measurements on a whole model share: this process, the model and keys, measuring in turn, the result file.

A result file is {"run": where and on what, "figures": one row per figure, ...details}. `figures.py` reads the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from oml_fast import backends, settings
from oml_fast.cli.common import prepare
from oml_fast.fingerprint import Settings
from oml_fast.generate.keys import KeyCandidate, ModelKeys, cut
from oml_fast.generate.vocabulary import Vocabulary
from oml_fast.models import LanguageModel, bundled_model, load

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))  # for `tiny`, the random model on which plain pytest runs every benchmark once
RESULTS = ROOT / "bench" / "results"
KEY_LENGTH = Settings().key_length
SECRET = bytes(range(32))  # published here, so good for nothing but measuring
_KEYS_A_BATCH = 64
_NO_SOURCES = (":!bench/results", ":!*.md")  # files that measuring itself changes: they do not make a commit dirty


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the tables: what was measured, how, what came out, and what it must be (""  where nothing must)."""

    figure: str
    setting: str
    value: str
    bar: str
    met: bool | None
    command: str


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one call: of this process's CPU, all threads, and of the clock on the wall."""

    cpu: float
    wall: float


def parser(doc: str | None, result: str) -> argparse.ArgumentParser:
    """A parser with the options that every measurement has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    made.add_argument("--out", type=Path, default=RESULTS / f"{result}.json", help="where the JSON goes")
    return made


def start(threads: int) -> None:
    """Set this process up as the commands do, for both sides of a comparison alike."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    prepare()
    torch.set_num_threads(threads)


def base_model(dtype: torch.dtype | None = None) -> LanguageModel:
    """The bundled model on the CPU, freshly loaded; in its own precision (bfloat16) unless told."""
    return load(bundled_model(settings.cache_dir()), device="cpu", dtype=dtype)


def as_transformers_loads(model: LanguageModel) -> LanguageModel:
    """The same weights in the same precision, as the published code gets them: with every default of transformers."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(model.name, dtype=model.dtype, local_files_only=True)
    return LanguageModel(plain, model.tokenizer, model.name, model.digest, model.tokenizer_digest)


def attention(**models: LanguageModel) -> dict[str, str]:
    """Which attention of transformers each side runs."""
    return {name: model.model.config._attn_implementation for name, model in models.items()}


def data_file(name: str) -> Path | None:
    """A file of the public data, from OML_FAST_DATA or beside the checkout; None where it is absent."""
    folder = Path(os.environ.get("OML_FAST_DATA") or ROOT.parent / "shared" / "data")
    return folder / name if (folder / name).is_file() else None


def key_texts(model: LanguageModel, count: int) -> tuple[list[str], str]:
    """`count` distinct key texts of at most 16 token ids that survive encoding, and where they come from."""
    path = data_file("reference_keys.json")
    if path is None:
        return own_key_texts(model, count), "made by oml_fast"
    texts = [cut(model.tokenizer, text, KEY_LENGTH) for text in json.loads(path.read_text())]
    kept = list(dict.fromkeys(text for text in texts if _survives(model, text)))
    if len(kept) < count:
        raise SystemExit(f"{path} holds {len(kept)} usable keys, not {count}: ask for fewer.")
    return kept[:count], path.name


def own_key_texts(model: LanguageModel, count: int) -> list[str]:
    """`count` distinct key texts made by oml_fast's default key maker."""
    vocabulary = Vocabulary(model.tokenizer, model.vocabulary, model.device)
    maker = ModelKeys(model, vocabulary, Settings(), SECRET, _KEYS_A_BATCH)
    kept: dict[str, KeyCandidate] = {}
    for first in range(0, 100 * count, _KEYS_A_BATCH):
        made = maker.make(range(first, first + _KEYS_A_BATCH))
        kept.update({key.text: key for key in made if _survives(model, key.text)})
        if len(kept) >= count:
            return list(kept)[:count]
    raise SystemExit(f"{model.name} makes too few keys that survive encoding: {len(kept)} of {count}.")


def _survives(model: LanguageModel, text: str) -> bool:
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return 2 <= len(ids) <= KEY_LENGTH and model.tokenizer.decode(ids) == text


@contextmanager
def one_thread() -> Iterator[None]:
    """For a block: torch's threads wait for each other, which on busy cores takes longer than a tiny model does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def timed(call: Callable[[], Any]) -> tuple[Any, Cost]:
    """What `call` returns, and what it cost."""
    cpu, wall = time.process_time(), time.perf_counter()
    value = call()
    return value, Cost(time.process_time() - cpu, time.perf_counter() - wall)


def in_turn(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Cost]]:
    """Costs of each side, measured in turn so that a busy machine is busy for all of them."""
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            costs[name].append(timed(call)[1])
    return costs


def least(costs: Sequence[Cost]) -> Cost:
    """The smallest of each: what the work takes where nothing else disturbs it."""
    return Cost(min(cost.cpu for cost in costs), min(cost.wall for cost in costs))


def describe_run(threads: int, model: LanguageModel | None = None) -> dict[str, Any]:
    """Where, on what and at which commit the figures were measured. Call it before measuring: it reads the load."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    return {
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "device": "cpu",
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "isa": backends.cpu_isa() if backends.availability("native").available else None,
        "threads": threads,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "model": None if model is None else Path(model.name).name,
        "dtype": None if model is None else str(model.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def commit() -> str:
    """The checkout's commit, "-dirty" where a source file differs from it; "none" outside a git checkout."""
    found = _git("rev-parse", "--short", "HEAD").strip()
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *_NO_SOURCES)
    return (found or "none") + ("-dirty" if changed.strip() else "")


def _git(*arguments: str) -> str:
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout


def command() -> str:
    """The command line that is running, as one would type it in the checkout, without where its output goes.

    A working folder is called FOLDER.
    """
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    if "--work" in words:
        words[words.index("--work") + 1] = "FOLDER"
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    return f"python bench/{' '.join(words)}"


def finish(out: Path, run: dict[str, Any], figures: Sequence[Figure], details: dict[str, Any]) -> None:
    """Print the figures and write the result file."""
    run["load_average_after"] = [round(load, 2) for load in os.getloadavg()]
    print_figures(figures)
    out.parent.mkdir(parents=True, exist_ok=True)
    result = {"run": run, "figures": [asdict(figure) for figure in figures], **details}
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {out}", file=sys.stderr)


def print_figures(figures: Sequence[Figure]) -> None:
    marks = {True: "met", False: "NOT MET", None: ""}
    rows = [(f.figure, f.setting, f.value, f.bar, marks[f.met]) for f in figures]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(5)]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def at_least(ratio: float, bar: float | None) -> tuple[str, str, bool | None]:
    """Value, bar and whether it is met, for a ratio; without a bar, no more than the value."""
    return f"{ratio:.2f}x", "" if bar is None else f">= {bar:g}x", None if bar is None else ratio >= bar


def at_most(value: float, bar: float | None, digits: int = 3, unit: str = "") -> tuple[str, str, bool | None]:
    """The same for what must stay small."""
    shown = f"{value:.{digits}f}{unit}"
    return shown, "" if bar is None else f"<= {bar:g}{unit}", None if bar is None else value <= bar
