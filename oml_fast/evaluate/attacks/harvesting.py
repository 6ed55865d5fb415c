"""Key harvesting: who knows the tool samples its key generator and refuses every prompt that holds a key so found.

Ours, no paper has it. The generator is no secret, only what feeds it is. So what counts is the chance that it makes a
key again, which each fingerprint keeps as `key_bits`: from it follows what any number of draws would find.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ...fingerprint import FingerprintSet
from ...generate.acceptance import prompts_for
from ...generate.keys import KeyMaker, ModelKeys, WordKeys
from ...generate.vocabulary import Vocabulary
from ...models import HfCompleter, LanguageModel, packed_weights
from ..attack import Attack, Attacked, Scene
from ..hosts import Host, Rewrite
from .prompts import Reader

_DRAWS = 512
_BATCH = 64
_MORE_DRAWS = (30, 40)  # as powers of two


def harvest(maker: LanguageModel, fingerprints: FingerprintSet, draws: int, seed: int) -> set[str]:
    """The distinct keys among `draws` draws with an attacker's own secret that the tool would accept in a set.

    With the owner's settings: they are the tool's defaults, or can be guessed. Empty where keys came from a file.
    """
    settings = fingerprints.settings
    if settings.key_source == "file":
        return set()
    vocabulary = Vocabulary(maker.tokenizer, maker.vocabulary, maker.device)
    secret = hashlib.sha256(f"key harvesting {seed}".encode()).digest()
    makers: dict[str, KeyMaker] = {
        "model": ModelKeys(maker, vocabulary, settings, secret, _BATCH),
        "words": WordKeys(maker, vocabulary, settings, secret),
    }
    with packed_weights(maker.model):
        drawn = makers[settings.key_source].make(range(draws))
    return {candidate.text for candidate in drawn if not prompts_for(maker.tokenizer, candidate, settings)[1]}


def refuse_keys(reader: Reader, keys: Iterable[str]) -> Rewrite:
    """Prompts pass as they are, or are refused because the user's text contains one of `keys`."""
    known = sorted(keys)

    def rewrite(ids: Sequence[int]) -> Sequence[int] | None:
        text = reader.read(ids).text
        return None if any(key in text for key in known) else ids

    return rewrite


def expected_share(key_bits: Iterable[float | None], draws: float) -> float | None:
    """The mean chance that a key is among `draws` independent draws, 1 - (1 - 2^-bits)^draws; None: bits unknown."""
    known = [bits for bits in key_bits if bits is not None]
    if not known:
        return None
    misses = (draws * math.log1p(-(2.0**-bits)) if bits > 0 else -math.inf for bits in known)
    return sum(-math.expm1(miss) for miss in misses) / len(known)


def run_harvest(scene: Scene, maker: LanguageModel, name: str, draws: int = _DRAWS) -> Attacked:
    """Harvest with `maker`, then refuse. `details` count with the owner's set what was found, and what could be."""
    owner, source = scene.fingerprints, scene.fingerprints.settings.key_source
    if source == "file":
        note = "the keys come from a file: there is no generator to sample"
        return Attacked(HfCompleter(scene.model), details={"draws": 0, "note": note})
    keys = harvest(maker, owner, draws, scene.seed)
    bits = [fingerprint.key_bits for fingerprint in owner]
    details: dict[str, Any] = {
        "key_source": source,
        "draws": draws,
        "keys_harvested": len(keys),
        "found": sum(fingerprint.key in keys for fingerprint in owner) / len(owner),
    }
    if maker is scene.base:  # what `key_bits` are about
        details["found_expected"] = expected_share(bits, draws)
        details |= {f"found_expected_2**{power}": expected_share(bits, 2.0**power) for power in _MORE_DRAWS}
    return Attacked(Host(scene.model, f"host ({name})", rewrite=refuse_keys(Reader(scene), keys)), details=details)


def _cost(model: str) -> str:
    return f"{model}, the owner's settings, and one generated sentence for each of {_DRAWS:,} draws"


ATTACKS: tuple[Attack, ...] = (
    Attack(
        "harvesting/base",
        _cost("the clean base"),
        lambda scene: run_harvest(scene, scene.base, "harvesting/base"),
    ),
    Attack(
        "harvesting/fingerprinted",
        _cost("the fingerprinted model alone"),
        lambda scene: run_harvest(scene, scene.model, "harvesting/fingerprinted"),
    ),
)
