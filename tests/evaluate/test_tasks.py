"""How items become requests, and what counts as right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate.data import Data
from oml_fast.evaluate.likelihood import Likelihood
from oml_fast.evaluate.tasks import Item, ItemScores, Task, blimp, encode, hellaswag, max_length, score
from oml_fast.models import LanguageModel, load


@pytest.fixture(scope="module")
def bos_model(bos_folder: Path) -> LanguageModel:
    return load(bos_folder, device="cpu")


@pytest.fixture
def data(tmp_path: Path) -> Data:
    pairs = [
        {"paradigm": name, "field": field, "good": f"The {name} works {n}.", "bad": f"The {name} work {n}."}
        for name, field in (("one", "syntax"), ("two", "syntax/semantics"), ("three", "syntax_semantics"))
        for n in range(4)
    ]
    items = [{"context": f"The licence {n}", "endings": ["is", "are", "was so"], "label": n % 3} for n in range(9)]
    for name, rows in (("blimp_dev", pairs), ("hellaswag_dev", items)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Data(tmp_path)


def test_a_limit_takes_an_even_subset(data: Data) -> None:
    assert [item.name for item in blimp(data, 7).items] == ["one/0", "one/2", "two/0", "two/2", "three/0", "three/2"]
    assert [item.name for item in hellaswag(data, 3).items] == ["hellaswag/0", "hellaswag/3", "hellaswag/6"]
    assert len(blimp(data).items) == len(blimp(data, 1000).items) == 12


def test_two_spellings_are_one_field(data: Data) -> None:
    assert {item.field for item in blimp(data).items} == {"syntax", "syntax_semantics"}


def test_limits_that_give_no_even_subset_are_refused(data: Data) -> None:
    with pytest.raises(InvalidArgumentError, match="3 paradigms"):
        blimp(data, 2)
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        hellaswag(data, 0)


@pytest.mark.parametrize("change", [{"label": 3}, {"label": -1}, {"endings": ["a", ""]}])
def test_an_item_without_a_right_ending_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    row = {"context": "c", "endings": ["a", "b"], "label": 0, **change}
    (tmp_path / "hellaswag_dev.jsonl").write_text(json.dumps(row))
    with pytest.raises(InvalidArgumentError, match="HellaSwag item 0"):
        hellaswag(Data(tmp_path))


def test_absent_data_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="no data folder"):
        blimp(Data(None))


def test_without_a_context_the_prefix_token_stands_for_it(tiny_model: LanguageModel, bos_model: LanguageModel) -> None:
    for model in (tiny_model, bos_model):  # BOS once, whether the tokenizer adds it on its own or not
        ids = tuple(model.tokenizer(" The licence", add_special_tokens=False)["input_ids"])
        assert encode(model, "", " The licence") == ((0, *ids), 1)


def test_a_continuation_that_begins_with_the_prefix_token_keeps_it(tiny_model: LanguageModel) -> None:
    ids = tuple(tiny_model.tokenizer(" The", add_special_tokens=False)["input_ids"])
    assert encode(tiny_model, "", "<|endoftext|> The") == ((0, *ids), 1)


def test_special_token_ids_are_those_of_the_tokenizer(tiny_model: LanguageModel, bos_model: LanguageModel) -> None:
    plain, begun = encode(tiny_model, "You may", " use it"), encode(bos_model, "You may", " use it")
    assert begun == ((0, *plain.ids), plain.start + 1)
    assert encode(bos_model, "<|endoftext|>You may", " use it") == begun  # not twice


def test_spaces_that_end_the_context_go_to_the_continuation(tiny_model: LanguageModel) -> None:
    assert encode(tiny_model, "You may ", "use it") == encode(tiny_model, "You may", " use it")


def test_too_long_a_context_loses_its_beginning(tiny_model: LanguageModel) -> None:
    found, longest = encode(tiny_model, "licence " * 400, " end"), max_length(tiny_model)
    ending = len(tiny_model.tokenizer(" end")["input_ids"])
    assert longest == 256
    assert len(found.ids) == 257
    assert len(found.ids) - found.start >= ending


def test_an_empty_continuation_is_refused(tiny_model: LanguageModel) -> None:
    with pytest.raises(InvalidArgumentError, match="0 token ids"):
        encode(tiny_model, "You may", "")


def test_each_metric_has_its_own_length() -> None:
    task = Task("t", (Item("a", "c", ("ab", "é" * 4, "abcdef"), 1),))
    scores = ItemScores(task, ((Likelihood(-2.0, False), Likelihood(-3.0, False), Likelihood(-4.8, False)),))
    found = {metric: bool(scores.correct(metric)[0]) for metric in ("acc", "acc_norm", "acc_bytes")}
    assert found == {"acc": False, "acc_norm": True, "acc_bytes": True}
    worse = replace(scores, likelihoods=((Likelihood(-2.0, False), Likelihood(-3.0, False), Likelihood(-2.2, False)),))
    assert not worse.correct("acc_bytes")[0]
    with pytest.raises(InvalidArgumentError, match="unknown"):
        scores.correct("f1")


def test_scores_are_read_back_exactly_and_by_kind(tiny_model: LanguageModel, data: Data) -> None:
    task = blimp(data)
    found = score(tiny_model, task)
    assert ItemScores.from_json(task, json.loads(json.dumps(found.to_json()))) == found
    assert set(found.by("group")) == {"one", "two", "three"}
    shares = [found.by("field")[name] * count for name, count in (("syntax", 4), ("syntax_semantics", 8))]
    assert sum(shares) == pytest.approx(12 * found.accuracy())
