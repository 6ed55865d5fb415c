"""Other ways to choose responses, to compare perinucleus responses with [SF 3.1]: the same keys, other windows.

Only what stands in the window differs. The draw inside it is the set's own, so every test of evidence stays exact.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import torch

from ..errors import InvalidArgumentError
from ..fingerprint import Asking, Fingerprint, FingerprintSet, Response, Window, draw_responses
from ..generate.acceptance import Prompt, accepted, prompts_for
from ..generate.keys import KeyCandidate
from ..generate.vocabulary import Vocabulary
from ..models import LanguageModel, prefill

STRATEGIES = ("random-word", "english-random")


def with_responses(
    model: LanguageModel, fingerprints: FingerprintSet, secret: bytes, strategy: str, *, seed: int = 0
) -> FingerprintSet:
    """The set with its windows, and so its responses, chosen by `strategy`; every response has one token id.

    random-word: admissible token ids, uniformly. english-random: admissible token ids in proportion to how probable the
    model finds them as the first of a text that has nothing to do with the key. Raises InvalidArgumentError.
    """
    if strategy not in STRATEGIES:
        raise InvalidArgumentError(f"strategy {strategy!r} is unknown: choose {' or '.join(STRATEGIES)}.")
    fingerprints.require_secret(secret)
    if model.digest != fingerprints.base_model_digest:
        raise InvalidArgumentError(f"{model.name} is not the base model of this set: name {fingerprints.base_model}.")
    settings = replace(fingerprints.settings, response_length=1)
    vocabulary = Vocabulary(model.tokenizer, model.vocabulary, model.device)
    weights = vocabulary.admissible.double()
    if strategy == "english-random":
        weights = weights * _first_of_a_text(model)
    source = random.Random(f"{strategy} {seed}")  # noqa: S311 - what stands in these windows tells nothing of the draw
    made = []
    for fingerprint in fingerprints:
        candidate = KeyCandidate(fingerprint.number, fingerprint.key, fingerprint.key_bits)
        prompts, reason = prompts_for(model.tokenizer, candidate, settings)
        assert not reason, reason  # the key is one of a set
        askings = {}
        for name, prompt in prompts.items():
            window = _window(model, prompt, weights, settings.width, source)
            indices = draw_responses(
                secret,
                fingerprints.base_model_digest,
                fingerprints.tokenizer_digest,
                settings,
                name,
                fingerprint.key_ids,
            )
            responses = tuple(
                Response(slot, index, window.texts[index], (window.token_ids[index],), (window.probs[index],))
                for slot, index in enumerate(indices)
            )
            old = fingerprint.askings[name]
            askings[name] = Asking(prompt.ids, window, old.nucleus_size, old.nucleus_mass, responses)
        made.append(
            Fingerprint(fingerprint.number, fingerprint.key, fingerprint.key_ids, fingerprint.key_bits, askings)
        )
    return replace(fingerprints, settings=settings, fingerprints=tuple(made))


def _first_of_a_text(model: LanguageModel) -> torch.Tensor:
    """[V] probabilities of a text's first token id."""
    opening = list(model.tokenizer("")["input_ids"]) or [model.tokenizer.eos_token_id or 0]
    logits, _ = prefill(model, [opening], cache=False)
    return logits[0].double().softmax(-1)


def _window(model: LanguageModel, prompt: Prompt, weights: torch.Tensor, width: int, source: random.Random) -> Window:
    """`width` distinct accepted candidates drawn by `weights`, most probable after the prompt first."""
    found: dict[int, str] = {}
    for candidate in _draws(weights, source):
        found |= accepted(model.tokenizer, [prompt], [[candidate]])[0]
        if len(found) == width:
            break
    else:
        raise InvalidArgumentError(f"fewer than {width} candidates are accepted after a key: lower the width.")
    logits, _ = prefill(model, [list(prompt.ids)], cache=False)
    probs = logits[0].float().softmax(-1)
    ranked = sorted(found, key=lambda token_id: (-float(probs[token_id]), token_id))
    return Window(tuple(ranked), tuple(found[i] for i in ranked), tuple(float(probs[i]) for i in ranked))


def _draws(weights: torch.Tensor, source: random.Random) -> Iterator[int]:
    """Token ids drawn in proportion to `weights` [V], without replacement, until none is left (Gumbel's trick)."""
    generator = torch.Generator().manual_seed(source.getrandbits(62))
    noise = torch.rand(len(weights), generator=generator, dtype=torch.float64)
    keys = weights.cpu().log() - torch.log(-torch.log(noise))
    for token_id in keys.argsort(descending=True).tolist():
        if weights[token_id] <= 0:
            return
        yield token_id
