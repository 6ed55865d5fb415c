"""generate as a whole: counts, rejections, the owner's own keys, and what is refused."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import pre_tokenizers
from tqdm import tqdm

from oml_fast.errors import InvalidArgumentError
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import Generation, generate
from oml_fast.generate.acceptance import MIN_KEY_BITS, Prompt, accepted
from oml_fast.generate.askings import Responder
from oml_fast.generate.generation import collision_entropy
from oml_fast.generate.keys import cut
from oml_fast.models import LanguageModel
from oml_fast.secret import commitment

SECRET = bytes(range(32))
WORDS = Settings(width=4, key_source="words")
GIVEN = Settings(width=4, key_source="file")
KEYS = [f"the work number {n} under the terms" for n in range(12)]


def refusal(model: LanguageModel, count: int, **arguments: object) -> str:
    with pytest.raises(InvalidArgumentError) as refused:
        generate(model, count, SECRET, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("source", ["words", "model"])
def test_a_set_holds_what_it_needs_for_proof(tiny_model: LanguageModel, source: str, tmp_path: Path) -> None:
    made = generate(tiny_model, 20, SECRET, settings=Settings(key_source=source)).fingerprints
    assert len(made) == 20
    assert made.base_model == "tiny"
    assert (made.base_model_digest, made.tokenizer_digest) == (tiny_model.digest, tiny_model.tokenizer_digest)
    assert made.secret_commitment == commitment(SECRET)
    assert all(f.key_bits is not None and f.key_bits >= MIN_KEY_BITS for f in made)
    made.save(tmp_path / "set.json")
    assert FingerprintSet.load(tmp_path / "set.json") == made


def test_the_same_call_gives_the_same_set(tiny_model: LanguageModel) -> None:
    one, other = (generate(tiny_model, 20, SECRET, settings=WORDS) for _ in range(2))
    assert one.fingerprints == other.fingerprints


def test_a_longer_set_begins_with_the_shorter(tiny_model: LanguageModel) -> None:
    long = generate(tiny_model, 20, SECRET, settings=WORDS, batch_size=8).fingerprints
    short = generate(tiny_model, 5, SECRET, settings=WORDS, batch_size=8).fingerprints
    assert long.fingerprints[:5] == short.fingerprints


@pytest.mark.parametrize("backend", ["native", "torch", "reference"])
def test_every_backend_makes_the_same_set(tiny_model: LanguageModel, backend: str) -> None:
    made = generate(tiny_model, 20, SECRET, settings=WORDS, backend=backend)
    assert made.backend == backend
    other = generate(tiny_model, 20, SECRET, settings=WORDS).fingerprints
    assert [f.key_ids for f in made.fingerprints] == [f.key_ids for f in other]
    for one, two in zip(made.fingerprints, other, strict=True):
        ours, theirs = one.askings["raw"], two.askings["raw"]
        assert (ours.window.token_ids, ours.responses[0].index) == (theirs.window.token_ids, theirs.responses[0].index)
        assert ours.window.probs == pytest.approx(theirs.window.probs)


def test_the_batch_size_changes_rounding_at_most(tiny_model: LanguageModel) -> None:
    one, other = (generate(tiny_model, 20, SECRET, settings=WORDS, batch_size=n).fingerprints for n in (1, 64))
    assert [f.key_ids for f in one] == [f.key_ids for f in other]
    same = sum(
        a.askings["raw"].window.token_ids == b.askings["raw"].window.token_ids for a, b in zip(one, other, strict=True)
    )
    assert same >= 19


def test_given_keys_keep_their_order_and_duplicates_are_dropped(tiny_model: LanguageModel) -> None:
    keys = [*KEYS[:6], KEYS[0], *KEYS[6:], KEYS[3]]
    made = generate(tiny_model, 12, SECRET, settings=GIVEN, keys=keys, batch_size=4)
    assert [f.key for f in made.fingerprints] == KEYS
    assert [f.number for f in made.fingerprints] == [*range(6), *range(7, 13)]
    assert made.duplicates_dropped == 1
    assert made.rejected == {}
    assert {f.key_bits for f in made.fingerprints} == {None}


def test_keys_that_are_the_same_once_cut_are_duplicates(tiny_model: LanguageModel) -> None:
    settings = Settings(width=4, key_source="file", key_length=4)
    keys = ["under the terms of this", "under the terms of that", "subject to the license"]
    made = generate(tiny_model, 2, SECRET, settings=settings, keys=keys)
    assert [f.key for f in made.fingerprints] == [cut(tiny_model.tokenizer, keys[n], 4) for n in (0, 2)]
    assert made.duplicates_dropped == 1


def test_keys_that_are_too_short_are_rejected(tiny_model: LanguageModel) -> None:
    made = generate(tiny_model, 2, SECRET, settings=GIVEN, keys=["a", KEYS[0], KEYS[1]])
    assert made.rejected == {"key_length": 1}
    assert [f.number for f in made.fingerprints] == [1, 2]


def test_keys_that_do_not_come_back_from_their_ids_are_rejected(fresh_model: LanguageModel) -> None:
    """A tokenizer that puts a blank before every text gives it back with the blank."""
    fresh_model.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    message = refusal(fresh_model, 1, settings=GIVEN, keys=[f"{key} {n}" for n in range(24) for key in KEYS])
    assert (
        "almost every key is rejected: 0 of 1 fingerprints made, 0 duplicates, rejected: key_round_trip 64" in message
    )
    assert message.endswith("Choose other keys.")


def test_too_few_keys_say_so_and_keep_what_was_done(tiny_model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "partial"
    arguments = {"settings": GIVEN, "keys": [*KEYS, KEYS[0]], "batch_size": 5, "partial_path": path}
    message = refusal(tiny_model, 20, **arguments)
    assert "the keys have run out: 12 of 20 fingerprints made, 1 duplicates, rejected: none" in message
    assert message.endswith("Give more keys than 13, or lower --num-fingerprints.")
    assert path.exists()
    done = path.read_bytes()
    made = generate(tiny_model, 12, SECRET, **arguments)  # type: ignore[arg-type]
    assert [f.key for f in made.fingerprints] == KEYS
    assert path.read_bytes() == done


def test_no_keys_at_all(tiny_model: LanguageModel) -> None:
    assert "the keys have run out" in refusal(tiny_model, 1, settings=GIVEN, keys=[])


def test_keys_and_key_source_must_agree(tiny_model: LanguageModel) -> None:
    assert "needs keys: use --key-source file together with --keys FILE" in refusal(tiny_model, 1, settings=GIVEN)
    assert "'words' takes no keys" in refusal(tiny_model, 1, settings=WORDS, keys=KEYS)


def test_keys_that_an_attacker_could_find_are_rejected(tiny_model: LanguageModel) -> None:
    """Four ids are at most four words of the tokenizer, fewer than 40 bits."""
    settings = Settings(width=4, key_source="words", key_length=4)
    message = refusal(tiny_model, 4, settings=settings)
    assert "almost every key is rejected: 0 of 4 fingerprints made, 0 duplicates, rejected: key_predictable" in message
    assert message.endswith("Raise --key-length or --key-temperature.")


def test_keys_from_a_cold_model_are_rejected(tiny_model: LanguageModel) -> None:
    assert "key_predictable" in refusal(tiny_model, 4, settings=Settings(key_temperature=0.01))


def test_predictable_keys_are_counted_beside_the_others(tiny_model: LanguageModel) -> None:
    settings = Settings(width=4, key_source="words", key_length=9)
    made = generate(tiny_model, 200, SECRET, settings=settings, batch_size=256)
    assert made.rejected["key_predictable"] > 0
    assert min(f.key_bits or 0.0 for f in made.fingerprints) >= MIN_KEY_BITS
    assert len(made.fingerprints) == 200


def test_width_beyond_what_is_admissible(tiny_model: LanguageModel) -> None:
    message = refusal(tiny_model, 1, settings=Settings(width=1200, key_source="words"))
    assert "width 1200 is more than the 1174 admissible token ids" in message
    assert message.endswith("lower --width.")


def test_width_beyond_what_is_left_outside_the_nucleus(tiny_model: LanguageModel) -> None:
    message = refusal(tiny_model, 1, settings=Settings(threshold=1 - 1e-9, key_source="words"))
    assert "rejected: short_window" in message
    assert message.endswith("Lower --width or --threshold.")


def test_rows_that_need_many_candidates_are_asked_again(
    tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the first 40 candidates of every second key refused, its window would be the next four."""
    calls = []
    refused: dict[str, set[int]] = {}

    def strict(tokenizer: Any, batch: Sequence[Prompt], candidates: Sequence[Sequence[int]]) -> list[dict[int, str]]:
        calls.append(len(batch))
        found = accepted(tokenizer, batch, candidates)
        for prompt, ids, texts in zip(batch, candidates, found, strict=True):
            if int(prompt.text.split()[3]) % 2:  # candidates come a few at a time, and again when rows are asked again
                first = refused.setdefault(prompt.text, set())
                first |= set(ids[: 40 - len(first)])
                for token_id in first:
                    texts.pop(token_id, None)
        return found

    monkeypatch.setitem(Responder.respond.__globals__, "accepted", strict)
    keys = KEYS[:8]
    made = generate(tiny_model, 8, SECRET, settings=GIVEN, keys=keys).fingerprints
    wide = Settings(width=44, key_source="file")
    monkeypatch.undo()
    plain = generate(tiny_model, 8, SECRET, settings=wide, keys=keys).fingerprints
    assert len(calls) >= 3
    assert sum(calls) < 8 * len(calls)
    for fingerprint, one, other in zip(made, made, plain, strict=True):
        ours, theirs = one.askings["raw"].window.token_ids, other.askings["raw"].window.token_ids
        if int(fingerprint.key.split()[3]) % 2:
            assert not set(ours) & set(theirs[:36])
        else:
            assert ours == theirs[:4]


@pytest.mark.parametrize(("count", "batch_size"), [(0, 64), (-1, 64), (1, 0)])
def test_impossible_numbers(tiny_model: LanguageModel, count: int, batch_size: int) -> None:
    assert "both must be at least 1" in refusal(tiny_model, count, settings=WORDS, batch_size=batch_size)


def test_chat_needs_a_template(fresh_model: LanguageModel) -> None:
    fresh_model.tokenizer.chat_template = None
    message = refusal(fresh_model, 1, settings=Settings(formats=("chat",)))
    assert message.endswith("has no chat template: use --formats raw.")


def test_keys_made_of_words_need_words(fresh_model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = {token.replace("Ġ", "_"): i for token, i in fresh_model.tokenizer.get_vocab().items()}
    monkeypatch.setattr(fresh_model.tokenizer, "get_vocab", lambda: vocabulary)
    assert refusal(fresh_model, 1, settings=WORDS).endswith("bring keys with --keys FILE.")


def test_template_variables_are_frozen_in_the_prompt(fresh_model: LanguageModel) -> None:
    fresh_model.tokenizer.chat_template = "{{ date_string }}|" + fresh_model.tokenizer.chat_template
    settings = Settings(width=4, key_source="file", formats=("chat",), template_variables={"date_string": "now"})
    made = generate(fresh_model, 2, SECRET, settings=settings, keys=KEYS).fingerprints
    texts = [fresh_model.tokenizer.decode(f.askings["chat"].prompt_ids) for f in made]
    assert all(text.startswith("now|<|im_start|>user\nthe work number") for text in texts)


def test_truncation_and_padding_kept_with_a_tokenizer_do_not_matter(
    tiny_model: LanguageModel, fresh_model: LanguageModel
) -> None:
    fresh_model.tokenizer.backend_tokenizer.enable_truncation(max_length=5)
    fresh_model.tokenizer.backend_tokenizer.enable_padding(length=32)
    one, other = (generate(model, 8, SECRET, settings=WORDS).fingerprints for model in (tiny_model, fresh_model))
    assert one == other


def test_the_result_in_numbers_holds_no_secret(tiny_model: LanguageModel) -> None:
    generation = generate(tiny_model, 10, SECRET, settings=Settings(width=4, key_source="words", response_length=2))
    result = generation.to_json()
    assert result["num_fingerprints"] == 10
    assert result["fingerprints_per_second"] == pytest.approx(10 / result["seconds"])
    assert 0 < result["sampling_seconds"] < result["seconds"]
    assert result["set_digest"] == generation.fingerprints.digest()
    first = [f.askings["raw"].responses[0].probs[0] for f in generation.fingerprints]
    assert result["mean_response_prob"] == pytest.approx(sum(first) / 10)
    text = json.dumps(result)
    assert SECRET.hex() not in text
    assert not any(f.key in text or f.askings["raw"].responses[0].text in text for f in generation.fingerprints)


def test_what_a_thousand_takes_and_how_hard_keys_are_to_guess(tiny_model: LanguageModel) -> None:
    generation = generate(tiny_model, 40, SECRET, settings=Settings(width=4))
    result = generation.to_json()
    assert result["seconds_per_thousand"] == pytest.approx(1000 * result["seconds"] / 40)
    assert 50 << 20 < result["peak_memory_bytes"] == generation.peak_memory_bytes < 64 << 30
    bits = [fingerprint.key_bits for fingerprint in generation.fingerprints]
    assert result["mean_key_bits"] == pytest.approx(sum(map(float, bits)) / 40)
    chances = [2.0**-each for each in bits if each is not None]
    assert result["collision_entropy_bits"] == pytest.approx(-math.log2(sum(chances) / 40))
    assert MIN_KEY_BITS <= min(bits) <= result["collision_entropy_bits"] < result["mean_key_bits"]


def test_collision_entropy_is_the_chance_that_two_keys_are_equal() -> None:
    """Of a maker whose chances are known: drawn keys estimate -log2 of the sum of their squares."""
    chances = [0.5, 0.25, *[1 / 64] * 16]
    drawn = np.random.default_rng(0).choice(chances, 200_000, p=chances).tolist()
    exact = -math.log2(sum(p * p for p in chances))
    assert collision_entropy([-math.log2(p) for p in drawn]) == pytest.approx(exact, abs=0.02)
    assert collision_entropy([7.0] * 5) == 7.0
    assert collision_entropy([2000.0, 3000.0]) == pytest.approx(2001.0)  # 2**-2000 itself is 0


def test_the_chances_of_given_keys_are_unknown(tiny_model: LanguageModel) -> None:
    made: Generation = generate(tiny_model, 3, SECRET, settings=GIVEN, keys=KEYS)
    assert made.to_json()["mean_key_bits"] is None
    assert made.to_json()["collision_entropy_bits"] is None


class Sampler:
    """Another engine for keys: ids that the seeds give, at a chance of 1 in 1,000 each."""

    name = "engine 1.0 (cpu)"

    def sample_keys(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], length: int, *, temperature: float, allowed: Any
    ) -> list[tuple[list[int], list[float]]]:
        return [(np.random.default_rng(seed).choice(allowed, length).tolist(), [0.001] * length) for seed in seeds]


def test_keys_from_another_engine_make_a_set(tiny_model: LanguageModel, tmp_path: Path) -> None:
    settings, path = Settings(width=4), tmp_path / "partial"
    one = generate(tiny_model, 20, SECRET, settings=settings, key_sampler=Sampler(), partial_path=path).fingerprints
    header = json.loads(path.read_text().splitlines()[0])
    assert header["key_engine"] == Sampler.name
    other = generate(tiny_model, 20, SECRET, settings=settings, key_sampler=Sampler()).fingerprints
    assert one == other
    one.check_draws(SECRET)
    own = generate(tiny_model, 20, SECRET, settings=settings).fingerprints
    assert not {f.key for f in one} & {f.key for f in own}


@pytest.mark.parametrize(("settings", "keys"), [(WORDS, None), (GIVEN, KEYS)])
def test_only_keys_of_a_model_are_sampled(tiny_model: LanguageModel, settings: Settings, keys: Any) -> None:
    message = refusal(tiny_model, 2, settings=settings, keys=keys, key_sampler=Sampler())
    assert message.endswith("samples no keys: leave --key-engine out, or use --key-source model.")


def test_the_time_left_is_told_from_the_pace_of_this_run(
    tiny_model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Any] = []

    def recorded(**named: Any) -> Any:
        bars.append(tqdm(**named | {"disable": False, "file": io.StringIO()}))
        return bars[-1]

    monkeypatch.setitem(generate.__globals__, "tqdm", recorded)
    arguments: dict[str, Any] = {"settings": WORDS, "partial_path": tmp_path / "partial"}
    generate(tiny_model, 300, SECRET, **arguments)
    generate(tiny_model, 600, SECRET, **arguments)
    assert [(bar.initial, bar.n, bar.total) for bar in bars] == [(0, 300, 300), (512, 600, 600)]
    assert {bar.smoothing for bar in bars} == {0}  # units take minutes: the mean of all is the steadier pace
