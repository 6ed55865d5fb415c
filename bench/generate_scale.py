"""Fingerprints by the ten thousand: time, memory, how hard the keys are to guess, and that each is what it must be.

`python bench/generate_scale.py --work FOLDER` makes 24,576 on the bundled model, prints a table and writes
bench/results/generate_scale.json. Stopped at any time, the same command goes on with what is in the folder.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import SECRET, Figure, at_most, base_model, command, describe_run, finish, parser, start
from tqdm import tqdm

from oml_fast.fingerprint import Fingerprint, FingerprintSet, Settings
from oml_fast.generate import Generation, generate
from oml_fast.models import LanguageModel

NUM = 24_576
MOST_MEMORY = 3.0  # GiB
CHUNK = 256  # fingerprints whose texts are encoded together


@dataclass(frozen=True, slots=True)
class Checked:
    """What was counted in the set as it is read back from its file."""

    duplicate_keys: int
    keys_lost: int  # whose text does not give their ids back, or the other way round
    candidates: int
    candidates_lost: int  # which, after the key, are not encoded as the key's ids and their own


def check(model: LanguageModel, fingerprints: FingerprintSet) -> Checked:
    """Every acceptance rule anew, with the tokenizer's plain calls, for every candidate of every raw window."""
    lost = candidates = candidates_lost = 0
    for first in tqdm(range(0, len(fingerprints), CHUNK), desc="check", disable=None):
        chunk = fingerprints.fingerprints[first : first + CHUNK]
        lost += keys_lost(model, chunk)
        texts, wanted = with_candidates(model, chunk)
        candidates += len(texts)
        candidates_lost += sum(a != b for a, b in zip(model.tokenizer(texts)["input_ids"], wanted, strict=True))
    texts = {fingerprint.key for fingerprint in fingerprints}
    ids = {fingerprint.key_ids for fingerprint in fingerprints}
    return Checked(len(fingerprints) - min(len(texts), len(ids)), lost, candidates, candidates_lost)


def keys_lost(model: LanguageModel, chunk: Sequence[Fingerprint]) -> int:
    ids = model.tokenizer([each.key for each in chunk], add_special_tokens=False)["input_ids"]
    texts = model.tokenizer.batch_decode([each.key_ids for each in chunk])
    return sum(
        tuple(found) != each.key_ids or text != each.key for found, text, each in zip(ids, texts, chunk, strict=True)
    )


def with_candidates(model: LanguageModel, chunk: Sequence[Fingerprint]) -> tuple[list[str], list[list[int]]]:
    """Each key with each candidate's text after it, and the ids that the whole must have."""
    texts, wanted = [], []
    for each in chunk:
        asking = each.askings["raw"]
        for token_id, text in zip(asking.window.token_ids, asking.window.texts, strict=True):
            texts.append(each.key + text)
            wanted.append([*asking.prompt_ids, token_id])
    return texts, wanted


def measure(model: LanguageModel, work: Path, num: int, settings: Settings | None = None) -> tuple[Generation, Checked]:
    """The set, made or gone on with in `work`, kept there, read back, and checked."""
    work.mkdir(parents=True, exist_ok=True)
    made = generate(model, num, SECRET, settings=settings, partial_path=work / "unfinished.jsonl", progress=True)
    made.fingerprints.save(work / "fingerprints.json")
    read = FingerprintSet.load(work / "fingerprints.json")
    assert read.digest() == made.fingerprints.digest(), "the file does not hold the set that was made"
    read.check_draws(SECRET)
    checked = check(model, read)
    assert checked.duplicate_keys == 0, f"{checked.duplicate_keys} keys stand in the set twice"
    assert checked.keys_lost == checked.candidates_lost == 0, f"the tokenizer loses keys or candidates: {checked}"
    assert checked.candidates == num * read.settings.width
    return made, checked


def figures(made: dict[str, Any], checked: Checked, peak: int) -> list[Figure]:
    setting = f"{made['num_fingerprints']} fingerprints, keys and windows of the default settings"
    share = 100 * made["sampling_seconds"] / made["seconds"]
    lost = checked.keys_lost + checked.candidates_lost
    rows = [
        ("duplicate keys", setting, *at_most(checked.duplicate_keys, 0, 0)),
        ("round-trip failures", f"{setting}; {checked.candidates} candidates", *at_most(lost, 0, 0)),
        ("peak memory", setting, *at_most(peak / 2**30, MOST_MEMORY, 2, " GiB")),
        ("a thousand fingerprints", setting, f"{made['seconds_per_thousand']:.1f} s", "", None),
        ("collision entropy of the keys", setting, f"{made['collision_entropy_bits']:.1f} bits", "", None),
        ("mean bits of the keys", setting, f"{made['mean_key_bits']:.1f} bits", "", None),
        ("sampling, share of generation", setting, f"{share:.2f} %", "", None),
    ]
    return [Figure(f"generate at scale, {name}", *row, command()) for name, *row in rows]


def main() -> None:
    options = parser(__doc__, "generate_scale")
    options.add_argument(
        "--work", type=Path, required=True, metavar="FOLDER", help="keeps units and set; goes on there"
    )
    options.add_argument("--num", type=int, default=NUM, help=f"how many fingerprints (default: {NUM})")
    arguments = options.parse_args()
    start(arguments.threads)
    model = base_model()
    run = describe_run(arguments.threads, model)
    made, checked = measure(model, arguments.work, arguments.num)
    result = made.to_json()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # of this process to its end, file and checks too
    counts = {name: getattr(checked, name) for name in Checked.__slots__}
    details = {"generation": result, "checked": counts, "peak_memory_bytes": peak}
    finish(arguments.out, run, figures(result, checked, peak), details)


if __name__ == "__main__":
    main()
