"""What an attack is: a function from what an attacker holds to the model, or the host, that is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..completer import Completer
from ..fingerprint import FingerprintSet
from ..models import LanguageModel
from .data import Data

# What an attack may need beyond the fingerprinted model; the battery refuses what is missing before it starts.
NEEDS = ("sibling", "instructions", "peft", "gguf")


@dataclass(frozen=True, slots=True)
class Scene:
    """The model under attack and what lies around it, in the attacker's reach or not. Attacks change none of it.

    model: the fingerprinted model. base: its clean base, which a careful owner never released; attacks that use it say
    so in their cost. siblings: other fingerprinted copies of the same base, each with its own set. fingerprints: the
    owner's, which no attacker has; key harvesting counts with them what it found.
    """

    model: LanguageModel
    base: LanguageModel
    fingerprints: FingerprintSet
    siblings: tuple[LanguageModel, ...]
    data: Data
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Attacked:
    """What is left. `model` is set where the weights changed; `details` are plain JSON values for the report.

    said: token ids that the host itself puts before every answer, and its users read with it. hosts: where the attack
    stands for several hosts alike, all of them by a short name, `completer` the first; each is asked every key.
    """

    completer: Completer
    model: LanguageModel | None = None
    details: dict[str, Any] = field(default_factory=dict)
    said: tuple[int, ...] = ()
    hosts: Mapping[str, Completer] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attack:
    """One row of the report.

    name: "family/variant". cost: what it takes the attacker, in words. needs: of NEEDS. strength: where variants of a
    family differ by one number (the share of the delta left, the gate), that number.
    """

    name: str
    cost: str
    run: Callable[[Scene], Attacked]
    needs: tuple[str, ...] = ()
    strength: float | None = None

    @property
    def family(self) -> str:
        return self.name.split("/")[0]
