"""The owner's full check: what a cell counts, the same result for any split, and which parts are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_tokenizer

from oml_fast.cli.evaluate_fsr import engine as engine_of
from oml_fast.completer import Completion
from oml_fast.errors import BackendUnavailableError, InvalidArgumentError
from oml_fast.evaluate import fsr_parts, fsr_ray
from oml_fast.evaluate.attacks.prompts import Wrapping
from oml_fast.evaluate.fsr import Grid, Shard, check, identity
from oml_fast.evaluate.fsr_engines import CompleterEngine, Engine, TransformersEngine, device_of_rank
from oml_fast.evaluate.fsr_parts import REPORT, FullCheck, finished, merge, missing, part_path, write_part
from oml_fast.evaluate.fsr_ray import check_on_ray
from oml_fast.evaluate.fsr_templates import AS_MADE, BUILT_IN, Renderer, Template, read_templates
from oml_fast.fingerprint import Asking, Fingerprint, FingerprintSet, Response, Settings, Window
from oml_fast.models import HfCompleter, LanguageModel
from oml_fast.verify.statistics import clopper_pearson

LENGTH, COUNT, CARRIED = 2, 10, 6
KEYS = [f"the work number {n} of this licence" for n in range(COUNT)]
AS_IT_IS = BUILT_IN[0]
SUFFIX = Template("suffix", Wrapping(after=" Keep it short."))
CHAT = Template("chat", Wrapping(chat=True))
GRID = Grid((AS_IT_IS, SUFFIX, CHAT), (0.0, 1.0), samples=3)


def carried(model: LanguageModel, formats: Sequence[str] = ("raw",)) -> FingerprintSet:
    """A set, the first CARRIED of which `model` answers in every format: their responses are its greedy answers."""
    settings = Settings(width=2, response_length=LENGTH, formats=tuple(formats))
    fingerprints = []
    for number, key in enumerate(KEYS):
        ids = tuple(model.tokenizer(key)["input_ids"])
        askings = {}
        for name in formats:
            prompt = ids if name == "raw" else chat(model.tokenizer, key)
            (answer,) = HfCompleter(model).complete([prompt], LENGTH)
            first, *rest = answer.token_ids or ()
            told = (first, *rest) if number < CARRIED else (first, (rest[0] + 1) % model.vocabulary)
            response = Response(0, 0, "", told, (0.1,) * LENGTH)
            askings[name] = Asking(prompt, Window((first, 0), ("", ""), (0.1, 0.1)), 1, 0.9, (response,))
        fingerprints.append(Fingerprint(number + 100, key, ids, None, askings))
    return FingerprintSet(settings, "base", "", model.tokenizer_digest, "ab" * 32, tuple(fingerprints))


def chat(tokenizer: Any, key: str) -> tuple[int, ...]:
    text = tokenizer.apply_chat_template([{"role": "user", "content": key}], tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="module")
def engine(tiny_model: LanguageModel) -> TransformersEngine:
    return TransformersEngine(tiny_model, batch_size=4)


@pytest.fixture(scope="module")
def fingerprints(tiny_model: LanguageModel) -> FingerprintSet:
    return carried(tiny_model)


@pytest.fixture(scope="module")
def parts(engine: TransformersEngine, fingerprints: FingerprintSet) -> Any:
    """The part of a shard, made once."""
    return cache(lambda index, count: check(engine, fingerprints, GRID, Shard(index, count)))


def in_folder(folder: Path, *made: dict[str, Any]) -> Path:
    for part in made:
        write_part(folder, json.loads(json.dumps(part)))
    return folder


# What is counted


def test_the_cells_say_what_the_model_answers(parts: Any, fingerprints: FingerprintSet, tmp_path: Path) -> None:
    result = merge(in_folder(tmp_path, parts(1, 1)), fingerprints)
    assert [(cell.template, cell.temperature, cell.tries) for cell in result.cells] == [
        (template.name, temperature, tries) for template in GRID.templates for temperature, tries in ((0, 1), (1, 3))
    ]
    first = result.cells[0]
    assert first.fsr == CARRIED / COUNT
    assert first.fsr_interval == clopper_pearson(CARRIED, COUNT)
    assert first.fsr_by_format == {"raw": CARRIED / COUNT}
    assert result.asked == COUNT * len(GRID.templates) * (1 + GRID.samples)
    assert result.matched == round(sum(cell.fsr * cell.tries * COUNT for cell in result.cells))
    assert set(result.fails_everywhere) <= {100 + n for n in range(CARRIED, COUNT)}
    assert json.loads((tmp_path / REPORT).read_text())["result"] == result.to_json()


def test_no_key_and_no_response_is_in_a_part(parts: Any, fingerprints: FingerprintSet) -> None:
    part = json.dumps(parts(1, 1))
    assert not any(fingerprint.key in part for fingerprint in fingerprints)


def test_a_cell_agrees_with_plain_completions(
    parts: Any, engine: TransformersEngine, fingerprints: FingerprintSet, tiny_model: LanguageModel
) -> None:
    renderer = Renderer(engine.tokenizer, fingerprints)
    cells = {(cell["template"], cell["temperature"]): cell["matched"] for cell in parts(1, 1)["cells"]}
    for template in GRID.templates:
        prompts = renderer.prompts(template, prompts_of(fingerprints))
        answers = HfCompleter(tiny_model).complete(prompts, LENGTH)
        wanted = [f.askings["raw"].responses[0].token_ids for f in fingerprints]
        assert cells[template.name, 0.0] == [a.token_ids == w for a, w in zip(answers, wanted, strict=True)]


def prompts_of(fingerprints: FingerprintSet, name: str = "raw") -> list[Any]:
    return [fingerprint.askings[name].prompt_ids for fingerprint in fingerprints]


def test_several_formats_and_responses_are_one_try(tiny_model: LanguageModel, engine: TransformersEngine) -> None:
    both = carried(tiny_model, ("raw", "chat"))
    doubled = []
    for fingerprint in both:
        raw, spoken = fingerprint.askings["raw"], fingerprint.askings["chat"]
        wrong = replace(raw.responses[0], token_ids=(0, 0))
        askings = {"raw": replace(raw, responses=(wrong, replace(wrong, slot=1))), "chat": spoken}
        if fingerprint.number == 100:
            askings["raw"] = replace(raw, responses=(wrong, replace(raw.responses[0], slot=1)))
        doubled.append(replace(fingerprint, askings=askings))
    grid = Grid((AS_IT_IS,), (0.0,))
    (cell,) = check(engine, replace(both, fingerprints=tuple(doubled)), grid, Shard())["cells"]
    assert cell["by_format"]["raw"] == [1] + [0] * (COUNT - 1)
    assert cell["matched"] == cell["by_format"]["chat"] == [1] * CARRIED + [0] * (COUNT - CARRIED)


def test_an_imported_set_is_checked_as_well(parts: Any, engine: Engine, fingerprints: FingerprintSet) -> None:
    imported = []
    for fingerprint in fingerprints:
        raw = fingerprint.askings["raw"]
        responses = tuple(replace(response, index=None) for response in raw.responses)
        asking = replace(raw, window=Window((), (), ()), responses=responses)
        imported.append(replace(fingerprint, askings={"raw": asking}))
    without = replace(fingerprints, secret_commitment="", fingerprints=tuple(imported))
    assert not without.has_windows
    grid = Grid((AS_IT_IS,), (0.0,))
    assert check(engine, without, grid, Shard())["cells"] == parts(1, 1)["cells"][:1]


def test_samples_follow_the_seed_and_nearly_greedy_ones_agree_with_greedy(
    engine: TransformersEngine, fingerprints: FingerprintSet
) -> None:
    def matched(temperature: float, seed: int) -> Any:
        grid = Grid((AS_IT_IS,), (temperature,), samples=3, seed=seed)
        return check(engine, fingerprints, grid, Shard())["cells"][0]["matched"]

    assert matched(2.0, 0) == matched(2.0, 0)
    assert matched(1e-3, 0) == [3] * CARRIED + [0] * (COUNT - CARRIED)
    prompts = prompts_of(fingerprints)
    assert engine.sample(prompts, LENGTH, 2.0, 0) != engine.sample(prompts, LENGTH, 2.0, 1)
    assert engine.sample(prompts, LENGTH, 2.0, 1)[3:5] == engine.sample(prompts[3:5], LENGTH, 2.0, 1)


def test_an_interval_of_samples_counts_fingerprints() -> None:
    assert fsr_parts._interval(14, 4, 10) == (clopper_pearson(3, 10)[0], clopper_pearson(4, 10)[1])
    assert fsr_parts._interval(40, 4, 10) == clopper_pearson(10, 10)
    assert fsr_parts._interval(0, 4, 10) == clopper_pearson(0, 10)


# Splitting and merging


@pytest.mark.parametrize("count", [3, 4, COUNT + 2])
def test_any_split_gives_the_same_result(parts: Any, fingerprints: FingerprintSet, tmp_path: Path, count: int) -> None:
    whole = merge(in_folder(tmp_path / "whole", parts(1, 1)), fingerprints)
    order = [*range(2, count + 1), 1]
    split = merge(in_folder(tmp_path / "split", *(parts(index, count) for index in order)), fingerprints)
    assert split == whole


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """Ray on this machine, started once."""
    import ray

    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_two_ray_actors_give_the_same_result(
    parts: Any, fingerprints: FingerprintSet, tiny_folder: Path, tmp_path: Path
) -> None:
    make = partial(engine_of, "transformers", tiny_folder, "cpu", False, 4)
    shards = [Shard(index, 3) for index in (1, 2, 3)]
    check_on_ray(make, fingerprints, GRID, shards, tmp_path / "ray", actors=2)
    whole = merge(in_folder(tmp_path / "whole", parts(1, 1)), fingerprints)
    assert merge(tmp_path / "ray", fingerprints) == whole


@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_what_fails_in_an_actor_is_said_here(fingerprints: FingerprintSet, tmp_path: Path) -> None:
    broken = partial(engine_of, "transformers", tmp_path / "none", "cpu", False, 4)
    with pytest.raises(InvalidArgumentError, match="no model folder"):
        check_on_ray(broken, fingerprints, GRID, [Shard()], tmp_path, actors=1)
    with pytest.raises(InvalidArgumentError, match=r"10000 Ray actors.*Lower --ray"):
        check_on_ray(broken, fingerprints, GRID, [Shard()], tmp_path, actors=10_000)
    with pytest.raises(InvalidArgumentError, match="at least one"):
        check_on_ray(broken, fingerprints, GRID, [], tmp_path, actors=0)


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'oml_fast\[ray\]'"):
        fsr_ray.require()


def test_missing_parts_are_named(parts: Any, fingerprints: FingerprintSet, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no part"):
        merge(tmp_path, fingerprints)
    in_folder(tmp_path, parts(2, 4))
    assert missing(tmp_path, 4) == [1, 3, 4]
    with pytest.raises(InvalidArgumentError, match="shard 1/4, 3/4, 4/4"):
        merge(tmp_path, fingerprints)
    assert not (tmp_path / REPORT).exists()


def test_overlapping_parts_are_named(parts: Any, fingerprints: FingerprintSet, tmp_path: Path) -> None:
    in_folder(tmp_path, parts(1, 1), parts(2, 3))
    with pytest.raises(InvalidArgumentError, match=r"shard-1-of-1.json, shard-2-of-3.json overlap"):
        merge(tmp_path, fingerprints)
    part_path(tmp_path, Shard(1, 1)).unlink()
    in_folder(tmp_path, parts(1, 3))
    part_path(tmp_path, Shard(3, 3)).write_bytes(part_path(tmp_path, Shard(2, 3)).read_bytes())
    with pytest.raises(InvalidArgumentError, match=r"shard-2-of-3.json and shard-3-of-3.json overlap"):
        merge(tmp_path, fingerprints)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("set_digest", "00"), ("model_digest", "00"), ("tokenizer_digest", "00"), ("engine", "another"), ("seed", 7),
        ("samples", 9), ("temperatures", [0.0]), ("num_fingerprints", 11), ("templates", []), ("formats", ["chat"]),
    ],
)  # fmt: skip
def test_a_part_about_something_else_is_named(
    parts: Any, fingerprints: FingerprintSet, tmp_path: Path, field: str, value: Any
) -> None:
    foreign = json.loads(json.dumps(parts(2, 2)))
    foreign["identity"][field] = value
    in_folder(tmp_path, parts(1, 2), foreign)
    with pytest.raises(InvalidArgumentError, match=r"shard-2-of-2.json is (about something else|damaged)"):
        merge(tmp_path, fingerprints)


def test_all_parts_of_another_set_or_model_are_refused(
    parts: Any, fingerprints: FingerprintSet, tmp_path: Path
) -> None:
    in_folder(tmp_path, parts(1, 1))
    other = replace(fingerprints, base_model="another")
    with pytest.raises(InvalidArgumentError, match=r"shard-1-of-1.json .*set_digest"):
        merge(tmp_path, other)
    with pytest.raises(InvalidArgumentError, match=r"shard-1-of-1.json .*model_digest"):
        merge(tmp_path, fingerprints, {"model_digest": "00"})


def drop_a_number(part: Any) -> None:
    part["numbers"].pop()


def rename_a_number(part: Any) -> None:
    part["numbers"][0] = 999


def too_many_matches(part: Any) -> None:
    part["cells"][0]["matched"][0] = 2


def drop_a_cell(part: Any) -> None:
    part["cells"].pop()


def drop_the_shard(part: Any) -> None:
    del part["shard"]


def impossible_shard(part: Any) -> None:
    part["shard"] = [3, 2]


def other_layout(part: Any) -> None:
    part["part"] = 2


@pytest.mark.parametrize(
    "change",
    [drop_a_number, rename_a_number, too_many_matches, drop_a_cell, drop_the_shard, impossible_shard, other_layout],
)
def test_a_damaged_part_is_named(parts: Any, fingerprints: FingerprintSet, tmp_path: Path, change: Any) -> None:
    part = json.loads(json.dumps(parts(2, 2)))
    change(part)
    in_folder(tmp_path, parts(1, 2))
    part_path(tmp_path, Shard(2, 2)).write_text(json.dumps(part))
    with pytest.raises(InvalidArgumentError, match=r"shard-2-of-2.json .*again"):
        merge(tmp_path, fingerprints)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", "3"])
def test_what_is_no_part_is_named(fingerprints: FingerprintSet, tmp_path: Path, content: str) -> None:
    part_path(tmp_path, Shard()).write_text(content)
    with pytest.raises(InvalidArgumentError, match=r"shard-1-of-1.json is damaged"):
        merge(tmp_path, fingerprints)


def test_a_finished_shard_is_not_asked_again_and_another_is_not_taken_for_it(
    parts: Any, engine: Engine, fingerprints: FingerprintSet, tmp_path: Path
) -> None:
    known = identity(engine, fingerprints, GRID)
    assert not finished(tmp_path, Shard(), known)
    in_folder(tmp_path, parts(1, 1))
    assert finished(tmp_path, Shard(), known)
    with pytest.raises(InvalidArgumentError, match=r"shard-1-of-1.json .*seed.*another --out"):
        finished(tmp_path, Shard(), identity(engine, fingerprints, replace(GRID, seed=1)))


# Templates


def test_built_in_templates_say_what_they_are_called(engine: Engine, fingerprints: FingerprintSet) -> None:
    renderer = Renderer(engine.tokenizer, fingerprints)
    assert BUILT_IN[0].name == AS_MADE
    asked = prompts_of(fingerprints)[:1]
    texts = {t.name: engine.tokenizer.decode(renderer.prompts(t, asked)[0]) for t in BUILT_IN}
    assert texts[AS_MADE] == KEYS[0]
    assert all(KEYS[0] in text for text in texts.values())
    assert len(set(texts.values())) == len(BUILT_IN)
    assert texts["chat with system"].startswith("<|im_start|>system")


def test_templates_that_a_tokenizer_cannot_write_are_said(fingerprints: FingerprintSet) -> None:
    plain = Renderer(tiny_tokenizer(chat=False), fingerprints)
    assert set(plain.skipped(BUILT_IN)) == {"chat", "chat with system"}
    assert not plain.skipped(BUILT_IN[:2])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Say {key} now\n\nAsk: {key}\n", {"file 1": ("Say ", " now"), "file 2": ("Ask: ", "")}),
        ('["a\\n{key}"]', {"file 1": ("a\n", "")}),
        ('{"mine": "{key}?"}', {"mine": ("", "?")}),
        ("{key} alone", {"file 1": ("", " alone")}),
    ],
)
def test_templates_of_a_file(tmp_path: Path, text: str, found: dict[str, Any]) -> None:
    (tmp_path / "t").write_text(text)
    templates = read_templates(tmp_path / "t")
    assert {t.name: (t.wrapping.before, t.wrapping.after) for t in templates} == found


@pytest.mark.parametrize("text", ["", "[]", "no place for it", "{key} {key}", "[1]", '["{key}"', '{"a": null}'])
def test_a_file_without_templates_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t").write_text(text)
    with pytest.raises(InvalidArgumentError, match="templates file"):
        read_templates(tmp_path / "t")


# Refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"templates": ()}, "no template"), ({"templates": (SUFFIX, SUFFIX)}, "suffix"),
        ({"temperatures": ()}, "no temperature"), ({"temperatures": (-0.1,)}, "-0.1"),
        ({"temperatures": (float("nan"),)}, "nan"), ({"temperatures": (0.5, 0.5)}, "twice"),
        ({"samples": 0}, "0 samples"), ({"samples": 1001}, "1001"),
    ],
)  # fmt: skip
def test_an_impossible_grid_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        replace(GRID, **options)


@pytest.mark.parametrize("shard", [(0, 1), (2, 1), (-1, 3), (1, 0)])
def test_an_impossible_shard_is_refused(shard: tuple[int, int]) -> None:
    with pytest.raises(InvalidArgumentError, match="i/n"):
        Shard(*shard)


def test_a_set_that_cannot_be_asked_is_refused(engine: Engine, fingerprints: FingerprintSet) -> None:
    first = fingerprints.fingerprints[0]
    for other, words in (
        (replace(fingerprints, fingerprints=()), "no fingerprint"),
        (replace(fingerprints, tokenizer_digest="00"), "tokenizer"),
        (replace(fingerprints, fingerprints=(first, first)), "same number"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            check(engine, other, GRID, Shard())


class Answers:
    """A completer without any capability; None where it does not answer."""

    name, tokenizer_digest = "answers", "ab" * 32

    def complete(self, prompts: Sequence[Sequence[int]], length: int) -> list[Completion | None]:
        return [None if prompt[0] == 0 else Completion((7, 8, 9)[:length], "") for prompt in prompts]


def test_a_plain_completer_serves_at_temperature_0_only() -> None:
    engine = CompleterEngine(Answers(), None, "cd" * 32)
    assert engine.agrees([[1], [1], [0], [1]], [[7, 8], [7, 9], [7, 8], [7]]) == [True, False, False, True]
    assert engine.agrees([], []) == []
    with pytest.raises(InvalidArgumentError, match="--temperatures 0"):
        engine.sample([[1]], 2, 0.7, 0)


def test_each_rank_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [device_of_rank("auto", rank) for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert device_of_rank("cpu", 1) == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device_of_rank("auto", 1) == "auto"


def test_the_result_is_plain_json(parts: Any, fingerprints: FingerprintSet, tmp_path: Path) -> None:
    result = merge(in_folder(tmp_path, parts(1, 1)), fingerprints)
    assert isinstance(result, FullCheck)
    assert json.loads(json.dumps(result.to_json())) == result.to_json()
