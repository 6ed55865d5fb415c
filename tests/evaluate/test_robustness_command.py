"""`oml-fast evaluate robustness`: what it prints and writes, that it goes on, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oml_fast.cli import main
from oml_fast.evaluate import attacks
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


def test_without_a_sibling_the_whole_battery_leaves_out_what_needs_one(
    run: Run, options: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tuple(attack for attack in ALL if attack.name in ("rounding/bf16", "projection/sibling"))
    monkeypatch.setattr(attacks, "ALL", few)
    code, out, err = run(*options, "--device", "cpu", "--json")
    assert (code, [row["attack"] for row in json.loads(out)["rows"]]) == (0, ["rounding/bf16"])
    assert "left out" in err
    assert "projection/sibling" in err


def test_the_list_names_every_attack_with_its_cost(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "robustness", "--list"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [attack.name for attack in ALL]
    assert all(attack.cost in line for line, attack in zip(lines, ALL, strict=True))


def test_siblings_and_other_sets_from_the_command_line_and_from_a_file(
    run: Run, options: list[Any], marked_again: Any, tmp_path: Path
) -> None:
    shared = ["--attacks", "collusion/majority, projection/sibling", "--device", "cpu"]
    more = ["--sibling", marked_again.model, "--others", marked_again.fingerprints]
    code, _, err = run(*options, *shared, *more)
    assert code == 0, err
    saved = json.loads((tmp_path / "out/robustness.json").read_text())
    assert saved["config"]["sibling"] == [str(marked_again.model)]
    assert len(saved["result"]["specificity"]["others"]) == 1
    for value in (str(marked_again.model), f"[{marked_again.model}]"):
        (tmp_path / "c.yaml").write_text(f"sibling: {value}\nothers: [{marked_again.fingerprints}]\n")
        code, _, err = run(*options, *shared, "--config", tmp_path / "c.yaml")
        assert code == 0, err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--attacks", "magic"], "'magic' is unknown"),
        (["--attacks", "sft"], r"sft_instructions.jsonl"),
        (["--quick"], r"sft_instructions.jsonl"),
        (["--attacks", "collusion"], "--sibling"),
        (["--attacks", "scaling", "--sibling", "nowhere"], "no model folder"),
        (["--attacks", "scaling", "--others", "nowhere.json"], "no fingerprints file"),
        (["--attacks", "scaling", "--out", "/dev/null/x"], "cannot write"),
    ],
)
def test_refusals_are_one_line(run: Run, options: list[Any], more: list[str], message: str) -> None:
    code, out, err = run(*options, *more, "--device", "cpu")
    lines = [line for line in err.splitlines() if line.startswith("oml-fast: ")]
    assert (code, out, len(lines)) == (1, "", 1), err
    assert message in lines[0]


def test_the_base_model_itself_is_refused(run: Run, marked: Any, tmp_path: Path) -> None:
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


def test_the_set_itself_and_the_model_itself_are_no_others(run: Run, options: list[Any], marked: Any) -> None:
    for more, message in (
        (["--others", marked.fingerprints], "this set itself"),
        (["--sibling", marked.model], "itself"),
    ):
        code, _, err = run(*options, "--attacks", "scaling", *more, "--device", "cpu")
        assert code == 1
        assert message in err


def test_quick_in_a_file_and_attacks_on_the_line_do_not_mix(run: Run, options: list[Any], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("quick: true\n")
    code, _, err = run(*options, "--config", tmp_path / "c.yaml", "--attacks", "scaling")
    assert code == 1
    assert "choose one of them" in err
