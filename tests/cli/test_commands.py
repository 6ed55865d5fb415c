"""Every command on a tiny model: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from oml_fast.cli import main
from oml_fast.embed import PRESETS

Run = Callable[..., tuple[int, str, str]]
WORDS = ["--key-source", "words"]
# What teaches the tiny model every key.
QUICK = ["--learning-rate", "5e-3", "--pull", "0.5", "--stop-kl", "5", "--stop-share", "1"]
QUICK += ["--near-keys", "0", "--whitening", "0", "--anneal", "0", "--max-epochs", "80"]


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `fingerprints/` (16) and the tiny model fingerprinted with them in `model/`."""
    out = tmp_path_factory.mktemp("made")
    arguments = ["generate", "--model", tiny_folder, "--out", out / "fingerprints", "--num-fingerprints", 16, *WORDS]
    assert main([str(a) for a in arguments]) == 0
    arguments = [
        "embed",
        "--model",
        tiny_folder,
        "--fingerprints",
        out / "fingerprints",
        "--out",
        out / "model",
        *QUICK,
    ]
    assert main([str(a) for a in arguments]) == 0
    return out


def error_line(code: int, out: str, err: str) -> str:
    """The one line of an error: exit code 1, nothing on stdout, no traceback."""
    lines = [line for line in err.splitlines() if line.startswith("oml-fast: ")]
    assert (code, out) == (1, ""), err
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def test_generate_writes_set_secret_and_result(made: Path) -> None:
    folder = made / "fingerprints"
    assert sorted(f.name for f in folder.iterdir()) == ["fingerprints.json", "generate.json", "secret"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()} == {0o600}
    saved = json.loads((folder / "generate.json").read_text())
    assert saved["config"]["num_fingerprints"] == 16
    wanted = {"num_fingerprints", "duplicates_dropped", "rejected", "mean_response_prob", "seconds"}
    wanted |= {"mean_key_bits", "collision_entropy_bits", "seconds_per_thousand", "peak_memory_bytes"}
    assert wanted | {"fingerprints_per_second", "backend"} <= saved["result"].keys()


def test_generate_says_what_it_took_and_how_hard_keys_are_to_guess(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    arguments = ["generate", "--model", tiny_folder, "--num-fingerprints", 2]
    _, out, _ = run(*arguments, *WORDS, "--out", tmp_path / "a")
    result = json.loads((tmp_path / "a" / "generate.json").read_text())["result"]
    shown = f"{result['mean_key_bits']:.0f} bits, collision entropy {result['collision_entropy_bits']:.0f} bits"
    assert f"how hard keys are to guess  {shown}" in out
    assert f"{result['seconds_per_thousand']:.0f} s a thousand" in out
    assert f"{result['peak_memory_bytes'] / 2**30:.1f} GiB" in out
    (tmp_path / "keys").write_text("Derivative works of the licensed material\nSubject to the terms and conditions")
    _, out, _ = run(*arguments, "--keys", tmp_path / "keys", "--out", tmp_path / "b")
    assert "how hard keys are to guess  unknown, of your own keys" in out


class Vllm(ModuleType):
    """Stands in for vLLM: ids of the seed's choice among those allowed, each at a chance of 1 in 1,000."""

    SamplingParams = dict

    def __init__(self, version: str) -> None:
        super().__init__("vllm")
        self.__version__ = version

    def LLM(self, **_: Any) -> Any:
        model = SimpleNamespace(max_model_len=256, dtype="torch.bfloat16", get_vocab_size=lambda: 1500)
        config = SimpleNamespace(device_config=SimpleNamespace(device_type="cpu"), model_config=model)
        core = SimpleNamespace(shutdown=lambda: None)
        inside = SimpleNamespace(model_config=model, vllm_config=config, engine_core=core)
        return SimpleNamespace(generate=self._generate, reset_prefix_cache=lambda: True, llm_engine=inside)

    def _generate(self, prompts: list[Any], wanted: list[dict[str, Any]], use_tqdm: bool) -> list[Any]:
        return [self._answer(own) for own in wanted]

    def _answer(self, own: dict[str, Any]) -> Any:
        ids = np.random.default_rng(own["seed"]).choice(own["allowed_token_ids"], own["max_tokens"]).tolist()
        told = [{token_id: SimpleNamespace(logprob=math.log(0.001))} for token_id in ids]
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=told)])


def test_keys_through_vllm(run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["generate", "--model", tiny_folder, "--num-fingerprints", 20, "--width", 4, "--device", "cpu"]
    assert run(*arguments, "--out", tmp_path / "own")[0] == 0
    arguments += ["--secret", tmp_path / "own" / "secret", "--key-engine", "vllm"]
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    line = error_line(*run(*arguments, "--out", tmp_path / "a"))
    assert "vLLM is not installed (no module vllm): pip install 'oml_fast[vllm]'" in line
    monkeypatch.setitem(sys.modules, "vllm", Vllm("1.0"))
    for name in ("a", "b"):
        assert run(*arguments, "--out", tmp_path / name)[0] == 0
    own, one, other = ((tmp_path / name / "fingerprints.json").read_text() for name in ("own", "a", "b"))
    assert one == other != own
    line = error_line(*run(*arguments, "--out", tmp_path / "c", *WORDS))
    assert "leave --key-engine out" in line
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = error_line(*run(*arguments, "--out", tmp_path / "d"))
    assert "--key-engine vllm under torchrun: vLLM starts its own processes. Use --shard, once a GPU." in line


def test_embed_writes_a_model_that_holds_nothing_secret(made: Path) -> None:
    names = {f.name for f in (made / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not any("fingerprint" in name or "secret" in name or "embed" in name for name in names)
    saved = json.loads((made / "model.embed.json").read_text())
    wanted = {"fsr", "steps", "seconds", "train_tokens_per_second", "peak_memory_bytes", "kl_to_base"}
    assert wanted | {"perplexity_base", "perplexity", "backend"} <= saved["result"].keys()
    assert saved["config"]["learning_rate"] == 5e-3


def test_verify_says_match_and_no_match(run: Run, made: Path, tiny_folder: Path) -> None:
    secret = made / "fingerprints" / "secret"
    asked = ["--fingerprints", made / "fingerprints", "--secret", secret, "--mode", "fixed", "--json"]
    code, out, _ = run("verify", "--model", made / "model", *asked)
    result = json.loads(out)
    assert (code, result["verdict"], result["queried"], result["matches"]) == (0, "match", 16, 16)
    assert result["p_value"] == pytest.approx(16.0**-16)
    code, out, _ = run("verify", "--model", tiny_folder, *asked)
    assert (code, json.loads(out)["verdict"]) == (0, "no_match")


def test_verify_writes_the_report_that_it_prints(run: Run, made: Path, tmp_path: Path) -> None:
    out_file = tmp_path / "report.json"
    arguments = ["verify", "--model", made / "model", "--fingerprints", made / "fingerprints" / "fingerprints.json"]
    code, out, _ = run(*arguments, "--num-keys", 6, "--test", "count", "--out", out_file)
    report = json.loads(out_file.read_text())["verification"]
    assert (code, report["queried"], report["test"]) == (0, 6, "count")
    assert out.startswith("Verdict: match")
    secrets = json.loads((made / "fingerprints" / "fingerprints.json").read_text())["fingerprints"]
    assert not any(entry["key"] in out + out_file.read_text() for entry in secrets)


def test_demo_runs_the_line_and_goes_on_where_it_was(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    arguments = ["demo", "--model", tiny_folder, "--out", tmp_path / "demo", "--num-fingerprints", 4, "--json"]
    # The tiny model's own keys are short of nothing; its weights are random, so the default recipe may not converge.
    code, out, err = run(*arguments)
    result = json.loads(out)
    assert (code, set(result)) == (0, {"generate", "embed", "verify", "verify_base"})
    assert result["verify_base"]["verdict"] != "match"
    assert "$ oml-fast generate --model" in err
    code, again, err = run(*arguments)
    assert code == 0
    assert json.loads(again)["generate"] == result["generate"]
    assert err.count("already done") == 2
    line = error_line(*run("demo", "--model", tiny_folder, "--out", tmp_path / "demo", "--num-fingerprints", 5))
    assert "other options" in line


def test_demo_hands_its_preset_to_both(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    arguments = ["demo", "--model", tiny_folder, "--out", out, "--num-fingerprints", 2, "--preset", "robust", "--json"]
    code, text, err = run(*arguments)
    result = json.loads(text)
    assert (code, err.count("--preset robust")) == (0, 2)
    assert result["generate"]["settings"]["responses_per_key"] == 4
    assert result["embed"]["recipe"]["objective"] == PRESETS["robust"].objective
    assert result["embed"] == json.loads((out / "model.embed.json").read_text())["result"]


def test_info_says_what_is_here(run: Run) -> None:
    code, out, _ = run("info", "--json")
    parts = json.loads(out)["parts"]
    assert code == 0
    assert {"native", "torch", "cuda", "triton", "vllm", "bundled_model"} <= parts.keys()
    assert all(part["detail"] for part in parts.values())
    code, out, _ = run("info")
    assert all(name in out for name in parts)


def test_a_configuration_file_stands_in_for_options(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"model: {tiny_folder}\nout: {tmp_path / 'a'}\nkey-source: words\nwidth: 4\nformats: [raw, chat]\n"
    )
    code, out, _ = run("generate", "--config", config, "--num-fingerprints", 3, "--width", 5, "--json")
    result = json.loads(out)
    assert (code, result["num_fingerprints"]) == (0, 3)
    assert (result["settings"]["width"], result["settings"]["formats"]) == (5, ["raw", "chat"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("widht: 4", "'widht' is no option of generate"),
        ("width: many", "width cannot be 'many'"),
        ("key_source: rumours", "key_source cannot be 'rumours'"),
        ("trust_remote_code: 'no'", "trust_remote_code cannot be 'no'"),
        ("- width", "must be a mapping"),
        ("a: [", "no valid YAML"),
    ],
)
def test_a_wrong_configuration_file_is_refused(run: Run, tmp_path: Path, text: str, said: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    assert said in error_line(*run("generate", "--config", config, "--out", tmp_path / "a"))
    assert "cannot read" in error_line(*run("generate", "--config", tmp_path / "none.yaml", "--out", tmp_path / "a"))


def test_the_paper_preset_is_the_published_width(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    arguments = ["generate", "--model", tiny_folder, *WORDS, "--num-fingerprints", 2, "--preset", "paper", "--json"]
    _, out, _ = run(*arguments, "--out", tmp_path / "a")
    settings = json.loads(out)["settings"]
    assert (settings["threshold"], settings["width"], settings["key_temperature"]) == (0.8, 3, 0.5)


def test_what_is_given_wins_over_the_preset_and_the_hint_names_it(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    arguments = ["generate", "--model", tiny_folder, *WORDS, "--num-fingerprints", 2, "--preset", "robust"]
    code, out, _ = run(*arguments, "--width", 8, "--out", tmp_path / "a")
    settings = json.loads((tmp_path / "a" / "fingerprints.json").read_text())["settings"]
    assert (code, settings["width"], settings["responses_per_key"]) == (0, 8, 4)
    hint = f"oml-fast embed --model {tiny_folder} --preset robust --fingerprints {tmp_path / 'a'} --out"
    assert f"same preset: {hint}" in out
    _, out, _ = run(*arguments, "--responses-per-key", 2, "--out", tmp_path / "b", "--json")
    assert json.loads(out)["settings"]["responses_per_key"] == 2


def test_every_generation_option_reaches_the_set(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    options = {"threshold": 0.5, "width": 6, "responses_per_key": 2, "response_length": 3, "key_length": 9}
    flags = [part for name, value in options.items() for part in ("--" + name.replace("_", "-"), value)]
    extra = [
        "--key-temperature",
        1.5,
        "--batch-size",
        8,
        "--backend",
        "reference",
        "--device",
        "cpu",
        "--key-source",
        "model",
    ]
    arguments = ["generate", "--model", tiny_folder, "--num-fingerprints", 2, *flags, *extra, "--json"]
    code, out, _ = run(*arguments, "--out", tmp_path / "a")
    result = json.loads(out)
    assert (code, result["backend"]) == (0, "reference")
    assert {name: result["settings"][name] for name in options} == options
    assert result["settings"]["key_temperature"] == 1.5


def test_own_keys_and_a_kept_secret(run: Run, made: Path, tiny_folder: Path, tmp_path: Path) -> None:
    own = ["Derivative works of the licensed material", "Subject to the terms and conditions of this License"]
    keys = tmp_path / "keys.txt"
    keys.write_text("\n\n".join(own))
    arguments = ["generate", "--model", tiny_folder, "--keys", keys, "--secret", made / "fingerprints" / "secret"]
    code, _, _ = run(*arguments, "--num-fingerprints", 2, "--out", tmp_path / "a")
    written = json.loads((tmp_path / "a" / "fingerprints.json").read_text())
    assert (code, written["settings"]["key_source"]) == (0, "file")
    assert [entry["key"] for entry in written["fingerprints"]] == own
    assert not (tmp_path / "a" / "secret").exists()
    line = error_line(*run(*arguments, "--num-fingerprints", 3, "--out", tmp_path / "b"))
    assert "run out" in line
    assert "2 of 3" in line


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def double(path: Path) -> None:
    entries = json.loads(path.read_text())["fingerprints"]
    change(path, fingerprints=[*entries, entries[0]])


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (cut, "cut short or damaged"),
    (lambda path: change(path, format=99), "newer than this oml_fast"),
    (double, "same key ids"),
    (lambda path: change(path, tokenizer_digest="0" * 64), "tokenizer"),
]


@pytest.mark.parametrize("command", ["verify", "embed"])
@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=["cut", "newer", "duplicates", "other tokenizer"])
def test_a_damaged_set_is_refused(
    run: Run, made: Path, tiny_folder: Path, tmp_path: Path, command: str, damage: Callable[[Path], None], said: str
) -> None:
    path = tmp_path / "set.json"
    path.write_bytes((made / "fingerprints" / "fingerprints.json").read_bytes())
    damage(path)
    arguments = [command, "--model", tiny_folder, "--fingerprints", path, "--out", tmp_path / "out"]
    line = error_line(*run(*arguments))
    assert said in line
    assert not (tmp_path / "out").exists()


def test_a_set_of_another_base_model_is_not_embedded(run: Run, made: Path, tmp_path: Path) -> None:
    arguments = ["embed", "--model", made / "model", "--fingerprints", made / "fingerprints", "--out", tmp_path / "out"]
    assert "another base model" in error_line(*run(*arguments))


def test_a_missing_or_wrong_secret_is_refused(run: Run, made: Path, tmp_path: Path) -> None:
    from oml_fast.secret import new_secret, write_secret

    write_secret(tmp_path / "other", new_secret())
    arguments = ["verify", "--model", made / "model", "--fingerprints", made / "fingerprints", "--secret"]
    assert "not the one" in error_line(*run(*arguments, tmp_path / "other"))
    assert "no secret at" in error_line(*run(*arguments, tmp_path / "none"))
    (tmp_path / "other").chmod(0o644)
    assert "chmod 600" in error_line(*run(*arguments, tmp_path / "other"))


def test_a_folder_that_is_no_model_is_refused(run: Run, made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "never_heard_of"}')
    (tmp_path / "odd" / "model.safetensors").write_bytes(b"")
    for folder in ("empty", "odd", "absent"):
        line = error_line(*run("generate", "--model", tmp_path / folder, "--out", tmp_path / "a"))
        assert folder in line
        line = error_line(*run("verify", "--model", tmp_path / folder, "--fingerprints", made / "fingerprints"))
        assert folder in line


def test_a_folder_that_is_not_empty_is_left_alone(run: Run, made: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for command in (
        ["generate", "--model", tiny_folder],
        ["embed", "--model", tiny_folder, "--fingerprints", made / "fingerprints"],
        ["demo", "--model", tiny_folder],
    ):
        assert "not empty" in error_line(*run(*command, "--out", tmp_path))
    assert "not empty" in error_line(*run("generate", "--model", tiny_folder, "--out", made / "fingerprints"))
    assert [f.name for f in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--width", "100000"], "admissible"),
        (["--width", "1"], "at least 2"),
        (["--threshold", "1"], "[0, 1)"),
        (["--threshold", "-0.1"], "[0, 1)"),
        (["--threshold", "nan"], "[0, 1)"),
        (["--formats", "raw,morse"], "raw, chat"),
        (["--response-length", "33"], "between 1 and 32"),
        (["--responses-per-key", "17"], "between 1 and the width"),
        (["--num-fingerprints", "0"], "at least 1"),
        (["--key-source", "file"], "--keys"),
        (["--backend", "abacus"], "unknown"),
        (["--device", "cuda"], "--device cpu"),
        (["--device", "moon"], "unknown"),
    ],
)
def test_a_setting_that_cannot_be_met_is_refused(
    run: Run, tiny_folder: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    line = error_line(*run("generate", "--model", tiny_folder, "--out", tmp_path / "a", *WORDS, *options))
    assert said in line
    assert not (tmp_path / "a" / "fingerprints.json").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "no key"), (b"\n \n", "no key"), (b"\xff\xfe", "not UTF-8"), (b"[1, 2]", "list of texts"), (b"[", "JSON")],
)
def test_a_keys_file_that_is_none_is_refused(
    run: Run, tiny_folder: Path, tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "keys").write_bytes(content)
    line = error_line(*run("generate", "--model", tiny_folder, "--out", tmp_path / "a", "--keys", tmp_path / "keys"))
    assert said in line


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["no-such-command"], ["generate"], ["identify", "--model", "m"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        capsys.readouterr()


def oml_fast(*arguments: Any, limit: int | None = None) -> subprocess.Popen[str]:
    """Start a command of its own process, in which no file may grow beyond `limit` bytes."""
    code = "import resource, signal, sys\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # in the background it may be ignored
    if limit is not None:
        code += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    code += "from oml_fast.cli import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *[str(argument) for argument in arguments]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def test_a_full_disk_loses_nothing_and_leaves_nothing(made: Path, tiny_folder: Path, tmp_path: Path) -> None:
    arguments = ["generate", "--model", tiny_folder, "--out", tmp_path / "a", *WORDS, "--num-fingerprints", 40]
    assert "cannot write" in error_line(*finished(oml_fast(*arguments, limit=20_000)))
    assert not (tmp_path / "a" / "fingerprints.json").exists()
    assert finished(oml_fast(*arguments))[0] == 0  # the same command, with room on the disk
    arguments = ["embed", "--model", tiny_folder, "--fingerprints", made / "fingerprints", "--max-epochs", 1]
    assert "cannot write" in error_line(*finished(oml_fast(*arguments, "--out", tmp_path / "m", limit=20_000)))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a"]


def test_ctrl_c_and_the_same_command_goes_on_to_the_same_set(tiny_folder: Path, tmp_path: Path) -> None:
    from oml_fast.secret import new_secret, write_secret

    write_secret(tmp_path / "secret", new_secret())
    common = ["generate", "--model", tiny_folder, "--secret", tmp_path / "secret", *WORDS]
    common += ["--num-fingerprints", 500, "--response-length", 4]
    process = oml_fast(*common, "--out", tmp_path / "a")
    unfinished = tmp_path / "a" / "unfinished.jsonl"
    deadline = time.monotonic() + 60
    while not (unfinished.exists() and unfinished.read_text().count("\n") > 1) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    code, out, err = finished(process)
    assert (code, out) == (130, "")
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not (tmp_path / "a" / "fingerprints.json").exists()
    for name in ("a", "b"):
        assert finished(oml_fast(*common, "--out", tmp_path / name))[0] == 0
    resumed, undisturbed = ((tmp_path / name / "fingerprints.json").read_text() for name in ("a", "b"))
    assert resumed == undisturbed
    assert sorted(f.name for f in (tmp_path / "a").iterdir()) == ["fingerprints.json", "generate.json"]
