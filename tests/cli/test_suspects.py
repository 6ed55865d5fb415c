"""Suspects from the command line and from a file: refusals before anything is asked, and one name for each."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oml_fast.cli.suspects import add_suspect_options, loaders, read_suspects, suspect, suspect_name
from oml_fast.errors import InvalidArgumentError


def parsed(*arguments: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_suspect_options(parser)
    parser.add_argument("--suspect")
    parser.add_argument("--test", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--null-model", type=Path, action="append")
    return parser.parse_args([str(each) for each in arguments])


def listed(tmp_path: Path, text: str, *arguments: Any) -> dict[str, argparse.Namespace]:
    path = tmp_path / "suspects.yaml"
    path.write_text(f"suspects:\n  - {text}\n")
    return read_suspects(path, parsed(*arguments))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "name one suspect"),
        (("--model", ".", "--endpoint", "https://host"), "name one suspect"),
        (("--model", "nowhere"), "there is no model folder nowhere"),
        (("--model", ".", "--dtype", "bfloat16"), "--dtype bfloat16 is for vLLM: .* choose --engine vllm"),
        (("--model", ".", "--engine", "vllm", "--device", "cpu"), "--device cpu is for transformers: .* Leave"),
        (("--endpoint", "host:8000"), "give a URL"),
        (("--endpoint", "https://host", "--budget", "3"), "needs the prices"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        suspect(parsed(*arguments), [])


def test_no_suspect_has_no_name() -> None:
    with pytest.raises(InvalidArgumentError, match="name one suspect"):
        suspect_name(parsed())


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_of_none_is_refused(tiny_folder: Path, batch_size: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"a batch of {batch_size} prompts is none"):
        suspect(parsed("--model", tiny_folder, "--device", "cpu", "--batch-size", batch_size), [])


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What VllmCompleter is given, in place of an engine."""
    given: list[dict[str, Any]] = []

    def stand_in(model: Path, **options: Any) -> SimpleNamespace:
        given.append({"model": model, **options})
        return SimpleNamespace()

    monkeypatch.setattr("oml_fast.serving.VllmCompleter", stand_in)
    return given


def test_vllm_gets_its_options(engine: list[dict[str, Any]], tmp_path: Path) -> None:
    suspect(parsed("--model", tmp_path, "--engine", "vllm"), [])
    words = ("--dtype", "float16", "--tensor-parallel-size", 2, "--trust-remote-code")
    suspect(parsed("--model", tmp_path, "--engine", "vllm", *words), [])
    plain: dict[str, Any] = {"dtype": "auto", "tensor_parallel_size": 1, "trust_remote_code": False}
    assert engine[0] == plain | {"model": tmp_path}
    assert engine[1] == {
        "model": tmp_path, "dtype": "float16", "tensor_parallel_size": 2, "trust_remote_code": True,
    }  # fmt: skip


def test_the_device_is_the_null_models_where_vllm_runs_the_suspect(
    engine: list[dict[str, Any]], tmp_path: Path
) -> None:
    suspect(parsed("--model", tmp_path, "--engine", "vllm", "--device", "cpu", "--null-model", tmp_path), [])
    assert "device" not in engine[0]


def test_one_folder_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    spellings = ("model", "./model/", "link", "model/../model", tmp_path / "model")
    assert {suspect_name(parsed("--model", each)) for each in spellings} == {str((tmp_path / "model").resolve())}
    assert suspect_name(parsed("--model", "model", "--suspect", "leak")) == "leak"
    assert suspect_name(parsed("--endpoint", "https://host", "--endpoint-model", "m")) == "m at https://host/v1"


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{test: rank, model: .}", "'test' is no option of a suspect; it has .*batch_size"),
        ("{out: q, model: .}", "'out' is no option of a suspect"),
        ("{suspect: a, model: .}", "'suspect' is no option of a suspect"),
        ("{command: verify, model: .}", "'command' is no option"),
        ("{config: x, model: .}", "'config' is no option"),
        ("{help: true, model: .}", "'help' is no option"),
        ("{1: a, model: .}", "'1' is no option"),
        ("{model: [1]}", r"model cannot be \[1\]"),
        ("{model: 1}", "model cannot be 1: .* text in quotes"),
        ("{name: [a], model: .}", r"name cannot be \['a'\]"),
        ("{name: 5, model: .}", "name cannot be 5"),
        ("{model: ., engine: nope}", "engine cannot be 'nope'"),
        ("{model: ., engine: null}", "engine cannot be None"),
        ("{model: ., batch_size: x}", "batch_size cannot be 'x'"),
        ("{model: ., batch_size: 2.5}", "batch_size cannot be '2.5'"),
        ("{model: ., batch_size: true}", "batch_size cannot be 'True'"),
        ("{model: ., batch_size: [3]}", r"batch_size cannot be \[3\]"),
        ("{model: ., batch_size: null}", "batch_size cannot be None"),
        ("{model: ., trust_remote_code: 'yes'}", "trust_remote_code cannot be 'yes'"),
        ("{model: ., device: 0}", "device cannot be 0"),
        ("{model: ., dtype: {a: b}}", "dtype cannot be"),
        ("{endpoint: 5}", "endpoint cannot be 5"),
        ("{endpoint: 'https://host', endpoint-kind: responses}", "endpoint-kind cannot be 'responses'"),
        ("{endpoint: 'https://host', retries: x}", "retries cannot be 'x'"),
        ("{endpoint: 'https://host', retries: null}", "retries cannot be None"),
        ("{endpoint: 'https://host', retries: -1}", "suspect 1: retries -1"),
        ("{endpoint: 'https://host', timeout: soon}", "timeout cannot be 'soon'"),
        ("{endpoint: 'https://host', header: {A: top-secret}}", "header cannot be this"),
        ("{endpoint: 'https://host', header: [5, top-secret]}", "header cannot be this"),
        ("{endpoint: 'https://host', proxy: [top-secret]}", "proxy cannot be this"),
        ("{endpoint: 'https://host', extra_body: [top-secret]}", "extra_body cannot be this"),
        ("{name: a}", "suspect 'a': name one suspect"),
        ("{batch_size: 3}", "suspect 1: name one suspect"),
        ("{name: a, model: nowhere}", "suspect 'a': there is no model folder nowhere"),
        ("{name: a, model: ., dtype: float16}", "suspect 'a': --dtype float16 is for vLLM"),
        ("{name: a, model: ., engine: vllm, device: cpu}", "suspect 'a': --device cpu is for transformers"),
    ],
)
def test_what_a_file_cannot_say(tmp_path: Path, entry: str, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says) as found:
        listed(tmp_path, entry)
    assert str(found.value).startswith(str(tmp_path / "suspects.yaml"))
    assert "top-secret" not in str(found.value)


def test_one_missing_folder_stops_all_before_the_first_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="suspect 'b': there is no model folder"):
        listed(tmp_path, f"{{name: a, model: {tmp_path}}}\n  - {{name: b, model: {tmp_path / 'none'}}}")


def test_one_folder_named_twice_is_one_suspect(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="two suspects are called"):
        listed(tmp_path, f"{{model: {tmp_path}}}\n  - {{model: {tmp_path}/../{tmp_path.name}}}")


def test_what_a_file_says_is_as_on_the_command_line(tmp_path: Path) -> None:
    entry = (
        "{name: a, endpoint: 'https://host', retries: '7', rate: 2, price_in: 1, budget: 3, timeout: 1.5, "
        "header: ['A: b'], extra-body: {seed: 0}, proxy-from-environment: true}"
    )
    told = listed(tmp_path, f"{entry}\n  - {{model: {tmp_path}, batch-size: 3, device: cpu}}", "--concurrency", 2)
    here = str(tmp_path.resolve())
    assert list(told) == ["a", here]
    words = ("--retries", 7, "--rate", 2, "--price-in", 1, "--budget", 3, "--timeout", 1.5, "--header", "A: b")
    same = parsed(
        "--endpoint", "https://host", *words, "--proxy-from-environment", "--suspect", "a", "--concurrency", 2
    )
    same.extra_body = {"seed": 0}
    assert told["a"] == same
    assert told[here] == parsed(
        "--model", tmp_path, "--batch-size", 3, "--device", "cpu", "--suspect", here, "--concurrency", 2
    )
    assert [type(told["a"].retries), type(told["a"].rate)] == [int, float]


def test_a_suspect_of_a_file_is_loaded_when_its_turn_comes(tmp_path: Path, tiny_folder: Path) -> None:
    made = loaders(listed(tmp_path, f"{{name: a, model: {tiny_folder}, device: cpu}}"), {})
    assert made["a"]().name == "transformers (cpu, float32)"
