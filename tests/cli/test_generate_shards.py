"""oml-fast generate in several processes: one set, the same as of one process, and no file is harmed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oml_fast.cli import main
from oml_fast.secret import write_secret

Run = Callable[..., tuple[int, str, str]]
SET, COUNT = "fingerprints.json", 1900  # eight units
# Imports once what takes seconds; each line on stdin then starts a command in a process of its own, or waits for one.
LAUNCHER = """
import json, os, sys
import oml_fast.generate, oml_fast.models, transformers.models.llama.modeling_llama
from oml_fast.cli import main

for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        status = os.waitpid(job["wait"], 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    started = os.fork()
    if not started:
        os.environ.update(job["env"])
        for name, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(job["log"] + name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        code = main(job["arguments"])
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(started, flush=True)
"""

pytestmark = pytest.mark.slow


class Launcher:
    """Commands in processes of their own, all at the same time."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._logs = folder, dict[int, Path]()
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, *arguments: Any, **env: str) -> int:
        log = self._folder / f"log-{len(self._logs)}-"
        started = self._ask(log=str(log), env=env, arguments=[str(argument) for argument in arguments])
        self._logs[started] = log
        return started

    def wait(self, started: int) -> tuple[int, str, str]:
        """Exit code (-9: killed), stdout, stderr."""
        code = self._ask(wait=started)
        return code, *(Path(f"{self._logs[started]}{name}").read_text() for name in ("out", "err"))

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def _ask(self, **job: Any) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    made = Launcher(tmp_path_factory.mktemp("logs"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "secret"
    write_secret(path, bytes(range(32)))
    return path


@pytest.fixture(scope="module")
def command(tiny_folder: Path, secret: Path) -> list[str]:
    options = ["generate", "--model", tiny_folder, "--device", "cpu", "--key-source", "words", "--key-length", 9]
    return [*map(str, options), "--width", "3", "--json", "--num-fingerprints", str(COUNT), "--secret", str(secret)]


@pytest.fixture(scope="module")
def alone(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The set of one process."""
    out = tmp_path_factory.mktemp("alone") / "a"
    assert main([*command, "--out", str(out)]) == 0
    return (out / SET).read_bytes()


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_whole(out: Path, alone: bytes) -> None:
    assert (out / SET).read_bytes() == alone
    assert sorted(file.name for file in out.iterdir()) == [SET, "generate.json"]


def test_three_shards_at_the_same_time(launcher: Launcher, command: list[str], alone: bytes, tmp_path: Path) -> None:
    started = [launcher.start(*command, "--out", tmp_path / "a", "--shard", f"{n}/3") for n in (1, 2, 3)]
    results = [launcher.wait(each) for each in started]
    assert [code for code, _, _ in results] == [0, 0, 0], results
    assert_whole(tmp_path / "a", alone)
    for _, out, _ in results:
        result = json.loads(out)
        assert result.get("num_fingerprints") == COUNT or {*result["missing"]} <= {"1/3", "2/3", "3/3"}
    assert any("set_digest" in json.loads(out) for _, out, _ in results)


def test_two_processes_of_torchrun(launcher: Launcher, command: list[str], alone: bytes, tmp_path: Path) -> None:
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"} for rank in (0, 1)]
    results = [launcher.wait(each) for each in [launcher.start(*command, "--out", tmp_path / "a", **r) for r in ranks]]
    assert [code for code, _, _ in results] == [0, 0], results
    assert_whole(tmp_path / "a", alone)
    for rank in ranks:  # one that comes late, as torchrun's restarts do
        code, out, _ = launcher.wait(launcher.start(*command, "--out", tmp_path / "a", **rank))
        assert code == 0
        assert json.loads(out) == json.loads((tmp_path / "a" / "generate.json").read_text())["result"]
    assert_whole(tmp_path / "a", alone)


def test_processes_that_start_together_make_one_secret(launcher: Launcher, tiny_folder: Path, tmp_path: Path) -> None:
    command = [
        "generate",
        "--model",
        tiny_folder,
        "--device",
        "cpu",
        "--key-source",
        "words",
        "--num-fingerprints",
        600,
    ]
    started = [launcher.start(*command, "--out", tmp_path / "a", "--shard", f"{n}/3") for n in (1, 2, 3)]
    results = [launcher.wait(each) for each in started]
    assert [code for code, _, _ in results] == [0, 0, 0], results
    assert sum("new secret" in err for _, _, err in results) == 1
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [SET, "generate.json", "secret"]
    again = [*command, "--secret", tmp_path / "a" / "secret", "--out", tmp_path / "b"]
    assert launcher.wait(launcher.start(*again))[0] == 0
    assert_whole(tmp_path / "b", (tmp_path / "a" / SET).read_bytes())


def test_a_shard_that_is_killed_goes_on(launcher: Launcher, command: list[str], alone: bytes, tmp_path: Path) -> None:
    out, own = tmp_path / "a", tmp_path / "a" / "unfinished-2-of-2.jsonl"
    code, text, _ = launcher.wait(launcher.start(*command, "--out", out, "--shard", "1/2"))
    assert (code, json.loads(text)["missing"]) == (0, ["2/2"])
    for lines in (1, 2):  # the header, and a unit: three or more are still to be made
        killed = launcher.start(*command, "--out", out, "--shard", "2/2")
        until(lambda least=lines: lines_in(own) >= least)  # type: ignore[misc]
        os.kill(killed, signal.SIGKILL)
        assert launcher.wait(killed)[0] == -signal.SIGKILL
        assert not (out / SET).exists()
    code, text, _ = launcher.wait(launcher.start(*command, "--out", out, "--shard", "2/2"))
    assert (code, json.loads(text)["num_fingerprints"]) == (0, COUNT)
    assert_whole(out, alone)


def test_the_same_shard_twice(launcher: Launcher, command: list[str], alone: bytes, tmp_path: Path) -> None:
    out, own = tmp_path / "a", tmp_path / "a" / "unfinished-1-of-2.jsonl"
    first = launcher.start(*command, "--out", out, "--shard", "1/2")
    until(lambda: lines_in(own) > 1)
    os.kill(first, signal.SIGSTOP)
    kept = own.read_bytes()
    code, text, err = launcher.wait(launcher.start(*command, "--out", out, "--shard", "1/2"))
    assert (code, text) == (1, "")
    assert f"another process is at work on {own}: wait for it, or give each process a --shard of its own." in err
    assert own.read_bytes() == kept
    os.kill(first, signal.SIGCONT)
    assert launcher.wait(first)[0] == 0
    assert launcher.wait(launcher.start(*command, "--out", out, "--shard", "2/2"))[0] == 0
    assert_whole(out, alone)


def test_one_call_without_a_shard_finishes_what_shards_began(
    launcher: Launcher, command: list[str], alone: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "a"
    assert launcher.wait(launcher.start(*command, "--out", out, "--shard", "2/3"))[0] == 0
    assert [file.name for file in out.iterdir()] == ["unfinished-2-of-3.jsonl"]
    assert launcher.wait(launcher.start(*command, "--out", out))[0] == 0
    assert_whole(out, alone)
    code, _, err = launcher.wait(launcher.start(*command, "--out", out, "--shard", "1/3", "--threshold", "0.7"))
    assert code == 1
    assert "not empty" in err
    assert_whole(out, alone)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3"])
def test_a_share_that_is_none_is_refused(run: Run, command: list[str], tmp_path: Path, shard: str) -> None:
    code, out, err = run(*command, "--out", tmp_path / "a", f"--shard={shard}")
    assert (code, out) == (1, "")
    assert f"shard '{shard}': write i/n with i between 1 and n, as in 1/3." in err
