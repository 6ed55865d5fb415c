"""Makers of keys: deterministic, cut to length, and honest about how hard a key is to find."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from oml_fast.errors import InvalidArgumentError
from oml_fast.fingerprint import Settings
from oml_fast.generate import read_keys
from oml_fast.generate.keys import GivenKeys, KeyCandidate, KeyMaker, ModelKeys, WordKeys, cut
from oml_fast.generate.vocabulary import Vocabulary
from oml_fast.models import LanguageModel, load
from oml_fast.secret import uniforms

SECRET = bytes(range(32))
LAST = 1 - 2.0**-53


@pytest.fixture(scope="module")
def vocabulary(tiny_model: LanguageModel) -> Vocabulary:
    return Vocabulary(tiny_model.tokenizer, tiny_model.vocabulary, tiny_model.device)


def maker(
    kind: str, model: LanguageModel, vocabulary: Vocabulary, secret: bytes = SECRET, settings: Settings | None = None
) -> KeyMaker:
    settings = settings or Settings(key_source=kind)
    if kind == "words":
        return WordKeys(model, vocabulary, settings, secret)
    return ModelKeys(model, vocabulary, settings, secret, batch_size=8)


def length(model: LanguageModel, text: str) -> int:
    return len(model.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", ["words", "model"])
def test_keys_depend_on_secret_and_settings_alone(kind: str, tiny_model: LanguageModel, vocabulary: Vocabulary) -> None:
    first = maker(kind, tiny_model, vocabulary).make(range(16))
    assert maker(kind, tiny_model, vocabulary).make(range(16)) == first
    assert [key.number for key in first] == list(range(16))
    others = [
        maker(kind, tiny_model, vocabulary, b"x" * 32).make(range(16)),
        maker(kind, tiny_model, vocabulary, settings=Settings(key_source=kind, width=15)).make(range(16)),
        maker(kind, tiny_model, vocabulary).make(range(16, 32)),
    ]
    texts = [{key.text for key in keys} for keys in (first, *others)]
    assert all(not one & other for place, one in enumerate(texts) for other in texts[:place])


@pytest.mark.parametrize("kind", ["words", "model"])
def test_keys_are_cut_to_the_key_length(kind: str, tiny_model: LanguageModel, vocabulary: Vocabulary) -> None:
    for key_length in (5, 16):
        settings = Settings(key_source=kind, key_length=key_length)
        keys = maker(kind, tiny_model, vocabulary, settings=settings).make(range(8))
        assert all(key.text == key.text.strip() for key in keys)
        assert all(length(tiny_model, key.text) <= key_length + 2 for key in keys)
        assert sum(length(tiny_model, key.text) == key_length for key in keys) >= 4


def test_words_begin_with_a_capital_and_stand_in_the_vocabulary(
    tiny_model: LanguageModel, vocabulary: Vocabulary
) -> None:
    for key in maker("words", tiny_model, vocabulary).make(range(32)):
        first, *others, last = key.text.split()
        assert first.lower() in vocabulary.words
        assert first == first.capitalize()
        assert set(others) <= set(vocabulary.words)
        assert any(word.startswith(last) for word in vocabulary.words)


def test_the_bits_of_words_are_the_chance_of_the_same_text(tiny_model: LanguageModel, vocabulary: Vocabulary) -> None:
    """Each whole word is one of all; the last, which may have been cut, one of those that begin as it does."""
    words = vocabulary.words
    lasts = []
    for key in maker("words", tiny_model, vocabulary).make(range(64)):
        *whole, last = key.text.lower().split()
        chance = sum(word.startswith(last) for word in words) / len(words)
        assert key.bits == pytest.approx(-math.log2((1 / len(words)) ** len(whole) * chance))
        lasts.append(last in words)
    assert not all(lasts), "no key was cut within a word: choose another secret"


@torch.no_grad()
def by_hand(
    model: LanguageModel, vocabulary: Vocabulary, settings: Settings, prompt: str, draws: Sequence[float]
) -> tuple[str, list[int], list[float]]:
    """The first word, and the ids and probabilities sampled after it, without a cache and in float64."""
    word = vocabulary.words[int(draws[0] * len(vocabulary.words))].capitalize()
    start = model.tokenizer(prompt.format(word) + word)["input_ids"]
    ids: list[int] = []
    probs = []
    for uniform in draws[1:]:
        logits = model.model(torch.tensor([start + ids])).logits[0, -1].double()
        weights = (logits / settings.key_temperature).exp() * vocabulary.plain
        mass = (weights / weights.sum()).cumsum(0)
        ids.append(int((mass > uniform).nonzero()[0, 0]))
        probs.append(float(weights[ids[-1]] / weights.sum()))
    return word, ids, probs


@pytest.mark.parametrize("chat", [True, False])
def test_model_keys_and_their_bits_by_hand(tiny_folder: Path, vocabulary: Vocabulary, chat: bool) -> None:
    model, settings = load(tiny_folder, device="cpu"), Settings()
    prompt = 'Here is a sentence that starts with the word "{}".\n\n'
    if chat:
        prompt = '<|im_start|>user\nWrite a sentence that starts with the word "{}".<|im_end|>\n<|im_start|>assistant\n'
    else:
        model.tokenizer.chat_template = None
    parts = [b"key", model.digest.encode(), settings.digest().encode()]
    for key in maker("model", model, vocabulary).make(range(12)):
        draws = uniforms(SECRET, [*parts, str(key.number).encode()], settings.key_length)
        word, ids, probs = by_hand(model, vocabulary, settings, prompt, draws)
        whole = word + model.tokenizer.decode(ids)
        assert whole.startswith(key.text)
        # Those ids count that stand in the key with all of their text.
        inside = [n for n in range(len(ids)) if key.text.startswith(word + model.tokenizer.decode(ids[: n + 1]))]
        assert len(inside) >= settings.key_length // 2
        chance = math.prod([1 / len(vocabulary.words), *probs[: len(inside)]])
        assert key.bits == pytest.approx(-math.log2(chance), rel=1e-4)


def test_a_template_that_is_read_once_changes_no_key(
    tiny_model: LanguageModel, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, ...]] = []
    hidden = LanguageModel.hidden

    def recording(self: LanguageModel, ids: torch.Tensor, past: object = None) -> torch.Tensor:
        read.append(tuple(ids.shape))
        return hidden(self, ids, past)  # type: ignore[arg-type]

    monkeypatch.setattr(LanguageModel, "hidden", recording)
    shared = maker("model", tiny_model, vocabulary).make(range(32))
    together = [rows * length for rows, length in read]
    assert any(rows == 1 and length >= 16 for rows, length in read), "no template was read apart"
    read.clear()
    monkeypatch.setattr("oml_fast.models.decoding._SHARED", 10**6)
    plain = maker("model", tiny_model, vocabulary).make(range(32))
    assert sum(together) < sum(rows * length for rows, length in read)
    assert [key.text for key in shared] == [key.text for key in plain]
    assert [key.bits for key in shared] == pytest.approx([key.bits for key in plain], rel=1e-5)


class Sampler:
    """Another engine, recorded: its ids come from the seeds alone, each with probability one half."""

    name = "engine 1.0 (cpu)"

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], int]] = []

    def sample_keys(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        length: int,
        *,
        temperature: float,
        allowed: Sequence[int],
    ) -> list[tuple[list[int], list[float]]]:
        assert (length, temperature) == (15, 0.7)
        self.asked += zip(map(list, prompts), seeds, strict=True)
        return [(np.random.default_rng(seed).choice(allowed, length).tolist(), [0.5] * length) for seed in seeds]


def test_another_engine_gets_prompts_and_seeds_that_the_secret_fixes(
    tiny_model: LanguageModel, vocabulary: Vocabulary
) -> None:
    def sampled(secret: bytes, numbers: range) -> tuple[list[KeyCandidate], list[tuple[list[int], int]]]:
        sampler = Sampler()
        made = ModelKeys(tiny_model, vocabulary, Settings(), secret, 8, sampler).make(numbers)
        return made, sampler.asked

    keys, asked = sampled(SECRET, range(16))
    assert sampled(SECRET, range(16)) == (keys, asked)
    assert sampled(SECRET, range(8, 16)) == (keys[8:], asked[8:])
    seeds = {seed for _, seed in asked}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert not seeds & {seed for _, seed in sampled(b"x" * 32, range(16))[1]}
    own = maker("model", tiny_model, vocabulary).make(range(16))
    for key, by_model, (prompt, seed) in zip(keys, own, asked, strict=True):
        word = key.text.split()[0]
        text = tiny_model.tokenizer.decode(prompt)
        start = text[text.rindex("assistant\n") + len("assistant\n") :]
        assert f'starts with the word "{start}"' in text
        assert key.text.startswith(start), (word, text)
        assert by_model.text.startswith(start)
        ids = np.random.default_rng(seed).choice(vocabulary.plain.nonzero().squeeze(1).tolist(), 15).tolist()
        inside = [n for n in range(15) if key.text.startswith(start + tiny_model.tokenizer.decode(ids[: n + 1]))]
        assert key.bits == pytest.approx(math.log2(len(vocabulary.words)) + len(inside))


@pytest.mark.parametrize("uniform", [0.0, LAST])
@pytest.mark.parametrize("kind", ["words", "model"])
def test_keys_at_the_ends_of_the_distribution(
    kind: str, uniform: float, tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A uniform next to 1 must not become 1, which would fall on the last token id, allowed or not."""
    vocabulary = Vocabulary(tiny_model.tokenizer, tiny_model.vocabulary, tiny_model.device)
    vocabulary.plain[-1] = False
    forbidden = tiny_model.tokenizer.decode([tiny_model.vocabulary - 1]).strip()

    def constant(secret: bytes, parts: Sequence[bytes], count: int) -> list[float]:
        return [uniform] * count

    monkeypatch.setitem(type(maker(kind, tiny_model, vocabulary)).make.__globals__, "uniforms", constant)
    (key,) = maker(kind, tiny_model, vocabulary).make(range(1))
    assert forbidden not in key.text
    assert key.text.lower().startswith(vocabulary.words[0 if uniform == 0 else -1])


def test_given_keys_come_in_their_order_and_end(tiny_model: LanguageModel) -> None:
    keys = GivenKeys(tiny_model, Settings(key_source="file", key_length=4), ["the license", "a" * 60, " of this "])
    assert keys.limit == 3
    made = keys.make(range(5))
    assert [key.number for key in made] == [0, 1, 2]
    assert (made[0].text, made[2].text) == ("the license", "of this")
    assert [key.bits for key in made] == [None] * 3
    assert length(tiny_model, made[1].text) == 4
    assert keys.make(range(3, 6)) == []


def test_cutting_leaves_no_blanks_at_the_ends(tiny_model: LanguageModel) -> None:
    assert cut(tiny_model.tokenizer, "  under the terms", 100) == "under the terms"
    short = cut(tiny_model.tokenizer, "under the terms and conditions", 3)
    assert "under the terms and conditions".startswith(short)
    assert length(tiny_model, short) == 3


@pytest.mark.parametrize("content", ["one\n\n  two  \nthree é\n", json.dumps(["one", " two", "", "three é"])])
def test_a_keys_file_is_lines_or_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys").write_text(content, encoding="utf-8")
    assert read_keys(tmp_path / "keys") == ["one", "two", "three é"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no key: write one key a line"),
        (b" \n\n", "holds no key"),
        (b"[]", "holds no key"),
        (b'["one"', "no valid JSON (line 1): mend it"),
        (b"[1, 2]", "must hold a JSON list of texts"),
        (b'[["one"]]', "must hold a JSON list of texts"),
        (b"caf\xe9", "is not UTF-8 (byte 3): save it as UTF-8"),
    ],
)
def test_a_keys_file_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(InvalidArgumentError) as refused:
        read_keys(tmp_path / "keys")
    assert message in str(refused.value)
    assert str(tmp_path / "keys") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_keys_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"cannot read keys file .*nowhere: No such file"):
        read_keys(tmp_path / "nowhere")
