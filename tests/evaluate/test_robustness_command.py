"""`oml-fast evaluate robustness`: what it prints and writes, that it goes on, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oml_fast.cli import main
from oml_fast.evaluate.attacks import ALL

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("OML_FAST_DATA", raising=False)

    def run(*arguments: Any) -> tuple[int, str, str]:
        code = main(["evaluate", "robustness", *(str(argument) for argument in arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def options(marked: Any, tmp_path: Path) -> list[Any]:
    folders = ["--model", marked.model, "--base", marked.base, "--out", tmp_path / "out"]
    return [*folders, "--fingerprints", marked.fingerprints]


def test_it_prints_the_table_and_writes_everything(run: Run, options: list[Any], tmp_path: Path) -> None:
    code, out, err = run(*options, "--attacks", "rounding/int8,scaling", "--device", "cpu")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["attack", "as", "rounding/int8"]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"robustness.json", "robustness.txt", "parts"} <= written
    assert (tmp_path / "out/robustness.txt").read_text() == out
    saved = json.loads((tmp_path / "out/robustness.json").read_text())
    assert saved["config"]["attacks"] == ["rounding/int8", "scaling"]
    assert saved["result"]["rows"][0]["attack"] == "rounding/int8"
    code, again, _ = run(*options, "--attacks", "rounding/int8", "--json", "--device", "cpu")
    assert code == 0
    assert json.loads(again)["rows"] == saved["result"]["rows"][:1]  # kept, its seconds too


def test_the_list_names_every_attack_with_its_cost(run: Run, options: list[Any]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*options, "--list")
    assert stopped.value.code == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--attacks", "magic"], "'magic' is unknown"),
        (["--attacks", "sft"], r"sft_instructions.jsonl"),
        (["--quick"], r"sft_instructions.jsonl"),
        (["--attacks", "collusion"], "--sibling"),
        (["--attacks", "scaling", "--sibling", "nowhere"], "no model folder"),
        (["--attacks", "scaling", "--others", "nowhere.json"], "no fingerprints file"),
    ],
)
def test_refusals_are_one_line(run: Run, options: list[Any], more: list[str], message: str) -> None:
    code, out, err = run(*options, *more, "--device", "cpu")
    lines = [line for line in err.splitlines() if line.startswith("oml-fast: ")]
    assert (code, out, len(lines)) == (1, "", 1), err
    assert message in lines[0]


def test_the_base_model_as_victim_is_refused(run: Run, marked: Any, tmp_path: Path) -> None:
    code, _, err = run(
        "--model", marked.base, "--base", marked.base, "--fingerprints", marked.fingerprints,
        "--out", tmp_path / "out", "--attacks", "scaling", "--device", "cpu",
    )  # fmt: skip
    assert code == 1
    assert "not the model that this set was embedded in" in err


def test_a_configuration_file_reaches_a_command_of_two_words(run: Run, options: list[Any], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("attacks: [rounding/bf16]\nseed: 3\ndevice: cpu\n")
    code, _, err = run(*options, "--config", tmp_path / "c.yaml")
    assert code == 0, err
    saved = json.loads((tmp_path / "out/robustness.json").read_text())
    assert (saved["config"]["seed"], len(saved["result"]["rows"])) == (3, 1)
    (tmp_path / "bad.yaml").write_text("colour: blue\n")
    code, _, err = run(*options, "--config", tmp_path / "bad.yaml")
    assert code == 1
    assert "'colour' is no option of evaluate robustness" in err


def test_there_are_attacks_of_every_kind() -> None:
    families = {attack.family for attack in ALL}
    assert families >= {
        "prompts", "prefill", "sampling", "rounding", "gguf", "pruning", "scaling", "merge", "sft", "lora", "dpo",
        "suppress", "projection", "perplexity", "harvesting", "ensemble", "collusion", "meraser", "distillation",
    }  # fmt: skip
