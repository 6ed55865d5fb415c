"""The battery: every attack on one fingerprinted model, each measured in the same way, each result kept as it comes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from .. import __version__
from ..completer import SCORE, Completer, capabilities
from ..embed.text import sample_texts
from ..errors import BackendUnavailableError, FingerprintFormatError, InvalidArgumentError
from ..files import read_text, write_json
from ..fingerprint import FingerprintSet
from ..measure import BaseView
from ..models import HfCompleter
from ..verify import Verification, verify
from ..verify.statistics import TESTS, convicts
from .answers import Questions, questions_source
from .attack import Attack, Attacked, Scene
from .specificity import specificity
from .tasks import blimp, score

_TEXTS, _TEXT_IDS, _TEXT_SEED = 32, 64, 10_000  # held-out text, sampled from the base model
_PAIRS = 330  # of BLiMP, ten of each paradigm
_WAYS_OUT = {
    "sibling": "another fingerprinted copy of the base model: name one with --sibling",
    "peft": "peft: pip install 'oml_fast[eval]'",
    "gguf": "gguf: pip install 'oml_fast[demo]'",
}


@dataclass(frozen=True, slots=True)
class Robustness:
    """What is left after each attack. `before` is the model as it was released; rows are plain JSON values."""

    model: str
    base_model: str
    set_digest: str
    num_fingerprints: int
    width: int
    questions: str
    before: dict[str, Any]
    specificity: dict[str, Any]
    rows: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        return dict(json.loads(json.dumps(asdict(self))))


class Gauge:
    """Measures hosts and models before and after an attack. Everything that stays the same is computed once."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.questions = Questions(scene.base, scene.data)
        self._text = BaseView(scene.base, *sample_texts(scene.base, _TEXTS, _TEXT_IDS, _TEXT_SEED))
        self._pairs = blimp(scene.data, _PAIRS) if scene.data.has("blimp") else None
        self.questions.score(HfCompleter(scene.model))  # what `changed` compares with

    def measure(self, attacked: Attacked) -> dict[str, Any]:
        """FSR and evidence; ordinary answers; where the weights are known, drift from the base and BLiMP.

        Of several hosts the ordinary answers are those of the one whose evidence is reported.
        """
        completer, model = attacked.completer, attacked.model
        if attacked.hosts:
            asked = {name: evidence(ask(self._scene.fingerprints, host)) for name, host in attacked.hosts.items()}
            worst, found = of_several(asked)
            completer = attacked.hosts[worst]
        else:
            found = evidence(ask(self._scene.fingerprints, completer))
        found["answers"] = asdict(self.questions.score(completer, attacked.said))
        if model is not None:
            drift = self._text.drift(model)
            found["text"] = {"kl": drift.kl, "perplexity": drift.perplexity, "perplexity_base": drift.perplexity_base}
            found["blimp"] = None if self._pairs is None else score(model, self._pairs).accuracy()
        return found


def ask(fingerprints: FingerprintSet, completer: Completer) -> Verification:
    """All keys. Where log-probabilities can be seen, the answers allow every test; of a host, those of its answers."""
    test = "rank" if SCORE in capabilities(completer) else "window"
    return verify(fingerprints, completer, test=test, mode="fixed")


def evidence(verification: Verification) -> dict[str, Any]:
    """FSR, and what each test makes of the answers, in bits a key; None where the host shows too little for the test.

    `verdict` is the window test's, on every row: what anybody can reach who sees no more than answers. `strongest` is
    the test that sees most of what this host shows, with its verdict.
    """
    v = verification
    log10_p = v.fixed_log10_p
    fired = convicts(log10_p["window"], v.false_positive_rate)
    gone = "no_match" if convicts(v.log10_miss, v.miss_rate) else "inconclusive"
    return {
        "queried": v.queried,
        "matches": v.matches,
        "informative": v.informative,
        "fsr": v.fsr,
        "fsr_interval": list(v.fsr_interval),
        "fsr_by_format": v.fsr_by_format,
        "log10_p": log10_p,
        "bits_per_key": dict.fromkeys(TESTS) | v.bits_by_test(),
        "verdict": "match" if fired else gone,
        "strongest": {"test": v.test, "verdict": v.verdict},
    }


def of_several(asked: Mapping[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """One row for hosts that were each asked every key: the worst one's name, and its evidence beside the mean FSR.

    Ten askings of a key are one draw, not ten keys: p-values, bits, verdicts, counts and interval are those of the
    host that gives least evidence, then the lowest FSR. Only `fsr` and `fsr_by_format` are means over the hosts.
    """

    def worth(name: str) -> tuple[float, float]:
        found = asked[name]
        return -found["log10_p"][found["strongest"]["test"]], found["fsr"]

    worst = min(asked, key=worth)
    own = asked[worst]
    by_host = {name: found["fsr"] for name, found in asked.items()}
    by_format = {name: fmean(found["fsr_by_format"][name] for found in asked.values()) for name in own["fsr_by_format"]}
    details = {"fsr_by_host": by_host, "worst": worst, "fsr_worst": own["fsr"]}
    return worst, own | {"fsr": fmean(by_host.values()), "fsr_by_format": by_format, "details": details}


def robustness(
    scene: Scene,
    attacks: Sequence[Attack],
    *,
    others: Sequence[FingerprintSet] = (),
    folder: Path | None = None,
    made_by: str = f"oml_fast {__version__}",
    progress: bool = False,
) -> Robustness:
    """Run `attacks` on the scene's fingerprinted model, and say what is left after each.

    With `folder`, each finished part is kept there as JSON, with `made_by`, and the same call goes on after a kill.
    `others` are sets of other owners, on which the model must not fire. An attack that cannot work on this model (no
    chat template) is a row with the reason. Raises InvalidArgumentError and BackendUnavailableError, before anything
    long, for a model and a set that do not belong together, and for attacks whose data or packages are not here.
    """
    _check(scene, attacks, others)
    kept = _Kept(folder, _identity(scene, others), made_by)
    gauge = cache(lambda: Gauge(scene))  # made when something is to be measured
    before = kept.get("before", lambda: _before(scene, gauge()))

    def measured(attack: Attack) -> dict[str, Any]:
        return _row(attack, scene, gauge(), before)

    specific = kept.get("specificity", lambda: _specificity(scene, others, gauge()))
    rows = []
    with tqdm(attacks, desc="attacks", unit="attack", disable=None if progress else True) as bar:
        for attack in bar:
            bar.set_postfix_str(attack.name)
            rows.append(kept.get(attack.name, partial(measured, attack)))
    return Robustness(
        model=scene.model.name,
        base_model=scene.base.name,
        set_digest=scene.fingerprints.digest(),
        num_fingerprints=len(scene.fingerprints),
        width=scene.fingerprints.settings.width,
        questions=questions_source(scene.data),
        before=before,
        specificity=specific,
        rows=tuple(rows),
    )


def _before(scene: Scene, gauge: Gauge) -> dict[str, Any]:
    """The model as it was released. Raises InvalidArgumentError where it does not carry the set."""
    fsr_base = ask(scene.fingerprints, HfCompleter(scene.base)).fsr
    found = gauge.measure(Attacked(HfCompleter(scene.model), scene.model))
    if found["verdict"] == "no_match" or found["fsr"] <= fsr_base:
        raise InvalidArgumentError(
            f"{scene.model.name} answers {found['matches']} of {found['queried']} keys, its base {fsr_base:.0%}: it "
            "is not the model that this set was embedded in. Name the model that oml-fast embed wrote for it."
        )
    return found | {"fsr_base": fsr_base}


def _specificity(scene: Scene, others: Sequence[FingerprintSet], gauge: Gauge) -> dict[str, Any]:
    questions = gauge.questions.prompts
    return specificity(scene.model, scene.base, scene.fingerprints, others, questions, scene.seed).to_json()


def _row(attack: Attack, scene: Scene, gauge: Gauge, before: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    row: dict[str, Any] = {"attack": attack.name, "cost": attack.cost, "strength": attack.strength, "skipped": None}
    try:
        attacked: Attacked = attack.run(scene)
    except InvalidArgumentError as error:
        return row | {"skipped": str(error)}
    after = gauge.measure(attacked)
    seconds = time.perf_counter() - started
    details = {**attacked.details, **after.get("details", {})}
    return row | after | {"persistence": after["fsr"] / before["fsr"], "details": details, "seconds": seconds}


class _Kept:
    """Finished parts, one JSON file each, of one scene: those of another are refused, not mixed in."""

    def __init__(self, folder: Path | None, identity: str, made_by: str) -> None:
        self._folder, self._identity, self._made_by = folder, identity, made_by

    def get(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The part, read where it is finished, otherwise made and kept. What was skipped is tried again."""
        if self._folder is None:
            return make() | {"made_by": self._made_by}
        path = self._folder / f"{name.replace('/', '_')}.json"
        if path.is_file():
            return self._read(path)
        result = make() | {"made_by": self._made_by}
        if not result.get("skipped"):
            write_json(path, {"identity": self._identity, "result": result})
        return result

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            part = json.loads(read_text(path, "the finished part"))
            identity, result = part["identity"], dict(part["result"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgumentError(f"{path} is damaged: delete it, and it is measured again.") from error
        if identity != self._identity:
            raise InvalidArgumentError(
                f"{path} is about another model, base, set, sibling, data or seed: choose another --out, or remove it."
            )
        return result


def _identity(scene: Scene, others: Sequence[FingerprintSet]) -> str:
    """A digest over all that a result depends on, but the code."""
    siblings = [sibling.digest for sibling in scene.siblings]
    sets = [scene.fingerprints.digest(), *(other.digest() for other in others)]
    files = [scene.data.require(name) for name in ("instructions", "blimp") if scene.data.has(name)]
    data = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    values = [scene.model.digest, scene.base.digest, siblings, sets, data, scene.seed]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _check(scene: Scene, attacks: Sequence[Attack], others: Sequence[FingerprintSet]) -> None:
    """Refuse what cannot end well before hours are spent on it."""
    fingerprints = scene.fingerprints
    if scene.base.digest != fingerprints.base_model_digest:
        raise FingerprintFormatError(
            f"these fingerprints were made with another base model ({fingerprints.base_model}, digest "
            f"{fingerprints.base_model_digest[:12]}) than {scene.base.name} (digest {scene.base.digest[:12]}): name "
            "that one with --base."
        )
    for model in (scene.model, *scene.siblings):
        if model.tokenizer_digest != fingerprints.tokenizer_digest or model.vocabulary != scene.base.vocabulary:
            raise InvalidArgumentError(
                f"{model.name} has another tokenizer than {scene.base.name}: it is no copy of that base model."
            )
    for sibling in scene.siblings:
        if sibling.digest in (scene.model.digest, scene.base.digest):
            raise InvalidArgumentError(
                f"{sibling.name} is the model or its base itself: name another copy as --sibling."
            )
    for other in others:
        if other.tokenizer_digest != fingerprints.tokenizer_digest or other.digest() == fingerprints.digest():
            raise InvalidArgumentError(
                f"--others: the set with digest {other.digest()[:12]} is this set itself, or was made with another "
                "tokenizer. Name another owner's set for the same base."
            )
    if not attacks:
        raise InvalidArgumentError("no attack was named: name some with --attacks, or choose --quick.")
    for attack in attacks:
        for need in attack.needs:
            if need == "instructions":
                scene.data.require(need)
            elif need == "sibling" and not scene.siblings:
                raise InvalidArgumentError(f"{attack.name} needs {_WAYS_OUT[need]}, or leave it out of --attacks.")
            elif need in ("peft", "gguf") and importlib.util.find_spec(need) is None:
                raise BackendUnavailableError(f"{attack.name} needs {_WAYS_OUT[need]}, or leave it out of --attacks.")
