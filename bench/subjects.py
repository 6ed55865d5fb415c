"""The fingerprinted models that robustness and utility are measured on, made once and kept.

`python bench/subjects.py --work FOLDER [NAME ...]` makes those that are not there yet: the set, the secret, the model
and `made.json` with the commit and how the embedding went. All keys are asked raw.

- harmless-N, robust-N: the presets; 4,096 in 8 epochs. "second" has another secret and seed, to show what is noise, and
  is another owner.
- ours-N: one response, and the recipe that was the default before there were presets.
- published-N: nucleus threshold 0.8, width 3 and the training of the published code: lr 5e-5, at most 40 epochs (the
  paper's number), stop at a loss of 0.005, no averaging (its README's choice; with its argparse default of 0.75 most
  fingerprints are never learned).
- english-random-64, random-word-64: the keys of ours-64 and our recipe with other responses.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from baselines import published_embed
from common import as_transformers_loads, base_model, commit, describe_run, parser, start, timed

from oml_fast.embed import PRESETS, Recipe, embed
from oml_fast.evaluate.baselines import with_responses
from oml_fast.files import new_folder, write_json
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import PRESETS as SETTINGS
from oml_fast.generate import generate
from oml_fast.models import HfCompleter, LanguageModel, save
from oml_fast.secret import write_secret
from oml_fast.verify import verify

PUBLISHED_EPOCHS = 40
PUBLISHED_WIDTH = 3
EARLIER = Recipe()


@dataclass(frozen=True, slots=True)
class Subject:
    """`published`: its training, not `recipe`. `responses`: where they come from."""

    num: int
    seed: int = 0
    recipe: Recipe = EARLIER
    published: bool = False
    responses: str = "perinucleus"
    settings: Settings = field(default_factory=Settings)

    @property
    def secret(self) -> bytes:
        """Anybody can make it again: good for nothing but measuring."""
        return hashlib.sha256(f"victim {self.seed}".encode()).digest()


def _of_preset(preset: str, num: int, seed: int = 0, **changes: Any) -> Subject:
    return Subject(num, seed, replace(PRESETS[preset], **changes), settings=SETTINGS[preset])


def _published(num: int) -> Subject:
    return Subject(num, published=True, settings=Settings(width=PUBLISHED_WIDTH))


SUBJECTS = {
    "ours-64": Subject(64),
    "ours-64-second": Subject(64, seed=1),
    "published-64": _published(64),
    "english-random-64": Subject(64, responses="english-random"),
    "random-word-64": Subject(64, responses="random-word"),
    "harmless-64": _of_preset("harmless", 64),
    "harmless-64-second": _of_preset("harmless", 64, seed=1),
    "robust-64": _of_preset("robust", 64),
    "robust-64-second": _of_preset("robust", 64, seed=1),
    "ours-256": Subject(256),
    "published-256": _published(256),
    "harmless-256": _of_preset("harmless", 256),
    "robust-256": _of_preset("robust", 256),
    "harmless-1024": _of_preset("harmless", 1024),
    "robust-1024": _of_preset("robust", 1024),
    "harmless-1345": _of_preset("harmless", 1345),  # ten for each million parameters of the bundled model
    # 8 epochs are 256 steps, more than the 220 that 1,345 get in their 20; 20 would take more than three hours.
    "harmless-4096": _of_preset("harmless", 4096, max_epochs=8),
}


def make(name: str, folder: Path) -> None:
    """Generate, embed and save one of them; nothing where it is there already."""
    if folder.is_dir():
        return
    subject, made = SUBJECTS[name], commit()
    model = base_model()
    fingerprints = generate(model, subject.num, subject.secret, settings=subject.settings, progress=True).fingerprints
    if subject.responses != "perinucleus":
        fingerprints = with_responses(model, fingerprints, subject.secret, subject.responses)
    kept = folder.with_name(f".{folder.name}.checkpoint")
    result, cost = timed(lambda: _train(model, fingerprints, subject, kept))
    fsr = verify(fingerprints, HfCompleter(model), test="window", mode="fixed").fsr
    print(f"{name}: FSR {fsr:.3f}", file=sys.stderr)
    with new_folder(folder) as temporary:
        save(model, temporary / "model")
        fingerprints.save(temporary / "fingerprints.json")
        write_secret(temporary / "secret", subject.secret)
        write_json(temporary / "made.json", {"commit": made, "fsr": fsr, "seconds": cost.wall, **result})
    shutil.rmtree(kept, ignore_errors=True)


def _train(model: LanguageModel, fingerprints: FingerprintSet, subject: Subject, kept: Path) -> dict[str, Any]:
    """Train in place, our way, which goes on from `kept` where it was killed, or the published one."""
    if not subject.published:
        recipe = replace(subject.recipe, seed=subject.seed)
        return embed(model, fingerprints, recipe=recipe, progress=True, checkpoints=kept, checkpoint_every=10).to_json()
    pairs = [(f.key, f.askings["raw"].responses[0].text) for f in fingerprints]
    trained = as_transformers_loads(model)
    recipe: dict[str, Any] = {"lr": 5e-5, "max_epochs": PUBLISHED_EPOCHS, "averaging": 0.0}
    result = published_embed(trained.model, trained.tokenizer, pairs, **recipe)
    model.model.load_state_dict(trained.model.state_dict())
    return {name: value for name, value in result.items() if name != "train_losses"} | {"recipe": recipe}


def kept(path: Path, of: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, with the commit: from `path` where it was made of the same `of`, otherwise written there."""
    wanted = json.loads(json.dumps(of))
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["of"] == wanted:
            return dict(found["result"])
    result = {"commit": commit(), **make()}
    write_json(path, {"of": wanted, "result": result})
    return result


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
