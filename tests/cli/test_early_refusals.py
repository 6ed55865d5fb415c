"""What cannot work is refused in one line before anything is loaded, made or lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sets import SECRET, small_set

from oml_fast import files
from oml_fast.errors import OmlError
from oml_fast.secret import write_secret

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A set of 8 for no model that there is, with its secret."""
    small_set(8).save(tmp_path / "secrets" / "fingerprints.json")
    write_secret(tmp_path / "secrets" / "secret", SECRET)
    return tmp_path / "secrets"


def refusal(code: int, out: str, err: str) -> str:
    """The one line of an error: exit code 1, nothing on stdout."""
    assert (code, out) == (1, "")
    assert err.startswith("oml-fast: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num-fingerprints", 0], "0 fingerprints in batches of 64: both must be at least 1"),
        (["--num-fingerprints", -5], "both must be at least 1"),
        (["--batch-size", 0], "both must be at least 1"),
        (["--backend", "foo"], "use auto, reference, torch, native"),
        (["--model", "nowhere"], "nowhere is no model folder"),
    ],
)
def test_generate_makes_no_folder_for_what_cannot_be(run: Run, tmp_path: Path, arguments: list[Any], said: str) -> None:
    assert said in refusal(*run("generate", "--out", tmp_path / "out", *arguments))
    assert not (tmp_path / "out").exists()


def test_demo_makes_no_folder_for_a_model_that_is_not_there(run: Run, tmp_path: Path) -> None:
    assert "is no model folder" in refusal(*run("demo", "--model", tmp_path / "nowhere", "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        (["--num-keys", 0], "cannot ask 0 keys: the set has 8"),
        (["--num-keys", 9], "cannot ask 9 keys: the set has 8"),
        (["--false-positive-rate", 2], "false-positive rate 2.0: it must lie between 0 and 1"),
        (["--smallest-fsr", 0], "smallest FSR 0.0"),
        (["--miss-rate", "nan"], "miss rate nan"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "identify"])
def test_terms_are_read_before_the_suspect(
    run: Run, secrets: Path, monkeypatch: pytest.MonkeyPatch, command: str, terms: list[Any], said: str
) -> None:
    monkeypatch.setattr(f"oml_fast.cli.{command}.suspect", lambda *_: pytest.fail("the suspect was loaded"))
    sets = ["--fingerprints", secrets] if command == "verify" else ["--sets", secrets.parent]
    assert said in refusal(*run(command, *sets, "--model", "nowhere", *terms))


@pytest.mark.parametrize("value", ["-1", "nan"])
def test_a_limit_of_drift_that_is_none(run: Run, secrets: Path, tmp_path: Path, value: str) -> None:
    arguments = ["embed", "--fingerprints", secrets, "--out", tmp_path / "out", f"--max-drift={value}"]
    assert f"--max-drift {value}: a limit in nats" in refusal(*run(*arguments))


def test_two_processes_do_not_embed_into_one_folder(run: Run, secrets: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with files.claimed_folder(out):
        said = refusal(*run("embed", "--model", tiny_folder, "--fingerprints", secrets, "--out", out))
    assert "another process is at work on" in said
    assert list(out.iterdir()) == []


def test_a_full_disk_is_seen_before_training(
    run: Run, secrets: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    out = tmp_path / "out"
    said = refusal(*run("embed", "--model", tiny_folder, "--fingerprints", secrets, "--out", out))
    assert "GiB, and 0.0 GiB are free" in said
    assert not out.exists()


@pytest.mark.parametrize("value", [16.5, 16.0, True, "many"])
def test_a_whole_number_in_a_file_is_not_cut(run: Run, tmp_path: Path, value: Any) -> None:
    (tmp_path / "c.yaml").write_text(f"width: {json.dumps(value)}\n")
    said = refusal(*run("generate", "--config", tmp_path / "c.yaml", "--out", tmp_path / "out"))
    assert f"width cannot be {value!r}" in said


def test_data_that_is_not_there_was_asked_for(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    models = ["--model", tiny_folder, "--base", tiny_folder]
    quick = ["--attacks", "suppress/top-1", "--fingerprints", tmp_path, "--out", tmp_path / "out"]
    for command in (["utility"], ["robustness", *quick]):
        said = refusal(*run("evaluate", *command, *models, "--data", tmp_path / "nowhere"))
        assert "there is no data folder" in said
    assert not (tmp_path / "out").exists()


def test_data_of_the_environment_that_is_not_there_is_left_out(
    run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OML_FAST_DATA", str(tmp_path / "nowhere"))
    models = ["--model", tiny_folder, "--base", tiny_folder]
    code, out, _ = run("evaluate", "utility", *models, "--tasks", "sampled", "--limit", 2, "--json")
    assert (code, json.loads(out)["texts"]["sampled"]["kl"]) == (0, 0.0)


def test_plan_names_the_folder_and_no_hub(run: Run, tmp_path: Path) -> None:
    said = refusal(*run("plan", "--model", tmp_path / "nowhere"))
    assert "nowhere has no config.json" in said
    assert "http" not in said


def test_a_file_of_another_kind_is_no_registry(run: Run, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("notes")
    (tmp_path / "other").chmod(0o644)
    assert "if it is a registry" in refusal(*run("registry", "sets", "--registry", tmp_path / "other"))
    (tmp_path / "other").chmod(0o600)
    assert "is no SQLite file" in refusal(*run("registry", "sets", "--registry", tmp_path / "other"))


@pytest.mark.parametrize("content", ['{"a', "[" * 100_000])
def test_a_damaged_configuration_is_no_missing_tokenizer(
    run: Run, secrets: Path, tiny_folder: Path, tmp_path: Path, content: str
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "config.json").write_text(content)
    for arguments in (["verify", "--fingerprints", secrets], ["generate", "--out", tmp_path / "out"]):
        assert "config.json is damaged" in refusal(*run(*arguments, "--model", folder))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify", "--fingerprints"], "fingerprints file"),
        (["verify", "--fingerprints", "secrets", "--secret"], "is no oml-fast secret"),
        (["verify", "--fingerprints", "secrets", "--signing-key"], "is no signing key"),
        (["commit", "check", "--commitment"], "the commitment"),
    ],
)
@pytest.mark.parametrize("content", [b"{}", b'{"a": 1}', b"notes", b"\x85\x00\xff"])
def test_a_file_of_another_kind_is_called_that(
    run: Run,
    secrets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[Any],
    said: str,
    content: bytes,
) -> None:
    """Nobody is told to let nobody else read it, when it is no secret."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").write_bytes(content)
    (tmp_path / "other").chmod(0o644)
    line = refusal(*run(*arguments, "other"))
    assert said in line or "cannot be read" in line or "cannot read the secret" in line
    assert "chmod" not in line


def test_a_verdict_is_told_where_its_page_cannot_be_written(
    run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys are spent, and no file keeps the answers."""

    def full(*_: Any) -> None:
        raise OmlError("cannot write the page: No space left on device.")

    made = ["generate", "--model", tiny_folder, "--out", tmp_path / "set", "--num-fingerprints", 2]
    assert run(*made, "--key-source", "words")[0] == 0
    monkeypatch.setattr("oml_fast.report.write_page", full)
    asked = ["verify", "--model", tiny_folder, "--fingerprints", tmp_path / "set", "--html", tmp_path / "page.html"]
    code, out, err = run(*asked)
    assert (code, out) == (1, "")
    assert "of 2 keys" in err
    assert err.endswith("oml-fast: cannot write the page: No space left on device.\n")
    code, _, err = run(*asked, "--out", tmp_path / "report.json")
    assert code == 1
    assert "of 2 keys" not in err  # the answers are kept: the same command goes on with them
    assert (tmp_path / "report.json").is_file()
