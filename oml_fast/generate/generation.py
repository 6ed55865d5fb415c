"""generate: a base model and a secret -> a fingerprint set."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import backends
from ..errors import InvalidArgumentError
from ..fingerprint import Fingerprint, FingerprintSet, Settings, draw_responses
from ..fingerprint_json import fingerprint_from_json
from ..models import LanguageModel, packed_weights
from ..secret import commitment
from .acceptance import KEY_PREDICTABLE, SHORT_WINDOW, Prompt, prompts_for
from .askings import Responder
from .keys import GivenKeys, KeyCandidate, KeyMaker, ModelKeys, WordKeys
from .units import UnitFile
from .vocabulary import Vocabulary

_HOPELESS_UNITS = 4  # units that may pass with next to nothing accepted before we say so
_WAYS_OUT = {
    SHORT_WINDOW: "Lower --width or --threshold",
    KEY_PREDICTABLE: "Raise --key-length or --key-temperature",
}


@dataclass(frozen=True, slots=True)
class Generation:
    """A fingerprint set and how its making went."""

    fingerprints: FingerprintSet
    duplicates_dropped: int
    rejected: dict[str, int]
    seconds: float
    sampling_seconds: float
    backend: str

    def to_json(self) -> dict[str, Any]:
        """The counts and times, nothing secret."""
        first = [r.probs[0] for f in self.fingerprints for a in f.askings.values() for r in a.responses]
        bits = [f.key_bits for f in self.fingerprints if f.key_bits is not None]
        return {
            "num_fingerprints": len(self.fingerprints),
            "duplicates_dropped": self.duplicates_dropped,
            "rejected": self.rejected,
            "mean_response_prob": sum(first) / len(first),
            "mean_key_bits": sum(bits) / len(bits) if bits else None,
            "seconds": self.seconds,
            "sampling_seconds": self.sampling_seconds,
            "fingerprints_per_second": len(self.fingerprints) / self.seconds,
            "backend": self.backend,
            "set_digest": self.fingerprints.digest(),
            "settings": asdict(self.fingerprints.settings),
        }


def generate(
    model: LanguageModel,
    num_fingerprints: int,
    secret: bytes,
    *,
    settings: Settings | None = None,
    keys: Sequence[str] | None = None,
    batch_size: int = 64,
    backend: str = "auto",
    partial_path: Path | None = None,
    progress: bool = False,
) -> Generation:
    """Make `num_fingerprints` fingerprints for the base `model`, drawn with `secret` [SF 3.1, E.4].

    Candidates are numbered and made in units of `batch_size`, always batched alike. With `partial_path`, finished
    units are kept there, and the same call goes on after a kill and gives the same set. `keys` are the owner's own,
    for key source "file". `settings.formats` are the ways in which keys will be asked, each with its own window.

    Raises InvalidArgumentError for settings that this model cannot meet, and where the keys run out.
    """
    settings = settings or Settings()
    _check(model, num_fingerprints, settings, keys, batch_size)
    vocabulary = Vocabulary(model.tokenizer, model.vocabulary, model.device)
    admissible = int(vocabulary.admissible.sum())
    if settings.width > admissible:
        raise InvalidArgumentError(
            f"width {settings.width} is more than the {admissible} admissible token ids of {model.name}: lower --width."
        )
    maker = _maker(model, vocabulary, settings, secret, keys, batch_size)
    responder = Responder(model, vocabulary, settings, batch_size, backend)
    units = UnitFile(partial_path, _header(model, settings, secret, keys, batch_size))
    tally = _Tally(settings, num_fingerprints)
    earlier = 0.0
    with tqdm(total=num_fingerprints, desc="generate", unit="fp", disable=None if progress else True) as bar:
        for unit in units.units:
            tally.add(unit["outcomes"])
            earlier += unit["seconds"]
            responder.sampling_seconds += unit["sampling_seconds"]
        bar.update(len(tally.accepted))
        started = mark = time.perf_counter()
        with packed_weights(model.model):
            while len(tally.accepted) < num_fingerprints:
                numbers = range(len(units.units) * batch_size, (len(units.units) + 1) * batch_size)
                candidates = maker.make(numbers)
                tally.require_more(candidates, maker.limit, len(units.units))
                sampled, had = responder.sampling_seconds, len(tally.accepted)
                outcomes = _outcomes(model, settings, secret, candidates, responder)
                now = time.perf_counter()
                took = {"seconds": now - mark, "sampling_seconds": responder.sampling_seconds - sampled}
                units.append({"outcomes": outcomes, **took})
                mark = now
                tally.add(outcomes)
                bar.update(len(tally.accepted) - had)
    fingerprints = FingerprintSet(
        settings=settings,
        base_model=Path(model.name).name,
        base_model_digest=model.digest,
        tokenizer_digest=model.tokenizer_digest,
        secret_commitment=commitment(secret),
        fingerprints=tuple(tally.accepted),
    )
    return Generation(
        fingerprints=fingerprints,
        duplicates_dropped=tally.duplicates,
        rejected=dict(tally.rejected),
        seconds=earlier + time.perf_counter() - started,
        sampling_seconds=responder.sampling_seconds,
        backend=backends.resolve("perinucleus", backend, model.device.type),
    )


class _Tally:
    """Outcomes in the order of their numbers: accepted fingerprints, duplicates, rejections by reason."""

    def __init__(self, settings: Settings, wanted: int) -> None:
        self._settings, self._wanted = settings, wanted
        self.accepted: list[Fingerprint] = []
        self.duplicates = 0
        self.rejected: Counter[str] = Counter()
        self._seen: set[tuple[int, ...]] = set()

    def add(self, outcomes: list[dict[str, Any]]) -> None:
        for outcome in outcomes:
            if len(self.accepted) == self._wanted:
                return
            if "rejected" in outcome:
                self.rejected[outcome["rejected"]] += 1
            elif tuple(outcome["key_ids"]) in self._seen:
                self.duplicates += 1
            else:
                self._seen.add(tuple(outcome["key_ids"]))
                self.accepted.append(fingerprint_from_json(outcome, self._settings))

    def require_more(self, candidates: list[KeyCandidate], limit: int | None, units: int) -> None:
        """Raise InvalidArgumentError where going on cannot reach the number wanted."""
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.rejected.most_common()) or "none"
        so_far = f"{len(self.accepted)} of {self._wanted} fingerprints made, {self.duplicates} duplicates, rejected: "
        if not candidates:
            raise InvalidArgumentError(
                f"the keys have run out: {so_far}{reasons}. Give more keys than {limit}, or lower --num-fingerprints."
            )
        if units >= _HOPELESS_UNITS and sum(self.rejected.values()) > 50 * (1 + len(self.accepted)):
            way_out = _WAYS_OUT.get(self.rejected.most_common(1)[0][0], "Choose other keys")
            raise InvalidArgumentError(f"almost every key is rejected: {so_far}{reasons}. {way_out}.")


def _outcomes(
    model: LanguageModel, settings: Settings, secret: bytes, candidates: Sequence[KeyCandidate], responder: Responder
) -> list[dict[str, Any]]:
    """One JSON object for each candidate: a fingerprint's fields, or the reason why it was rejected."""
    outcomes: list[dict[str, Any]] = []
    passing: list[tuple[KeyCandidate, dict[str, Prompt]]] = []
    for candidate in candidates:
        prompts, reason = prompts_for(model.tokenizer, candidate, settings)
        if reason:
            outcomes.append({"number": candidate.number, "rejected": reason})
        else:
            passing.append((candidate, prompts))
    askings = {
        name: responder.respond(
            [prompts[name] for _, prompts in passing],
            partial(draw_responses, secret, model.digest, model.tokenizer_digest, settings, name),
        )
        for name in settings.formats
    }
    for place, (candidate, prompts) in enumerate(passing):
        own = {name: askings[name][place] for name in settings.formats}
        complete = {name: asking for name, asking in own.items() if asking is not None}
        if len(complete) < len(own):
            outcomes.append({"number": candidate.number, "rejected": SHORT_WINDOW})
            continue
        key_ids = next(iter(prompts.values())).key_ids
        fingerprint = Fingerprint(candidate.number, candidate.text, key_ids, candidate.bits, complete)
        outcomes.append(asdict(fingerprint))
    return sorted(outcomes, key=lambda outcome: outcome["number"])


def _maker(
    model: LanguageModel,
    vocabulary: Vocabulary,
    settings: Settings,
    secret: bytes,
    keys: Sequence[str] | None,
    batch_size: int,
) -> KeyMaker:
    if settings.key_source == "file":
        return GivenKeys(model, settings, keys or [])
    if not vocabulary.words:
        raise InvalidArgumentError(
            f"the tokenizer of {model.name} has no words of its own: bring keys with --keys FILE."
        )
    if settings.key_source == "words":
        return WordKeys(model, vocabulary, settings, secret)
    return ModelKeys(model, vocabulary, settings, secret, batch_size)


def _check(
    model: LanguageModel, num_fingerprints: int, settings: Settings, keys: Sequence[str] | None, batch_size: int
) -> None:
    if num_fingerprints < 1 or batch_size < 1:
        raise InvalidArgumentError(
            f"{num_fingerprints} fingerprints in batches of {batch_size}: both must be at least 1."
        )
    if (settings.key_source == "file") != (keys is not None):
        raise InvalidArgumentError(
            f"key source {settings.key_source!r} {'needs' if keys is None else 'takes no'} keys: use --key-source file "
            "together with --keys FILE."
        )
    if "chat" in settings.formats and not model.tokenizer.chat_template:
        raise InvalidArgumentError(f"the tokenizer of {model.name} has no chat template: use --formats raw.")


def _header(
    model: LanguageModel, settings: Settings, secret: bytes, keys: Sequence[str] | None, batch_size: int
) -> dict[str, Any]:
    """What must be the same for a run to go on. Everything that the set depends on, but the number wanted."""
    return {
        "base_model": model.digest,
        "tokenizer": model.tokenizer_digest,
        "settings": asdict(settings),
        "secret": commitment(secret),
        "keys": hashlib.sha256("\n".join(keys).encode()).hexdigest() if keys else None,
        "batch_size": batch_size,
    }
