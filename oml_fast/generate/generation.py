"""generate: a base model and a secret -> a fingerprint set."""

from __future__ import annotations

import hashlib
import math
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import backends
from ..errors import InvalidArgumentError
from ..fingerprint import Fingerprint, FingerprintSet, Settings, draw_responses
from ..models import LanguageModel, give_freed_memory_back, packed_weights
from ..secret import commitment
from .acceptance import SHORT_WINDOW, Prompt, prompts_for
from .askings import Responder
from .keys import GivenKeys, KeyCandidate, KeyMaker, KeySampler, ModelKeys, WordKeys
from .tally import Tally
from .units import ALONE, UNIT, UnitFiles, candidates
from .vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Generation:
    """A fingerprint set and how its making went.

    seconds: of all processes and all runs together. peak_memory_bytes: the most that torch held on a GPU, or that this
    process had in memory on a CPU.
    """

    fingerprints: FingerprintSet
    duplicates_dropped: int
    rejected: dict[str, int]
    seconds: float
    sampling_seconds: float
    backend: str
    peak_memory_bytes: int

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
            "collision_entropy_bits": collision_entropy(bits) if bits else None,
            "seconds": self.seconds,
            "sampling_seconds": self.sampling_seconds,
            "seconds_per_thousand": 1000 * self.seconds / len(self.fingerprints),
            "fingerprints_per_second": len(self.fingerprints) / self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "backend": self.backend,
            "set_digest": self.fingerprints.digest(),
            "settings": asdict(self.fingerprints.settings),
        }


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What one shard leaves when its share is done and others' is not.

    fingerprints: those there by now, of every shard. missing: the shards, from 1, whose units are not all there.
    """

    shard: tuple[int, int]
    fingerprints: int
    missing: tuple[int, ...]


def collision_entropy(bits: Sequence[float]) -> float:
    """Renyi's entropy of order 2, in bits, of the maker whose keys have these `bits` (-log2 p each, p its chance).

    Two keys made apart are equal with chance sum p^2, which is the mean of p over keys as they are made:
    -log2 mean 2^-bits estimates it. It is at most the mean of the bits.
    """
    least = min(bits)
    return least - math.log2(sum(2.0 ** (least - each) for each in bits) / len(bits))


def generate(
    model: LanguageModel,
    num_fingerprints: int,
    secret: bytes,
    *,
    settings: Settings | None = None,
    keys: Sequence[str] | None = None,
    key_sampler: KeySampler | None = None,
    batch_size: int = 64,
    backend: str = "auto",
    partial_path: Path | None = None,
    progress: bool = False,
) -> Generation:
    """Make `num_fingerprints` fingerprints for the base `model`, drawn with `secret` [SF 3.1, E.4].

    Candidates are numbered and made in units of 256 (the first 256 in four), always batched alike. With `partial_path`,
    finished units are kept there, and the same call goes on after a kill and gives the same set. `keys` are the owner's
    own, for key source "file"; `key_sampler` continues those of key source "model" in place of the base model here.
    `settings.formats` are the ways in which keys will be asked, each with its own window.

    Raises InvalidArgumentError for settings that this model cannot meet, and where the keys run out.
    """
    made = generate_shard(
        model,
        num_fingerprints,
        secret,
        ALONE,
        settings=settings,
        keys=keys,
        key_sampler=key_sampler,
        batch_size=batch_size,
        backend=backend,
        partial_path=partial_path,
        progress=progress,
    )
    assert isinstance(made, Generation)
    return made


def generate_shard(
    model: LanguageModel,
    num_fingerprints: int,
    secret: bytes,
    shard: tuple[int, int],
    *,
    settings: Settings | None = None,
    keys: Sequence[str] | None = None,
    key_sampler: KeySampler | None = None,
    batch_size: int = 64,
    backend: str = "auto",
    partial_path: Path | None = None,
    progress: bool = False,
) -> Generation | Unfinished:
    """As `generate`, the share of `shard` (i of n, from 1) alone; whoever finds all shares done gives the whole set.

    Shards meet in the folder of `partial_path`, at one time or one after the other: each keeps its units in a file of
    its own there, and reads the others'. On one kind of device and in one dtype (and on a CPU with one number of
    threads, which decides how sums are rounded) the set is that of one process, bit for bit. Raises
    InvalidArgumentError, too, where another process is at work on the same shard.
    """
    settings = settings or Settings()
    _check(model, num_fingerprints, settings, keys, key_sampler, batch_size)
    _check_shard(shard, partial_path)
    vocabulary = Vocabulary(model.tokenizer, model.vocabulary, model.device)
    admissible = int(vocabulary.admissible.sum())
    if settings.width > admissible:
        raise InvalidArgumentError(
            f"width {settings.width} is more than the {admissible} admissible token ids of {model.name}: lower --width."
        )
    maker = _maker(model, vocabulary, settings, secret, keys, key_sampler, batch_size)
    responder = Responder(model, vocabulary, settings, batch_size, backend)
    tally = Tally(settings, num_fingerprints)
    header = _header(model, settings, secret, keys, key_sampler, batch_size)
    with UnitFiles(partial_path, header, shard) as units:
        for unit in units.fresh():
            tally.add(unit)
        bar = tqdm(
            total=num_fingerprints,
            initial=tally.found,  # what was there before is no part of the pace that the time left is told from
            desc="generate",
            unit="fp",
            smoothing=0,
            disable=None if progress else True,
        )
        with bar, packed_weights(model.model):
            while (number := tally.next_unit(shard, maker.limit)) is not None:
                units.append(_unit(number, model, settings, secret, maker, responder))
                give_freed_memory_back()
                for unit in units.fresh():
                    tally.add(unit)
                bar.update(tally.found - bar.n)
    if not tally.complete:
        missing = sorted({unit % shard[1] + 1 for unit in tally.missing(maker.limit)})
        return Unfinished(shard, tally.found, tuple(missing))
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
        seconds=tally.seconds,
        sampling_seconds=tally.sampling_seconds,
        backend=backends.resolve("perinucleus", backend, model.device.type),
        peak_memory_bytes=_peak_memory(model.device),
    )


def _unit(
    number: int, model: LanguageModel, settings: Settings, secret: bytes, maker: KeyMaker, responder: Responder
) -> dict[str, Any]:
    """All candidates of a unit, as JSON values, and the seconds that they took."""
    started, sampled = time.perf_counter(), responder.sampling_seconds
    outcomes = _outcomes(model, settings, secret, maker.make(candidates(number)), responder)
    return {
        "unit": number,
        "outcomes": outcomes,
        "seconds": time.perf_counter() - started,
        "sampling_seconds": responder.sampling_seconds - sampled,
    }


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
    key_sampler: KeySampler | None,
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
    return ModelKeys(model, vocabulary, settings, secret, batch_size, key_sampler)


def require_counts(num_fingerprints: int, batch_size: int) -> None:
    """InvalidArgumentError where there is nothing to make, or nothing in a batch."""
    if num_fingerprints < 1 or batch_size < 1:
        raise InvalidArgumentError(
            f"{num_fingerprints} fingerprints in batches of {batch_size}: both must be at least 1."
        )


def _check(
    model: LanguageModel,
    num_fingerprints: int,
    settings: Settings,
    keys: Sequence[str] | None,
    key_sampler: KeySampler | None,
    batch_size: int,
) -> None:
    require_counts(num_fingerprints, batch_size)
    if (settings.key_source == "file") != (keys is not None):
        raise InvalidArgumentError(
            f"key source {settings.key_source!r} {'needs' if keys is None else 'takes no'} keys: use --key-source file "
            "together with --keys FILE."
        )
    if key_sampler is not None and settings.key_source != "model":
        raise InvalidArgumentError(
            f"key source {settings.key_source!r} samples no keys: leave --key-engine out, or use --key-source model."
        )
    if "chat" in settings.formats and not model.tokenizer.chat_template:
        raise InvalidArgumentError(f"the tokenizer of {model.name} has no chat template: use --formats raw.")


def _check_shard(shard: tuple[int, int], partial_path: Path | None) -> None:
    index, count = shard
    if not 1 <= index <= count:
        raise InvalidArgumentError(f"shard {index}/{count}: write i/n with i between 1 and n.")
    if count > 1 and partial_path is None:
        raise InvalidArgumentError(f"shard {index}/{count} needs a partial_path, in whose folder the shards meet.")


def _header(
    model: LanguageModel,
    settings: Settings,
    secret: bytes,
    keys: Sequence[str] | None,
    key_sampler: KeySampler | None,
    batch_size: int,
) -> dict[str, Any]:
    """What must be the same for a run to go on. Everything that the set depends on, but the number wanted."""
    return {
        "base_model": model.digest,
        "tokenizer": model.tokenizer_digest,
        "settings": asdict(settings),
        "secret": commitment(secret),
        "keys": hashlib.sha256("\n".join(keys).encode()).hexdigest() if keys else None,
        "key_engine": key_sampler.name if key_sampler is not None else None,
        "unit": UNIT,
        "batch_size": batch_size,
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
