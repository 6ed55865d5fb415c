"""Real vLLM for the measurements, where it is installed (`make test-all` does that): its CPU settings, and a server."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

NAME = "suspect"
START_SECONDS = 300
_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "TORCHDYNAMO_DISABLE": "1",  # the first request with log-probabilities would compile
}
# What was computed for a key in one round must not be there in the next.
ENGINE_OPTIONS = {"enforce_eager": True, "enable_prefix_caching": False}
_SERVER_OPTIONS = ("--dtype", "bfloat16", "--max-model-len", "512", "--enforce-eager", "--no-enable-prefix-caching")


def importable() -> bool:
    return importlib.util.find_spec("vllm") is not None


def settle() -> None:
    """Settings of vLLM on the CPU, for this process and those it starts."""
    os.environ.update(_SETTINGS)


def keep_in_process(threads: int) -> None:
    """An engine started from now on runs in this process, so that the process's CPU seconds are all of its own."""
    settle()
    os.environ.update({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(threads)})


@contextlib.contextmanager
def served(folder: str | Path, program: Sequence[str] = ()) -> Iterator[tuple[str, int]]:
    """`vllm serve`, or what `program` starts instead, of a model on loopback: its URL up to /v1, and its process id."""
    settle()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    program = program or [str(Path(sys.executable).with_name("vllm")), "serve"]
    command = [*program, str(folder), "--host", "127.0.0.1", "--port", port]
    with tempfile.TemporaryDirectory() as logs:
        log = Path(logs) / "log"
        with log.open("w") as output:
            server = subprocess.Popen(
                [*command, "--served-model-name", NAME, *_SERVER_OPTIONS],
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            _wait_until_healthy(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1", server.pid
        finally:
            _end(server)


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own server
                return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"vllm serve did not start:\n{log.read_text()[-3000:]}")


def _end(server: subprocess.Popen[bytes]) -> None:
    """Its engine is a process of its own, in the same session."""
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait(10)
