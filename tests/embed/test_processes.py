"""Two processes under torchrun train what one trains, and go on after one of them was killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.models import ALONE, HfCompleter, LanguageModel, Ranks, load
from oml_fast.verify import verify

HOW = [
    *("--learning-rate", "5e-3", "--max-epochs", "4", "--batch-size", "8", "--pull", "0.3", "--stop-kl", "1e-9"),
    *("--near-keys", "1", "--templates", "0.5", "--scaled", "0.3", "--rounded", "0.2", "--tuned", "0.2"),
    *("--whitening", "0.1", "--chat-share", "0.25", "--json"),
]
OML_FAST = "import sys; from oml_fast.cli import main; sys.exit(main())"
TWO = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", sys.executable]


@pytest.fixture(scope="module")
def work(tiny_folder: Path, tiny_model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    made = generate(tiny_model, 32, bytes(range(32)), settings=Settings(key_source="words")).fingerprints
    made.save(folder / "fingerprints.json")
    return folder


def command(starter: list[str], tiny_folder: Path, work: Path, out: str, *more: str) -> list[str]:
    where = ["--model", str(tiny_folder), "--fingerprints", str(work / "fingerprints.json"), "--out", str(work / out)]
    return [*starter, "-c", OML_FAST, "embed", *where, "--device", "cpu", *HOW, *more]


def run(*arguments: object) -> dict[str, object]:
    done = subprocess.run(command(*arguments), capture_output=True, text=True)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.glob("*.safetensors")))).hexdigest()


@pytest.fixture(scope="module")
def one(tiny_folder: Path, work: Path) -> dict[str, object]:
    return run([sys.executable], tiny_folder, work, "one")


@pytest.fixture(scope="module")
def two(tiny_folder: Path, work: Path) -> dict[str, object]:
    return run(TWO, tiny_folder, work, "two", "--recompute")


def test_two_train_what_one_trains(
    tiny_folder: Path, work: Path, one: dict[str, object], two: dict[str, object]
) -> None:
    """Within rounding: where a gradient is next to nothing, its sign decides on Adam's first steps."""
    base, ours, theirs = weights(tiny_folder), weights(work / "one"), weights(work / "two")
    assert ours.keys() == theirs.keys()
    changed = sum(float((ours[name] - base[name]).square().sum()) for name in ours)
    apart = sum(float((ours[name] - theirs[name]).square().sum()) for name in ours)
    assert changed > 1
    assert apart < 1e-4 * changed
    assert two["kl_to_base"] == pytest.approx(one["kl_to_base"], rel=1e-3)
    assert {name: two[name] for name in ("fsr", "epochs", "steps", "stopped")} == {
        name: one[name] for name in ("fsr", "epochs", "steps", "stopped")
    }


def test_what_two_wrote_is_a_model_for_everybody(work: Path, two: dict[str, object]) -> None:
    made = FingerprintSet.load(work / "fingerprints.json")
    assert two["fsr"] > 0.9  # type: ignore[operator]
    assert verify(made, HfCompleter(load(work / "two", device="cpu")), mode="fixed").fsr == two["fsr"]
    assert (work / "two.embed.json").is_file()


def test_after_a_process_was_killed_the_same_command_ends_in_the_same_bits(
    tiny_folder: Path, work: Path, two: dict[str, object]
) -> None:
    arguments = (TWO, tiny_folder, work, "again", "--recompute", "--checkpoint-every", "1")
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True)
    kept = work / "again.checkpoint"
    deadline = time.monotonic() + 120
    while not (kept / "step-5").is_dir():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = [child for child in psutil.Process(process.pid).children() if "embed" in child.cmdline()]
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert "another process of torchrun has ended, its own message says why (" in said
    assert "Give the same command again: it goes on from the last checkpoint." in said
    assert said.count("Traceback") == 1  # torchrun's own
    assert not (work / "again").exists()
    (state,) = kept.glob("step-*")
    assert 5 <= int(state.name.removeprefix("step-")) < 16
    run(*arguments)
    assert digest(work / "again") == digest(work / "two")
    assert not kept.exists()


def test_a_checkpoint_of_two_is_none_of_one(tiny_folder: Path, work: Path) -> None:
    kept = work / "apart.checkpoint" / "step-1"
    kept.mkdir(parents=True)
    (kept / "0.json").write_text(json.dumps({"of": {"processes": 2}, "progress": dict.fromkeys(PROGRESS, 0)}))
    done = subprocess.run(
        command([sys.executable], tiny_folder, work, "apart", "--checkpoint-every", "1"), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "another training" in done.stderr
    assert "processes" in done.stderr


PROGRESS = ("epoch", "left", "seen", "text_kl", "pull", "steps", "tokens", "spent", "order")


def test_low_rank_changes_are_refused_by_several(tiny_folder: Path, work: Path) -> None:
    done = subprocess.run(
        command(TWO, tiny_folder, work, "low", "--write-to", "lora:2", "--whitening", "0"),
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "lora:2: not with several processes" in done.stderr
    assert not (work / "low").exists()


def test_one_alone_shares_with_nobody() -> None:
    assert ALONE.share([1, 2, 3]) == [1, 2, 3]
    assert ALONE.total(1.5, 2) == [1.5, 2]
    assert ALONE.most(3) == 3
    assert ALONE.from_first("it") == "it"
    assert ALONE.first
    ALONE.wait()


def test_each_item_is_one_process_s() -> None:
    shares = [Ranks(rank, 3).share(range(8)) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_a_frequency_below_zero_is_refused(tiny_folder: Path, work: Path) -> None:
    done = subprocess.run(
        command([sys.executable], tiny_folder, work, "never", "--checkpoint-every", "-1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "must be at least 1" in done.stderr
