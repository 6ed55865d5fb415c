"""Whether draws favour what innocent relatives of the base model prefer: from the opened leaves, with no set or secret.

An owner who keeps only the fingerprints whose drawn candidate is the base model's favourite has draws, commitment and
order that all check, and convicts innocent models. The base model's own order of the candidates, which each window
shows, comes to a match by the same test, or near it; and so are null models, where the checker has some to ask.

Each finding is whether it holds (None: nothing shows it) and a sentence. It fails only where the verdict is a match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

from ..commit import Commitment
from ..completer import Completer
from ..errors import InvalidArgumentError
from ..fingerprint import Asking, Fingerprint, FingerprintSet, Settings
from ..verify import KeyOutcome, Verification, chance
from ..verify.calibration import NullModel, calibrate
from ..verify.replay import evidence
from ..verify.trials import base_trials
from ..verify.verdict import Limits, favours_base
from .figures import same

_PREFERENCES = ("rank", "forced_choice")  # the tests that see which candidates a suspect prefers
_ROUNDING = 1e-9

Outcome = tuple[bool | None, str]
Told = Mapping[str, Any]
Readings = Callable[[Sequence[int]], Sequence[str]]  # of token ids, as a completer with a tokenizer has them


def told(verification: Told) -> Outcome:
    """What the report itself says of the base model's order, which only the opened windows show."""
    if verification["test"] not in _PREFERENCES:
        return None, _unseen(verification)
    log10_p = verification["base_log10_p"] or 0.0
    ok, sentence = _finding(verification, log10_p, "by the owner's word alone, without an opening")
    return None if ok else ok, sentence


def shown(verification: Told, settings: Settings, fingerprints: Sequence[Fingerprint]) -> Outcome:
    """Whether the base model's own order of the candidates is no match by the same test, from the opened windows."""
    if wrong := _disordered(fingerprints):
        return False, f"the window of key {wrong[0]} does not hold its most probable candidate first: it was edited."
    if verification["test"] not in _PREFERENCES:
        return None, _unseen(verification)
    if differ := _differing(verification, settings, fingerprints):
        keys = ", ".join(map(str, differ[:8]))
        return False, f"the report's `base` is not what the opened windows give (key {keys})."
    lowest = min(verification["base_log10_p"] or 0.0, _by_place(verification, settings, fingerprints))
    return _finding(verification, lowest, "computed anew from the opened windows")


def asked(
    verification: Told,
    commitment: Commitment,
    fingerprints: Sequence[Fingerprint],
    null_models: Mapping[str, Completer],
) -> Outcome:
    """Whether no null model, asked the opened keys, is a match by the same test.

    Nor may a model's tokenizer read the opened keys, candidates or responses otherwise than the set writes them:
    suspects behind endpoints are asked the former, and their answers held against the latter. Raises
    InvalidArgumentError where a model cannot take the test or has another tokenizer, and CompleterError.
    """
    _require_tokenizers(commitment, null_models)
    if misread := _misread(fingerprints, null_models.values()):
        sentence = f"their tokenizer writes other texts than the set holds (key {misread[0]}): the set was edited."
        return False if verification["verdict"] == "match" else None, sentence
    found = _ask(verification, commitment, fingerprints, null_models)
    by_chance = "; ".join(f"{name}: {chance(model.log10_p_value)}" for name, model in found)
    guilty = [name for name, model in found if model.match]
    if not guilty:
        return True, f"none is a match by the same test (probability by chance {by_chance})."
    sentence = f"by the same test {', '.join(guilty)} is a match as well (probability by chance {by_chance})."
    return False if verification["verdict"] == "match" else None, sentence


def _finding(verification: Told, log10_p: float, how: str) -> Outcome:
    by_chance = f"probability by chance {chance(log10_p)}, {how}"
    if not favours_base(log10_p, verification["false_positive_rate"]):
        return True, f"the base model's own order of the candidates is far from a match ({by_chance})."
    sentence = f"the base model's own order of the candidates is a match by the same test, or nearly ({by_chance})"
    if verification["verdict"] == "match":
        return False, f"{sentence}: so are its innocent descendants."
    return None, f"{sentence}; the verdict is not."


def _unseen(verification: Told) -> str:
    return (
        f"the {verification['test']} test sees no preferences but those said aloud: innocent relatives of the base "
        "model can be asked the opened keys (--null-model)."
    )


def _disordered(fingerprints: Sequence[Fingerprint]) -> list[str]:
    """The keys and formats whose window does not descend in probability, as every window is made to."""
    return [
        f"{fingerprint.number} ({name})"
        for fingerprint in fingerprints
        for name, asking in fingerprint.askings.items()
        if any(later > earlier * (1 + _ROUNDING) for earlier, later in pairwise(asking.window.probs))
    ]


def _differing(verification: Told, settings: Settings, fingerprints: Sequence[Fingerprint]) -> list[int]:
    """The numbers of the keys whose `base` is not what their windows give."""
    differ = []
    for key, fingerprint in zip(verification["keys"], fingerprints, strict=True):
        trials = base_trials(verification["test"], settings, fingerprint)
        if not same(key["base"], [asdict(trial) for trial in trials]):
            differ.append(key["number"])
    return differ


def _by_place(verification: Told, settings: Settings, fingerprints: Sequence[Fingerprint]) -> float:
    """log10 of the p-value of a suspect that prefers candidates in the order of their places in the window.

    That is the base model's order too, and shows it where equal probabilities were written into the windows to hide it.
    """
    placed = [replace(f, askings={name: _placed(a) for name, a in f.askings.items()}) for f in fingerprints]
    v = verification
    limits = Limits(v["false_positive_rate"], v["smallest_fsr"], v["miss_rate"])
    return evidence(v["test"], v["mode"], limits, [base_trials(v["test"], settings, each) for each in placed])


def _placed(asking: Asking) -> Asking:
    count = len(asking.window.probs)
    return replace(asking, window=replace(asking.window, probs=tuple(1 - place / count for place in range(count))))


def _require_tokenizers(commitment: Commitment, null_models: Mapping[str, Completer]) -> None:
    for name, model in null_models.items():
        if model.tokenizer_digest not in ("", commitment.tokenizer_digest):
            raise InvalidArgumentError(
                f"the null model {name} has another tokenizer than the fingerprints were made with: name one that "
                "shares the base model's."
            )


def _misread(fingerprints: Sequence[Fingerprint], models: Iterable[Completer]) -> list[str]:
    """The keys and formats with a text, of key, candidate or response, that a model's tokenizer does not write so."""
    found = []
    for readings in [model.readings for model in models if hasattr(model, "readings")]:
        for fingerprint in fingerprints:
            names = [name for name in fingerprint.askings if not _is_written(readings, fingerprint, name)]
            found += [f"{fingerprint.number} ({name})" for name in names]
    return found


def _is_written(readings: Readings, fingerprint: Fingerprint, name: str) -> bool:
    """Whether the prompt asks the key, and the ids after the key read as the texts that belong to them."""
    asking, ids, keys = fingerprint.askings[name], fingerprint.key_ids, readings(fingerprint.key_ids)
    texts = [(response.token_ids, response.text) for response in asking.responses]
    texts += [((i,), text) for i, text in zip(asking.window.token_ids, asking.window.texts, strict=True)]
    return (
        fingerprint.key in keys
        and any(fingerprint.key in prompt for prompt in readings(asking.prompt_ids))
        and (name != "raw" or asking.prompt_ids[-len(ids) :] == ids)
        and all(
            any(longer[len(key) :] == text for key, longer in zip(keys, readings((*ids, *after)), strict=True))
            for after, text in texts
        )
    )


def _ask(
    verification: Told,
    commitment: Commitment,
    fingerprints: Sequence[Fingerprint],
    null_models: Mapping[str, Completer],
) -> list[tuple[str, NullModel]]:
    """Each null model, by its name, with what it answered to the opened keys."""
    digests = commitment.base_model_digest, commitment.tokenizer_digest
    opened = FingerprintSet(commitment.settings(), "the base model", *digests, "", tuple(fingerprints))
    verified = Verification(**{**verification, "keys": tuple(KeyOutcome(**key) for key in verification["keys"])})
    return [(name, calibrate(opened, verified, [model]).models[0]) for name, model in null_models.items()]
