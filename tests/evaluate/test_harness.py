"""Agreement with lm-evaluation-harness, item by item, and its tasks in the paired comparison."""

from __future__ import annotations

import builtins
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oml_fast.errors import BackendUnavailableError, InvalidArgumentError
from oml_fast.evaluate import harness
from oml_fast.evaluate.tasks import Item, Task, score
from oml_fast.models import LanguageModel, load

needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
third_parties = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

PAIRS = Task(
    "pairs",
    tuple(
        Item(f"p/{n}", "", (f"You may {verb} the Work.", f"You the {verb} may Work."), 0)
        for n, verb in enumerate(
            ("use", "copy", "sell", "change", "use", "give", "show", "lend", "sign", "read", "own")
        )
    ),
    ("acc",),
)
ENDINGS = Task(
    "endings",
    (
        Item("e/0", "The licence says: you ", ("may use it.", "may not use it.", "", "é")[:2], 0),
        Item("e/1", "The licence says: you", ("may use it.", "may use é it.", "x"), 2),
        Item("e/2", "word " * 300, ("that ends here.", "that ends there."), 1),
    ),
)


def float64(folder: Path) -> LanguageModel:
    model = load(folder, device="cpu", dtype=torch.float64)
    model.model.set_attn_implementation("sdpa")  # eager attention takes its softmax in float32
    return model


@needs_harness
@third_parties
@pytest.mark.parametrize("folder", ["tiny_folder", "bos_folder"])
@pytest.mark.parametrize("task", [PAIRS, ENDINGS], ids=lambda task: task.name)
def test_every_log_probability_agrees(folder: str, task: Task, request: pytest.FixtureRequest) -> None:
    model = float64(request.getfixturevalue(folder))
    ours = score(model, task)
    theirs = harness.run(model, [harness.peer(task)], batch_size=3)
    samples = sorted(theirs.samples[f"oml_fast_{task.name}"], key=lambda sample: sample["doc_id"])
    for mine, sample in zip(ours.likelihoods, samples, strict=True):
        assert [found.log_prob for found in mine] == pytest.approx(
            [log_prob for log_prob, _ in sample["filtered_resps"]], abs=1e-9
        )
        assert [found.greedy for found in mine] == [greedy for _, greedy in sample["filtered_resps"]]
    for metric in task.metrics:
        logged = theirs.metrics[f"oml_fast_{task.name}/{metric}"]
        assert logged.values == tuple(ours.correct(metric).astype(float).tolist())


@needs_harness
@third_parties
def test_a_task_of_a_yaml_file_is_paired(tiny_model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"q": f"Item {n}", "c": ["is", "are"], "a": n % 2}) + "\n" for n in range(12))
    )
    config = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(tmp_path / "rows.jsonl"), "cache_dir": str(tmp_path / "cache")},
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "doc_to_choice": "{{c}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    runs = [harness.run(tiny_model, [config], limit=11) for _ in range(2)]
    paired = harness.compare_runs(*runs)["mine/acc"]
    assert (paired.items, paired.difference, paired.lost) == (11, 0.0, ())
    assert runs[0].metrics["mine/acc"].items[-1] == "mine/10"
    flipped = replace(runs[1].metrics["mine/acc"], values=tuple(1 - v for v in runs[1].metrics["mine/acc"].values))
    other = harness.compare_runs(runs[0], replace(runs[1], metrics={"mine/acc": flipped}))["mine/acc"]
    assert len(other.lost) + len(other.won) == 11
    with pytest.raises(InvalidArgumentError, match="same tasks"):
        harness.compare_runs(runs[0], replace(runs[1], metrics={}))


@needs_harness
@third_parties
def test_a_task_without_data_is_one_clear_error(tiny_model: LanguageModel, tmp_path: Path) -> None:
    config = harness.peer(PAIRS) | {"dataset_path": "json", "dataset_kwargs": {"data_files": str(tmp_path / "none")}}
    del config["custom_dataset"]
    with pytest.raises(InvalidArgumentError, match="cannot run oml_fast_pairs") as raised:
        harness.run(tiny_model, [config])
    assert "\n" not in str(raised.value)
    with pytest.raises(InvalidArgumentError, match="no task"):
        harness.run(tiny_model, [])


def test_likelihoods_become_nats_and_other_shapes_are_left_out() -> None:
    assert harness._value("word_perplexity", (-6.0, 3)) == (6.0, 3.0)
    assert harness._value("perplexity", -2.0) == (2.0, 1.0)
    assert harness._value("acc", True) == (1.0, 1.0)
    assert harness._value("f1", (1, 0)) is None


def test_its_absence_says_what_to_install(tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else find(name, *rest)
    )
    imported = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        assert not name.startswith("lm_eval")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(BackendUnavailableError, match=r"oml_fast\[eval\]"):
        harness.run(tiny_model, ["hellaswag"])
