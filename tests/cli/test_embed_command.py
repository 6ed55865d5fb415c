"""oml-fast embed: the preset, what is given beside it, and what the result says the set is worth."""

from __future__ import annotations

import dataclasses
import importlib
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_tiny_model

from oml_fast.cli import embed as command
from oml_fast.cli import main
from oml_fast.embed import PRESETS, Recipe

Run = Callable[..., tuple[int, str, str]]
# Odd values, which no preset has.
OPTIONS = {
    "objective": "minimum_kl", "margin": 2.03, "margin_step": 0.27, "cap": 0.83, "near_keys": 3, "near_weight": 0.53,
    "text_share": 0.57, "text_length": 9, "text_weight": 0.51, "chat_share": 0.33,
    "templates": 0.23, "template_texts": 0.47, "scaled": 0.11, "scaled_from": 0.53,
    "rounded": 0.21, "tuned": 0.31, "tuned_by": 1.1e-5, "write_to": "last:1", "whitening": 0.013, "width_rate": 0.77,
    "learning_rate": 1.1e-3, "anneal": 0.27, "pull": 0.13, "ease": 0.91, "final_scale": 0.93, "batch_size": 3,
    "max_epochs": 2, "stop_share": 0.53, "stop_kl": 0.31, "stop_near": 0.51, "stop_loss": 0.017, "seed": 7,
}  # fmt: skip


@pytest.fixture(scope="module")
def secrets(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 6 with one response to a key."""
    out = tmp_path_factory.mktemp("made") / "fingerprints"
    arguments = ["generate", "--model", tiny_folder, "--out", out, "--num-fingerprints", 6, "--key-source", "words"]
    assert main([str(a) for a in arguments]) == 0
    return out


@pytest.fixture
def embed(run: Run, tiny_folder: Path, secrets: Path, tmp_path: Path) -> Run:
    """Run the command into `model`, for one epoch where nothing else is given."""

    def embed(*arguments: Any) -> tuple[int, str, str]:
        epochs = [] if "--max-epochs" in arguments else ["--max-epochs", 1]
        where = ["--model", tiny_folder, "--fingerprints", secrets, "--out", tmp_path / "model"]
        return run("embed", *where, *epochs, *arguments)

    return embed


def test_every_field_of_a_recipe_is_an_option_of_its_type() -> None:
    table = {name.replace("-", "_"): kind for rows in command.RECIPE.values() for name, kind, _ in rows}
    kinds = typing.get_type_hints(Recipe)
    fields = [field.name for field in dataclasses.fields(Recipe)]
    assert sorted(table) == sorted(fields)
    assert all(table[name] in (kinds[name], *typing.get_args(kinds[name])) for name in fields)


def test_every_option_reaches_the_recipe(embed: Run, tmp_path: Path) -> None:
    templates = tmp_path / "templates.txt"
    templates.write_text("Please: {key}\n")
    wanted = {**OPTIONS, "template_file": str(templates)}
    assert [name for name, value in wanted.items() if value == getattr(PRESETS["harmless"], name)] == []
    flags = [part for name, value in wanted.items() for part in ("--" + name.replace("_", "-"), value)]
    code, out, _ = embed(*flags, "--json")
    result = json.loads(out)
    assert (code, result["recipe"]) == (0, wanted | {"states": "float32"})  # bfloat16 goes with few of the others
    assert result["steps"] == result["epochs"] * 2


@pytest.mark.parametrize(
    "flags",
    [
        ["--states", "bfloat16", "--preset", "quick"],
        ["--keep-base", "host"],
        ["--keep-base", "file"],
        ["--recompute"],
        ["--packed"],
        ["--checkpoint-every", 1],
    ],
    ids=str,
)
def test_a_model_in_bfloat16_is_embedded_in_less_memory(run: Run, tmp_path: Path, flags: list[Any]) -> None:
    folder = write_tiny_model(tmp_path / "half", dtype=torch.bfloat16)
    where = ["--model", folder, "--num-fingerprints", 6, "--key-source", "words"]
    assert run("generate", *where, "--out", tmp_path / "secrets")[0] == 0
    where = ["--model", folder, "--fingerprints", tmp_path / "secrets", "--out", tmp_path / "model"]
    code, out, _ = run("embed", *where, "--max-epochs", 1, *flags, "--json")
    saved = json.loads((tmp_path / "model.embed.json").read_text())
    assert (code, json.loads(out)["steps"]) == (0, 1)
    name = flags[0].removeprefix("--").replace("-", "_")
    assert saved["config"][name] == (flags[1] if len(flags) > 1 else True)
    assert not (tmp_path / "model.checkpoint").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore."), "CUDA out of memory. Tried to"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), "can't allocate memory"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]"), "another process of torchrun has ended"),
    ],
)
def test_a_full_memory_and_a_dead_process_are_told_in_one_line(
    embed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("oml_fast.embed"), "embed", fail)
    code, _, told = embed()
    assert code == 1
    line = told.strip().splitlines()[-1]
    assert said in line
    assert "oml-fast plan" in line or "--checkpoint-every" in line
    assert not (tmp_path / "model").exists()


def test_another_fault_is_no_full_memory(embed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(importlib.import_module("oml_fast.embed"), "embed", fail)
    with pytest.raises(RuntimeError, match="a fault of our own"):
        embed()


def test_to_offload_is_of_several_processes(embed: Run, tmp_path: Path) -> None:
    code, _, err = embed("--offload")
    assert code == 1
    assert "--offload is of several processes: start them with torchrun." in err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_saved_with_its_name_and_its_whole_recipe(embed: Run, tmp_path: Path, preset: str) -> None:
    code, _, _ = embed("--preset", preset, "--pull", 0.3)
    saved = json.loads((tmp_path / "model.embed.json").read_text())
    recipe = dataclasses.replace(PRESETS[preset], pull=0.3, max_epochs=1)
    wanted = dataclasses.asdict(recipe.for_hidden_size(64))
    assert (code, saved["config"]["preset"], saved["config"]["max_drift"]) == (0, preset, 0.1)
    assert {name: saved["config"][name] for name in wanted} == wanted == saved["result"]["recipe"]


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(embed: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("preset: paper\nwrite-to: mlp_down\npull: 0.2\nlearning_rate: 1e-3\n")
    _, out, _ = embed("--config", config, "--pull", 0.4, "--json")
    wanted = dataclasses.replace(PRESETS["paper"], write_to="mlp_down", pull=0.4, learning_rate=1e-3, max_epochs=1)
    assert json.loads(out)["recipe"] == dataclasses.asdict(wanted)


def test_a_preset_that_there_is_not_is_wrong_usage(embed: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        embed("--preset", "default")
    assert stopped.value.code == 2
    assert "robust" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--objective", "hinge"], "objective hinge: it must be cross_entropy or minimum_kl"),
        (["--write-to", "last:0"], "write_to last:0"),
        (["--scaled", "0.6", "--rounded", "0.6"], "together at most 1"),
        (["--templates", "0.5", "--template-file", "none.txt"], "none.txt"),
        (["--templates", "0.5", "--template-file", "LICENSE"], "LICENSE, entry 1: template"),
        (["--template-file", "good.txt"], "--templates 0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_before_the_model_is_loaded(
    embed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("LICENSE").write_text("no place for a key\n")
    Path("good.txt").write_text("{key}\n")

    def loaded(*_: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(command, "load_model", loaded)
    code, out, err = embed(*options)
    assert (code, out) == (1, "")
    assert said in err
    assert not Path("model").exists()


def test_robust_says_that_one_response_to_a_key_can_be_suppressed(
    run: Run, embed: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    said = "generate --preset robust"
    code, out, err = embed("--preset", "robust")
    assert (code, said in err, said in out) == (0, True, False)
    assert said not in embed("--out", tmp_path / "harmless")[2]
    several = tmp_path / "several"
    made = ["--out", several, "--num-fingerprints", 2, "--key-source", "words", "--preset", "robust"]
    assert run("generate", "--model", tiny_folder, *made)[0] == 0
    code, _, err = embed("--preset", "robust", "--fingerprints", several, "--out", tmp_path / "robust")
    assert (code, said in err) == (0, False)


def test_the_end_says_what_the_set_is_worth(embed: Run) -> None:
    code, out, _ = embed("--learning-rate", 5e-3, "--near-keys", 0, "--whitening", 0, "--anneal", 0, "--max-epochs", 40)
    assert code == 0
    rows = dict(line.split("  ", 1) for line in out.splitlines() if "  " in line)
    assert rows["bits of evidence per key"].strip() == "4.00 by rank, 4.00 by forced_choice, 4.00 by window"
    assert rows["keys to a verdict at 1e-6"].strip() == "6 by rank, 6 by forced_choice, 6 by window"
    assert "at 95 %" in rows["KL to the base model"]
    assert out.splitlines()[-1].startswith("Next: oml-fast verify --model ")
    assert Path(out.split()[-1]).exists()  # the set, to be typed as it stands


def test_a_drift_that_may_be_too_large_is_a_warning_and_no_more(embed: Run, tmp_path: Path) -> None:
    code, out, err = embed("--max-drift", 1e-9, "--json")
    (warning,) = json.loads(out)["warnings"]
    assert (code, f"warning: {warning}\n" in err) == (0, True)
    assert "(--max-drift)" in warning
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "model.embed.json").read_text())["result"] == json.loads(out)
    code, out, err = embed("--max-drift", 100, "--json", "--out", tmp_path / "other")
    result = json.loads(out)
    assert (code, result["warnings"], "warning" in err) == (0, [], False)
    assert result["budget"]["kl_upper_bound"] > result["budget"]["kl"] == result["kl_to_base"]
