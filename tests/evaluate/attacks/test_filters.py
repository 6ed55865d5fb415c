"""Hosts that refuse prompts: for their perplexity, or because a harvested key stands in them."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sets import small_set

from oml_fast import verify
from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate.attack import Attack, Scene
from oml_fast.evaluate.attacks import harvesting, perplexity_filter
from oml_fast.evaluate.attacks.perplexity_filter import Limits, limits, log_perplexities
from oml_fast.evaluate.attacks.prompts import Reader
from oml_fast.evaluate.data import Data
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.models import HfCompleter, LanguageModel, load

LICENCE = Path(__file__).resolve().parents[3] / "LICENSE"
WORDS = Settings(key_source="words", width=4)


def attack(attacks: tuple[Attack, ...], name: str) -> Attack:
    return next(found for found in attacks if found.name == name)


def scene_of(model: LanguageModel, fingerprints: FingerprintSet | None = None, folder: Path | None = None) -> Scene:
    if fingerprints is None:
        fingerprints = FingerprintSet(Settings(), "base", "cd" * 32, model.tokenizer_digest, "00" * 32, ())
    return Scene(model, model, fingerprints, (), Data(folder), seed=7)


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Instructions of a few words each, cut from the licence."""
    words = LICENCE.read_text().split()
    texts = [" ".join(words[start : start + 7]) for start in range(0, 7 * 150, 7)]
    folder = tmp_path_factory.mktemp("data")
    rows = (json.dumps({"instruction": text, "output": "Yes."}) for text in texts)
    (folder / "sft_instructions.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def owners(tiny_model: LanguageModel) -> FingerprintSet:
    return generate(tiny_model, 12, bytes(32), settings=WORDS).fingerprints


def test_log_perplexity_is_the_mean_over_all_but_the_first_id(tiny_folder: Path, bos_folder: Path) -> None:
    text = "Licensor grants you a copyright licence"
    for folder in (tiny_folder, bos_folder):
        model = load(folder, device="cpu")
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            theirs = float(model.model(input_ids=ids, labels=ids).loss)
        found = log_perplexities(model, [text, "a", text])
        assert found[0] == pytest.approx(theirs, rel=1e-5)
        assert found[2] == pytest.approx(theirs, rel=1e-5)
        assert math.isnan(found[1]) == (folder == tiny_folder)  # without BOS nothing comes before a single id
        assert log_perplexities(model, [text]) == pytest.approx(found[:1], rel=1e-5)


def test_only_the_beginning_of_a_long_text_is_read(tiny_model: LanguageModel) -> None:
    ids = tiny_model.tokenizer(LICENCE.read_text())["input_ids"]
    whole, start = (tiny_model.tokenizer.decode(ids[:length]) for length in (400, 64))
    assert log_perplexities(tiny_model, [whole]) == pytest.approx(log_perplexities(tiny_model, [start]))


def test_limits_refuse_the_share_that_they_are_set_for() -> None:
    ordinary = [float(value) for value in range(200)]
    high = limits(ordinary[::-1], 0.05, two_sided=False)
    assert high.share(ordinary) == 0.05
    assert [value for value in ordinary if high.refuse(value)] == ordinary[-10:]
    both = limits(ordinary, 0.05, two_sided=True)
    assert [value for value in ordinary if both.refuse(value)] == ordinary[:5] + ordinary[-5:]
    assert not both.refuse(math.nan)
    assert limits([*ordinary, math.nan], 0.05, two_sided=True) == both


def test_limits_from_too_few_prompts_are_refused() -> None:
    assert limits([1.0] * 19 + [2.0], 0.05, two_sided=False).refuse(2.0)
    with pytest.raises(InvalidArgumentError, match="19 ordinary prompts are too few"):
        limits([1.0] * 19, 0.05, two_sided=False)
    with pytest.raises(InvalidArgumentError, match="too few"):
        limits([1.0] * 39, 0.05, two_sided=True)
    with pytest.raises(InvalidArgumentError, match="too few"):
        limits([math.nan] * 100, 0.05, two_sided=False)


def test_the_users_text_alone_is_judged_and_passes_unchanged(tiny_model: LanguageModel) -> None:
    text = "Licensor grants you a copyright licence"
    value = log_perplexities(tiny_model, [text])[0]
    reader = Reader(scene_of(tiny_model))
    prompts = [list(tiny_model.tokenizer(text)["input_ids"]), reader.chat_ids(text)]
    for allowed, passes in ((Limits(-math.inf, value + 1e-3), True), (Limits(-math.inf, value - 1e-3), False)):
        rewrite = perplexity_filter.keep_within(tiny_model, reader, allowed)
        assert [rewrite(prompt) for prompt in prompts] == (prompts if passes else [None, None])
    low = perplexity_filter.keep_within(tiny_model, reader, Limits(value + 1e-3, math.inf))
    assert [low(prompt) for prompt in prompts] == [None, None]


@pytest.mark.parametrize("name", ["perplexity/high", "perplexity/two-sided"])
def test_a_host_refuses_the_share_of_ordinary_prompts_that_it_says(
    tiny_model: LanguageModel, owners: FingerprintSet, data_folder: Path, name: str
) -> None:
    scene = scene_of(tiny_model, owners, data_folder)
    attacked = attack(perplexity_filter.ATTACKS, name).run(scene)

    def refused(texts: list[str]) -> float:
        asked = [tiny_model.tokenizer(text)["input_ids"] for text in texts]
        return sum(not found.token_ids for found in attacked.completer.complete(asked, 1)) / len(texts)

    ordinary = [instruction for instruction, _ in scene.data.instructions()]
    assert len(ordinary) == 120
    assert refused(ordinary) == 0.05
    held_out = [instruction for instruction, _ in scene.data.questions()]
    assert refused(held_out) == pytest.approx(attacked.details["ordinary_refused_held_out"])
    assert refused([fingerprint.key for fingerprint in owners]) == pytest.approx(attacked.details["keys_refused"])
    assert (attacked.details["low"] is None) == (name == "perplexity/high")
    json.dumps(attacked.details, allow_nan=False)


def test_the_perplexity_filter_needs_instructions(tiny_model: LanguageModel, owners: FingerprintSet) -> None:
    for found in perplexity_filter.ATTACKS:
        assert found.needs == ("instructions",)
        with pytest.raises(InvalidArgumentError, match="no data folder"):
            found.run(scene_of(tiny_model, owners))


def test_a_harvested_key_is_refused_wherever_it_stands(tiny_model: LanguageModel) -> None:
    reader = Reader(scene_of(tiny_model))
    rewrite = harvesting.refuse_keys(reader, {"You must give", "a copyright licence"})
    ask = lambda text: list(tiny_model.tokenizer(text)["input_ids"])  # noqa: E731
    for text in ("You must give", "Answer: You must give it.", "On a copyright licence"):
        assert rewrite(ask(text)) is None
        assert rewrite(reader.chat_ids(text)) is None
    for prompt in (ask("You must"), ask("you must give"), reader.chat_ids("A copyright licence")):
        assert rewrite(prompt) == prompt


@pytest.mark.parametrize("source", ["words", "model"])
def test_whoever_has_the_same_draws_finds_every_key(
    tiny_model: LanguageModel, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner's secret is the attacker's here: what is made and what is harvested must be the same keys."""
    monkeypatch.setattr(harvesting, "_BATCH", 8)
    secret = hashlib.sha256(b"key harvesting 7").digest()
    made = generate(tiny_model, 6, secret, settings=replace(WORDS, key_source=source), batch_size=8)
    scene = scene_of(tiny_model, made.fingerprints)
    attacked = harvesting.run_harvest(scene, tiny_model, "test", 64)
    assert attacked.details["found"] == 1.0
    assert attacked.details["found_expected"] < 1e-6
    assert attacked.completer.complete([(1, 2, 3)], 1)[0].token_ids
    assert verify(made.fingerprints, attacked.completer, test="window", mode="fixed").informative == 0
    few = harvesting.run_harvest(scene, tiny_model, "test", 3)
    assert 0 < few.details["keys_harvested"] <= 3
    keys = harvesting.harvest(tiny_model, made.fingerprints, 3, scene.seed)
    assert few.details["found"] == sum(fingerprint.key in keys for fingerprint in made.fingerprints) / 6
    assert 0 < few.details["found"] < 1


def test_an_attacker_with_another_secret_finds_nothing(tiny_model: LanguageModel, owners: FingerprintSet) -> None:
    scene = scene_of(tiny_model, owners)
    found = harvesting.run_harvest(scene, tiny_model, "test", 64)
    assert found.details["draws"] == 64
    assert found.details["keys_harvested"] > 32
    assert found.details["found"] == 0
    asked = [fingerprint.askings["raw"].prompt_ids for fingerprint in owners]
    assert found.completer.complete(asked, 1) == HfCompleter(tiny_model).complete(asked, 1)
    one, again, other = (harvesting.harvest(tiny_model, owners, 20, seed) for seed in (1, 1, 2))
    assert one == again
    assert not one & other


def test_the_share_expected_follows_from_the_bits() -> None:
    assert harvesting.expected_share([10.0], 1) == pytest.approx(2**-10)
    assert harvesting.expected_share([10.0], 1024) == pytest.approx(1 - (1 - 2**-10) ** 1024)
    assert harvesting.expected_share([1.0, 60.0, None], 2) == pytest.approx((0.75 + 2**-59) / 2)
    assert harvesting.expected_share([40.0], 2.0**40) == pytest.approx(1 - math.exp(-1))
    assert harvesting.expected_share([120.0], 2.0**30) == pytest.approx(2.0**-90)
    assert harvesting.expected_share([0.0], 1) == 1.0
    assert harvesting.expected_share([None], 5) is None


def test_keys_from_a_file_cannot_be_sampled(tiny_model: LanguageModel) -> None:
    given = small_set(3, key_source="file")
    for found in harvesting.ATTACKS:
        attacked = found.run(scene_of(tiny_model, given))
        assert attacked.details["draws"] == 0
        assert "no generator" in attacked.details["note"]
        assert attacked.completer.complete([(1, 2, 3)], 1) == HfCompleter(tiny_model).complete([(1, 2, 3)], 1)
