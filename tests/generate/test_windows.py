"""Windows and responses, against a slow and independent way to make them: one key at a time, in float64, by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SPECIAL

from oml_fast.fingerprint import Asking, Fingerprint, FingerprintSet, Settings, draw_responses
from oml_fast.generate import generate
from oml_fast.generate.acceptance import Prompt, _decode, accepted
from oml_fast.generate.askings import Responder
from oml_fast.generate.vocabulary import Vocabulary
from oml_fast.models import LanguageModel, load, prefill
from oml_fast.ops import reference

SECRET = bytes(range(32))
CASES = {
    "raw": Settings(width=16, key_source="words"),
    "raw and chat": Settings(width=5, formats=("raw", "chat"), key_source="model"),
    "several long responses": Settings(width=8, responses_per_key=3, response_length=6, key_source="words"),
    "paper": Settings(threshold=0.8, width=3, response_length=2, key_source="words"),
    "one token in the nucleus": Settings(threshold=0.0, key_source="words"),
    "nearly all in the nucleus": Settings(threshold=0.99, width=4, key_source="words"),
    "all of it": Settings(
        width=4, formats=("raw", "chat"), responses_per_key=4, response_length=4, key_length=12, key_source="words"
    ),
}


@pytest.fixture(scope="module", params=["no BOS", "BOS"])
def model(request: pytest.FixtureRequest, tiny_folder: Path, bos_folder: Path) -> LanguageModel:
    return load(bos_folder if request.param == "BOS" else tiny_folder, device="cpu")


@pytest.fixture(scope="module", autouse=True)
def small_units(module_units: Callable[[int], None]) -> None:
    module_units(12)


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, model: LanguageModel) -> FingerprintSet:
    """A dozen fingerprints, asked one at a time, so that a second computation rounds as the first one did."""
    return generate(model, 12, SECRET, settings=CASES[request.param], batch_size=1).fingerprints


def askings(made: FingerprintSet) -> list[tuple[Fingerprint, str, Asking]]:
    return [(fingerprint, name, asking) for fingerprint in made for name, asking in fingerprint.askings.items()]


def whole_prompt(model: LanguageModel, name: str, key: str) -> str:
    """What is asked, as text: the key with BOS, where the tokenizer has one, or in the template written out."""
    if name == "chat":
        return f"<|im_start|>user\n{key}<|im_end|>\n<|im_start|>assistant\n"
    return (SPECIAL[0] if model.tokenizer("")["input_ids"] else "") + key


def encode(model: LanguageModel, text: str) -> tuple[int, ...]:
    return tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_sets_have_what_was_asked_for(made: FingerprintSet) -> None:
    assert len(made) == 12
    assert len({fingerprint.key_ids for fingerprint in made}) == 12
    assert all(tuple(fingerprint.askings) == made.settings.formats for fingerprint in made)
    numbers = [fingerprint.number for fingerprint in made]
    assert numbers == sorted(set(numbers))


def test_keys_are_asked_as_they_are_written(model: LanguageModel, made: FingerprintSet) -> None:
    for fingerprint, name, asking in askings(made):
        assert fingerprint.key_ids == encode(model, fingerprint.key)
        assert 2 <= len(fingerprint.key_ids) <= made.settings.key_length
        assert model.tokenizer.decode(fingerprint.key_ids) == fingerprint.key
        assert asking.prompt_ids == encode(model, whole_prompt(model, name, fingerprint.key))


def test_every_candidate_is_read_back_after_its_prompt(model: LanguageModel, made: FingerprintSet) -> None:
    for fingerprint, name, asking in askings(made):
        for token_id, text in zip(asking.window.token_ids, asking.window.texts, strict=True):
            prompt = whole_prompt(model, name, fingerprint.key)
            assert encode(model, prompt + text) == (*asking.prompt_ids, token_id)
            assert model.tokenizer.decode([*fingerprint.key_ids, token_id]) == fingerprint.key + text


def test_windows_lie_just_outside_the_nucleus(model: LanguageModel, made: FingerprintSet) -> None:
    for _, _, asking in askings(made):
        with torch.no_grad():
            probs = model.model(torch.tensor([asking.prompt_ids])).logits[0, -1].double().softmax(-1)
        order = probs.argsort(descending=True)
        nucleus, window = set(order[: asking.nucleus_size].tolist()), asking.window
        assert probs[order].cumsum(0)[asking.nucleus_size - 1] == pytest.approx(asking.nucleus_mass, abs=1e-6)
        assert asking.nucleus_mass >= made.settings.threshold - 1e-6
        assert asking.nucleus_mass - probs[order[asking.nucleus_size - 1]] < made.settings.threshold or (
            made.settings.threshold == 0 and asking.nucleus_size == 1
        )
        assert not nucleus & set(window.token_ids)
        assert len(set(window.token_ids)) == made.settings.width
        assert window.probs == tuple(sorted(window.probs, reverse=True))
        assert window.probs == pytest.approx(probs[list(window.token_ids)].tolist(), rel=1e-4)
        assert window.probs[0] <= 1 - made.settings.threshold


def test_windows_are_the_first_that_are_accepted(model: LanguageModel, made: FingerprintSet) -> None:
    for fingerprint, name, asking in askings(made):
        ids, size = by_hand(model, made.settings, name, fingerprint.key, asking.prompt_ids)
        assert asking.window.token_ids == ids
        assert asking.nucleus_size == size


def by_hand(
    model: LanguageModel, settings: Settings, name: str, key: str, prompt_ids: tuple[int, ...]
) -> tuple[tuple[int, ...], int]:
    """The window and the nucleus's size by the float64 reference, candidate by candidate."""
    tokenizer = model.tokenizer
    logits, _ = prefill(model, [prompt_ids], cache=False)
    rows = reference.perinucleus(logits, settings.threshold, model.vocabulary, None)
    window: list[int] = []
    for token_id in rows.token_ids[0].tolist():
        if token_id < 0 or len(window) == settings.width:
            break
        alone = tokenizer.decode([token_id]).strip()
        if token_id in (0, 1, 2) or len(alone) < 2 or not all(character.isalnum() for character in alone):
            continue
        text = tokenizer.decode([*prompt_ids, token_id])[len(tokenizer.decode(prompt_ids)) :]
        if encode(model, whole_prompt(model, name, key) + text) == (*prompt_ids, token_id):
            window.append(token_id)
    return tuple(window), int(rows.nucleus_size[0])


def test_responses_are_what_the_secret_draws(made: FingerprintSet) -> None:
    made.check_draws(SECRET)
    for fingerprint, name, asking in askings(made):
        indices = draw_responses(
            SECRET, made.base_model_digest, made.tokenizer_digest, made.settings, name, fingerprint.key_ids
        )
        assert tuple(response.index for response in asking.responses) == indices
        assert tuple(response.slot for response in asking.responses) == tuple(range(made.settings.responses_per_key))
        assert len({response.token_ids for response in asking.responses}) == made.settings.responses_per_key
        for response, index in zip(asking.responses, indices, strict=True):
            assert response.token_ids[0] == asking.window.token_ids[index]
            assert response.probs[0] == asking.window.probs[index]


def test_responses_go_on_greedily(model: LanguageModel, made: FingerprintSet) -> None:
    require_greedy_tails(model, made)


def test_responses_made_together_go_on_greedily(tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several keys of a batch, some without a window, and several responses a key go on from one cache."""

    def strict(tokenizer: Any, batch: Sequence[Prompt], candidates: Sequence[Sequence[int]]) -> list[dict[int, str]]:
        found = accepted(tokenizer, batch, candidates)
        return [{} if "work" in prompt.text else texts for prompt, texts in zip(batch, found, strict=True)]

    monkeypatch.setitem(Responder.respond.__globals__, "accepted", strict)
    settings = Settings(width=4, responses_per_key=3, response_length=5, key_source="file")
    keys = [f"the {'license' if n % 3 else 'work'} number {n} under" for n in range(24)]
    generation = generate(tiny_model, 16, SECRET, settings=settings, keys=keys)
    assert generation.rejected == {"short_window": 8}
    require_greedy_tails(tiny_model, generation.fingerprints)


def require_greedy_tails(model: LanguageModel, made: FingerprintSet) -> None:
    """Without a cache: each later id is the most probable printable one, given all before it."""
    plain = Vocabulary(model.tokenizer, model.vocabulary, model.device).plain
    for fingerprint, _, asking in askings(made):
        for response in asking.responses:
            assert len(response.token_ids) == len(response.probs) == made.settings.response_length
            ids = [*asking.prompt_ids, *response.token_ids]
            with torch.no_grad():
                logits = model.model(torch.tensor([ids])).logits[0].double()
            for place in range(1, made.settings.response_length):
                row = logits[len(asking.prompt_ids) + place - 1]
                token_id = int(row.masked_fill(~plain, -torch.inf).argmax())
                assert response.token_ids[place] == token_id
                assert response.probs[place] == pytest.approx(float(row.softmax(-1)[token_id]), rel=1e-4)
            assert (
                model.tokenizer.decode([*fingerprint.key_ids, *response.token_ids]) == fingerprint.key + response.text
            )


def test_formats_have_windows_of_their_own(tiny_model: LanguageModel) -> None:
    made = generate(tiny_model, 12, SECRET, settings=CASES["raw and chat"]).fingerprints
    assert all(f.askings["raw"].window != f.askings["chat"].window for f in made)
    assert all(f.askings["raw"].prompt_ids != f.askings["chat"].prompt_ids for f in made)


def test_candidates_that_are_read_otherwise_are_not_accepted(tiny_model: LanguageModel) -> None:
    """After "the licen" the tokenizer reads "se" as a part of the word, and " under" as it stands."""
    encoded = encode(tiny_model, "the licen")
    prompt = Prompt(encoded, encoded, "the licen", True)
    merging, plain = encode(tiny_model, "se")[0], encode(tiny_model, " under")[0]
    assert encode(tiny_model, "the license")[: len(encoded)] != encoded
    (found,) = accepted(tiny_model.tokenizer, [prompt], [[merging, plain]])
    assert found == {plain: " under"}


def test_no_more_candidates_are_checked_than_windows_need(
    tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many texts are encoded as there are candidates up to the last of each window."""
    checked: list[int] = []
    kept: list[int] = []

    def counting(tokenizer: Any, batch: Sequence[Prompt], candidates: Sequence[Sequence[int]]) -> list[dict[int, str]]:
        found = accepted(tokenizer, batch, candidates)
        checked.extend(c for ids in candidates for c in ids)
        kept.extend(c for texts in found for c in texts)
        return found

    monkeypatch.setitem(Responder.respond.__globals__, "accepted", counting)
    made = generate(tiny_model, 12, SECRET, settings=CASES["raw"], batch_size=12)
    assert not made.rejected
    assert len(kept) == 12 * 16
    assert len(checked) > len(kept)


@pytest.mark.parametrize("cleaning", [False, True])
def test_texts_are_those_that_the_tokenizer_decodes(tiny_folder: Path, cleaning: bool) -> None:
    """Special ids, bytes that are no text, spaces before punctuation; by the short way and by that of transformers."""
    tokenizer = load(tiny_folder, device="cpu").tokenizer
    tokenizer.clean_up_tokenization_spaces = cleaning
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = cleaning
    cleaned = [*tokenizer("so it is n't , is it ?")["input_ids"], 0, 1, 2]
    sequences = [cleaned, [], *([n, *range(n)] for n in range(0, len(tokenizer), 7))]
    assert _decode(tokenizer, sequences) == [tokenizer.decode(ids) for ids in sequences]
    assert (" ," in _decode(tokenizer, [cleaned])[0]) != cleaning


def test_some_candidates_are_refused_and_others_take_their_places(tiny_model: LanguageModel) -> None:
    """The check is no formality: without it windows would be others."""
    made = generate(tiny_model, 24, SECRET, settings=CASES["raw"], batch_size=1).fingerprints
    admissible = Vocabulary(tiny_model.tokenizer, tiny_model.vocabulary, tiny_model.device).admissible
    differing = 0
    for _, _, asking in askings(made):
        logits, _ = prefill(tiny_model, [asking.prompt_ids], cache=False)
        unchecked = reference.perinucleus(logits, 0.8, 16, admissible).token_ids[0].tolist()
        differing += tuple(unchecked) != asking.window.token_ids
    assert differing > 0


def test_windows_do_not_depend_on_the_secret(tiny_model: LanguageModel) -> None:
    keys = [f"the work number {n} under the terms" for n in range(20)]
    settings = Settings(width=4, key_source="file")
    one, other = (
        generate(tiny_model, 20, secret, settings=settings, keys=keys).fingerprints for secret in (SECRET, b"x" * 32)
    )
    windows = [[f.askings["raw"].window for f in made] for made in (one, other)]
    assert windows[0] == windows[1]
    indices = [[f.askings["raw"].responses[0].index for f in made] for made in (one, other)]
    assert indices[0] != indices[1]
