"""`oml-fast evaluate fsr`: shards by hand and by torchrun, the last of them merges, the same command goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oml_fast.cli import common, evaluate_fsr
from oml_fast.errors import InvalidArgumentError, OmlError
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.models import LanguageModel

COMMANDS = {"evaluate fsr": evaluate_fsr}
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def set_file(tiny_model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("set") / "fingerprints.json"
    generate(tiny_model, 5, bytes(32), settings=Settings(key_source="words")).fingerprints.save(path)
    return path


@pytest.fixture
def run(
    tiny_folder: Path,
    set_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """The command's JSON, or its text with `text=True`."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def run(*more: Any, text: bool = False, out: str = "out", **replaced: Any) -> Any:
        given = {"--model": tiny_folder, "--fingerprints": set_file, "--out": tmp_path / out, "--device": "cpu"}
        given |= {f"--{name}": value for name, value in replaced.items()}
        words = [word for pair in given.items() for word in pair]
        arguments = ["evaluate", "fsr", *words, "--temperatures", "0,1.0", "--samples", "2", *more]
        arguments += [] if text else ["--json"]
        options = common.parse(COMMANDS, [str(argument) for argument in arguments])
        evaluate_fsr.run(options)
        out_text = capsys.readouterr().out
        return out_text if text else json.loads(out_text)

    return run


def test_one_run_is_one_report(run: Run, tmp_path: Path) -> None:
    result = run()
    assert result == json.loads((tmp_path / "out/fsr.json").read_text())["result"]
    assert result["num_fingerprints"] == 5
    assert {cell["temperature"] for cell in result["cells"]} == {0, 1}
    assert {cell["template"] for cell in result["cells"]} >= {"as made", "chat with system"}
    shown = run(text=True)
    assert "as made, 0" in shown
    assert "fail everywhere" in shown


def test_the_last_shard_merges_and_the_result_is_that_of_one(run: Run, tmp_path: Path) -> None:
    whole = run()
    first = run("--shard", "3/3", out="split")
    assert (first["shard"], first["missing"]) == ("3/3", ["1/3", "2/3"])
    assert not (tmp_path / "split/fsr.json").exists()
    assert "still missing: 2/3" in run("--shard", "1/3", out="split", text=True)
    with pytest.raises(InvalidArgumentError, match="lacks the parts of shard 2/3"):
        run("--merge", out="split")
    assert run("--shard", "2/3", out="split") == whole
    (tmp_path / "split/fsr.json").unlink()
    merged = run("--merge", out="split")
    assert merged == whole


def test_torchrun_says_which_share_is_mine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run(out="split")["shard"] == "2/2"
    with pytest.raises(InvalidArgumentError, match="torchrun"):
        run("--ray", "2", out="split")
    with pytest.raises(InvalidArgumentError, match="torchrun"):
        run("--engine", "vllm", out="split")
    monkeypatch.setenv("RANK", "0")
    assert run(out="split") == whole


def test_the_same_command_goes_on(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--shard", "1/2")
    part = tmp_path / "out/shard-1-of-2.json"
    before = part.read_bytes()
    run("--shard", "1/2")
    assert part.read_bytes() == before
    with pytest.raises(InvalidArgumentError, match="another --out"):
        run("--shard", "1/2", "--seed", "1")
    assert part.read_bytes() == before


def test_own_templates_join_the_built_in(run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"mine": "Well: {key}"}')
    cells = run("--templates", str(tmp_path / "t.json"))["cells"]
    assert {"as made", "mine"} <= {cell["template"] for cell in cells}


def test_a_configuration_file_may_hold_a_list(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("templates: null\nseed: 3\n")
    assert run("--config", str(tmp_path / "c.yaml"))["identity"]["seed"] == 3
    options = common.parse(COMMANDS, ["evaluate", "fsr", "--model", "m", "--fingerprints", "f", "--out", "o"])
    options.temperatures = [0, 0.5]
    assert evaluate_fsr._grid(options).temperatures == (0.0, 0.5)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--shard", "4/3"], "i/n"), (["--shard", "0/3"], "i/n"), (["--shard", "one"], "1/3"),
        (["--shard", "1/"], "1/3"),
        (["--temperatures", "warm"], "warm"), (["--temperatures", "-1"], "-1"), (["--samples", "0"], "samples"),
        (["--templates", "/none"], "templates file"), (["--merge"], "no part"), (["--ray", "0"], "at least one"),
    ],
)  # fmt: skip
def test_refusals(run: Run, more: list[str], words: str) -> None:
    if "--ray" in more:
        pytest.importorskip("ray")
    with pytest.raises(OmlError, match=words) as caught:
        run(*more)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused_by_name(run: Run, set_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    replace(FingerprintSet.load(set_file), tokenizer_digest="00").save(other)
    for replaced, words in (
        ({"model": tmp_path}, "no model folder"),
        ({"fingerprints": tmp_path / "none.json"}, "no fingerprints file"),
        ({"fingerprints": other}, "tokenizer"),
        ({"out": "/dev/null/x"}, "cannot write"),
    ):
        with pytest.raises(OmlError, match=words):
            run(**replaced)


@pytest.mark.slow
@pytest.mark.ray
def test_ray_gives_the_same_report(run: Run) -> None:
    assert run("--ray", "1", out="ray") == run()
