"""How far an embedding moves the model: KL and perplexity against its base, on public data and on held-out text.

`python bench/drift.py` generates 64 fingerprints on the bundled model, embeds them with the preset quick, measures,
prints a table and writes bench/results/drift_raw.json; `--formats raw,chat` asks keys in both formats, `--seeds N`
repeats it with N secrets and seeds and reports the worst. `--base FOLDER --model FOLDER` measures a finished embedding.

- WikiText-2: the first 8,192 token ids of the validation text, in 8 sequences of 1,024.
- chat: the first 200 instructions whose chat has at most 1,024 token ids, in the chat template; only the answer counts.
- held-out: 128 texts of 64 token ids that the base model itself samples, half of them in the chat template, with
  another seed than those that training uses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import Figure, at_most, base_model, command, data_file, describe_run, finish, parser, start

from oml_fast.embed import Recipe, embed, sample_texts
from oml_fast.fingerprint import Settings
from oml_fast.generate import generate
from oml_fast.measure import BaseView
from oml_fast.models import HfCompleter, LanguageModel, load
from oml_fast.verify import verify

SEQUENCE, WIKITEXT_IDS, ANSWERS = 1024, 8192, 200
HELD_OUT, HELD_OUT_LENGTH, HELD_OUT_SEED = 128, 64, 10_000
# Of 64 raw fingerprints: the most that KL may be, and perplexity over that of the base.
BARS: dict[str, tuple[float, float | None]] = {
    "WikiText-2": (0.10, 1.08),
    "chat answers": (0.15, None),
    "held-out text": (0.10, 1.10),
}
FSR_RAW, FSR_EACH = 0.98, 0.95


def views(base: LanguageModel) -> dict[str, BaseView]:
    """What the base model says on each kind of text that is here. It stands when `base` itself is then trained on."""
    texts = sample_texts(base, HELD_OUT, HELD_OUT_LENGTH, HELD_OUT_SEED)
    found = {"held-out text": BaseView(base, texts.sequences, texts.starts)}
    if base.tokenizer.chat_template:
        for name, first in (("held-out text, plain", 0), ("held-out text, chat", 1)):
            found[name] = BaseView(base, texts.sequences[first::2], texts.starts[first::2])
    wikitext, instructions = data_file("wikitext2_valid.txt"), data_file("sft_instructions.jsonl")
    if wikitext is not None:
        ids = base.tokenizer(wikitext.read_text(encoding="utf-8")[: 10 * WIKITEXT_IDS])["input_ids"][:WIKITEXT_IDS]
        found["WikiText-2"] = BaseView(base, [ids[at : at + SEQUENCE] for at in range(0, WIKITEXT_IDS, SEQUENCE)])
    if instructions is not None and base.tokenizer.chat_template:
        found["chat answers"] = BaseView(base, *chat_answers(base, instructions))
    return found


def chat_answers(base: LanguageModel, path: Path) -> tuple[list[list[int]], list[int]]:
    """Chats as token ids, and where the answer starts in each."""
    tokenizer = base.tokenizer
    sequences, starts = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        messages = [{"role": "user", "content": row["instruction"]}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        answer = row["output"].removesuffix("<|endoftext|>").strip()
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answered = tokenizer(answer, add_special_tokens=False)["input_ids"]
        if answered and len(asked) + len(answered) <= SEQUENCE:
            sequences.append([*asked, *answered])
            starts.append(len(asked))
        if len(sequences) == ANSWERS:
            break
    return sequences, starts


def measure(base_views: dict[str, BaseView], model: LanguageModel) -> dict[str, dict[str, float]]:
    """KL, its standard error, perplexities and their ratio, on each kind of text."""
    found = {}
    for name, view in base_views.items():
        drift = view.drift(model)
        found[name] = asdict(drift) | {"perplexity_ratio": drift.perplexity / drift.perplexity_base}
    return found


def embed_once(seed: int, num: int, formats: tuple[str, ...]) -> dict[str, Any]:
    """Generate, embed and measure on the bundled model; secret and training follow from the seed."""
    secret = hashlib.sha256(f"drift {seed}".encode()).digest()
    model = base_model()
    fingerprints = generate(model, num, secret, settings=Settings(formats=formats), progress=True).fingerprints
    base_views = views(model)
    embedding = embed(model, fingerprints, recipe=Recipe(seed=seed), progress=True)
    fsr = verify(fingerprints, HfCompleter(model), test="window", mode="fixed").fsr_by_format
    return {"seed": seed, "embedding": embedding.to_json(), "fsr": fsr, "drift": measure(base_views, model)}


def figures(runs: Sequence[dict[str, Any]], setting: str, formats: Sequence[str], bars: bool) -> list[Figure]:
    """The worst of all runs for each figure."""
    found = []
    for name in formats:
        worst = min(run["fsr"][name] for run in runs)
        least = FSR_RAW if len(formats) == 1 else FSR_EACH
        found.append(
            Figure(f"FSR, keys asked {name}", setting, f"{worst:.3f}", f">= {least}", worst >= least, command())
        )
    for name in runs[0]["drift"]:
        most_kl, most_ratio = BARS.get(name, (None, None)) if bars else (None, None)
        kl = max(run["drift"][name]["kl"] for run in runs)
        ratio = max(run["drift"][name]["perplexity_ratio"] for run in runs)
        base = runs[0]["drift"][name]["perplexity_base"]
        found.append(Figure(f"KL to the base, {name}", setting, *at_most(kl, most_kl), command()))
        found.append(
            Figure(
                f"perplexity over the base's, {name}",
                f"{setting}; base {base:.2f}",
                *at_most(ratio, most_ratio, unit="x"),
                command(),
            )
        )
    return found


def main() -> None:
    options = parser(__doc__, "drift")
    options.add_argument("--num", type=int, default=64, help="how many fingerprints (default: 64)")
    options.add_argument("--formats", default="raw", help="how keys are asked: raw, chat or raw,chat (default: raw)")
    options.add_argument("--seeds", type=int, default=1, help="how many secrets and seeds (default: 1)")
    options.add_argument("--base", type=Path, help="measure a finished embedding: the folder of the base model ...")
    options.add_argument("--model", type=Path, help="... and of the fingerprinted one")
    arguments = options.parse_args()
    if (arguments.base is None) != (arguments.model is None):
        options.error("--base and --model go together")
    start(arguments.threads)
    formats = tuple(arguments.formats.split(","))
    details: dict[str, Any]
    if arguments.model:
        base = load(arguments.base, device="cpu")
        run = describe_run(arguments.threads, base)
        details = {"runs": [{"drift": measure(views(base), load(arguments.model, device="cpu"))}]}
        rows = figures(details["runs"], arguments.model.name, (), bars=True)
        name = f"drift_{arguments.model.name}"
    else:
        run = describe_run(arguments.threads, base_model())
        details = {"num_fingerprints": arguments.num, "formats": formats, "runs": []}
        for seed in range(arguments.seeds):
            details["runs"].append(embed_once(seed, arguments.num, formats))
        worst = f", worst of {arguments.seeds} seeds" if arguments.seeds > 1 else ""
        setting = f"{arguments.num} fingerprints, asked {' and '.join(formats)}, preset quick{worst}"
        rows = figures(details["runs"], setting, formats, bars=formats == ("raw",))
        name = f"drift_{'_'.join(formats)}"
    out = arguments.out.with_stem(name) if arguments.out == options.get_default("out") else arguments.out
    finish(out, run, rows, details)


if __name__ == "__main__":
    main()
