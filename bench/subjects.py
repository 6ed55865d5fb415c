"""The fingerprinted models that robustness and utility are measured on, made once and kept.

`python bench/subjects.py --work FOLDER [NAME ...]` makes those that are not there yet: the set, the secret, the model
and `made.json` with the commit and how the embedding went. All keys are asked raw.

- ours-N: the default settings and recipe; "second" has another secret and seed, to show what is noise.
- published-N: nucleus threshold 0.8, width 3 and the training of the published code: lr 5e-5, at most 40 epochs (the
  paper's number), stop at a loss of 0.005, no averaging (its README's choice; with its argparse default of 0.75 most
  fingerprints are never learned).
- english-random-64, random-word-64: the keys of ours-64 and our recipe with other responses.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines import published_embed
from common import as_transformers_loads, base_model, commit, describe_run, parser, start

from oml_fast.embed import Recipe, embed
from oml_fast.evaluate.baselines import with_responses
from oml_fast.files import new_folder, write_json
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.models import HfCompleter, LanguageModel, save
from oml_fast.secret import write_secret
from oml_fast.verify import verify

PUBLISHED_EPOCHS = 40
PUBLISHED_WIDTH = 3


@dataclass(frozen=True, slots=True)
class Subject:
    num: int
    seed: int = 0
    published: bool = False
    responses: str = "perinucleus"


SUBJECTS = {
    "ours-64": Subject(64),
    "ours-64-second": Subject(64, seed=1),
    "published-64": Subject(64, published=True),
    "english-random-64": Subject(64, responses="english-random"),
    "random-word-64": Subject(64, responses="random-word"),
    "ours-256": Subject(256),
    "published-256": Subject(256, published=True),
}


def make(name: str, folder: Path) -> None:
    """Generate, embed and save one of them; nothing where it is there already."""
    if folder.is_dir():
        return
    subject, made = SUBJECTS[name], commit()
    secret = hashlib.sha256(f"victim {subject.seed}".encode()).digest()
    model = base_model()
    settings = Settings(width=PUBLISHED_WIDTH) if subject.published else Settings()
    fingerprints = generate(model, subject.num, secret, settings=settings, progress=True).fingerprints
    if subject.responses != "perinucleus":
        fingerprints = with_responses(model, fingerprints, secret, subject.responses)
    result = _train(model, fingerprints, subject)
    fsr = verify(fingerprints, HfCompleter(model), test="window", mode="fixed").fsr
    print(f"{name}: FSR {fsr:.3f}", file=sys.stderr)
    with new_folder(folder) as temporary:
        save(model, temporary / "model")
        fingerprints.save(temporary / "fingerprints.json")
        write_secret(temporary / "secret", secret)
        write_json(temporary / "made.json", {"commit": made, "fsr": fsr, **result})


def _train(model: LanguageModel, fingerprints: FingerprintSet, subject: Subject) -> dict[str, Any]:
    """Train in place, our way or the published one."""
    if not subject.published:
        return embed(model, fingerprints, recipe=Recipe(seed=subject.seed), progress=True).to_json()
    pairs = [(f.key, f.askings["raw"].responses[0].text) for f in fingerprints]
    trained = as_transformers_loads(model)
    result = published_embed(trained.model, trained.tokenizer, pairs, max_epochs=PUBLISHED_EPOCHS, averaging=0.0)
    model.model.load_state_dict(trained.model.state_dict())
    return {name: value for name, value in result.items() if name != "train_losses"}


def main() -> None:
    options = parser(__doc__, "subjects")
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SUBJECTS)} (default: all)")
    options.add_argument("--work", type=Path, required=True, help="folder that keeps them")
    arguments = options.parse_args()
    start(arguments.threads)
    print(describe_run(arguments.threads), file=sys.stderr)
    for name in arguments.names or SUBJECTS:
        make(name, arguments.work / name)


if __name__ == "__main__":
    main()
