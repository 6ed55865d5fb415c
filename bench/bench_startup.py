"""How long `import oml_fast` and `oml-fast --help` take above a bare interpreter, and that neither loads torch.

The smallest of several runs, in turn, each in a process of its own: what it takes where nothing else disturbs it.
`python bench/bench_startup.py` prints a table and writes bench/results/startup.json.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from common import Figure, at_most, command, describe_run, finish, parser

PYTHON = sys.executable
HELP = "import sys; from oml_fast.cli import main; sys.argv[1:] = ['--help']; main()"
COMMANDS = {
    "bare": [PYTHON, "-c", "pass"],
    "import oml_fast": [PYTHON, "-c", "import oml_fast"],
    "oml-fast --help": [str(Path(PYTHON).with_name("oml-fast")), "--help"],
}
BARS = {"import oml_fast": 0.15, "oml-fast --help": 0.3}  # seconds above a bare interpreter
HEAVY = ("torch", "transformers", "numpy", "scipy", "triton", "vllm")
TRIES = 40


def run_once(name: str) -> float:
    """Seconds on the wall of one process."""
    started = time.perf_counter()
    subprocess.run(COMMANDS[name], check=True, capture_output=True)
    return time.perf_counter() - started


def measure(name: str, tries: int, enough: float = 0.0) -> tuple[float, float]:
    """Smallest seconds above a bare interpreter, and those of the bare one; stops once that is below `enough`."""
    bare = run = float("inf")
    for number in range(tries):
        bare, run = min(bare, run_once("bare")), min(run, run_once(name))
        if number >= 4 and run - bare < enough:
            break
    return run - bare, bare


def loaded_by(code: str) -> set[str]:
    """Which heavy packages a process has loaded at its end."""
    report = f"import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); {code}"
    done = subprocess.run([PYTHON, "-c", report], check=True, capture_output=True, text=True)
    return set(HEAVY) & set(done.stderr.split())


@pytest.mark.parametrize("code", ["import oml_fast", HELP])
def test_nothing_heavy_is_loaded(code: str) -> None:
    assert not loaded_by(code)


@pytest.mark.parametrize("name", BARS)
def test_startup_is_quick(name: str) -> None:
    above, bare = measure(name, TRIES, enough=BARS[name])
    assert above < BARS[name], f"{name} takes {above:.3f} s above a bare interpreter ({bare:.3f} s)"


@pytest.mark.parametrize("name", COMMANDS)
def bench_startup(benchmark: Any, name: str) -> None:
    benchmark(run_once, name)


def main() -> None:
    options = parser(__doc__, "startup")
    options.add_argument("--tries", type=int, default=TRIES, help=f"processes of each kind (default: {TRIES})")
    arguments = options.parse_args()
    run = describe_run(arguments.threads)
    cases = {}
    for name, code in zip(BARS, ("import oml_fast", HELP), strict=True):
        heavy = loaded_by(code)
        assert not heavy, f"{name} loads {heavy}"
        above, bare = measure(name, arguments.tries)
        cases[name] = {"seconds_above_bare": above, "bare_seconds": bare}
    figures = [
        Figure(
            f"`{name}`, above a bare interpreter",
            f"smallest of {arguments.tries}; bare {case['bare_seconds']:.3f} s; no {', '.join(HEAVY[:3])} loaded",
            *at_most(case["seconds_above_bare"], BARS[name], unit=" s"),
            command(),
        )
        for name, case in cases.items()
    ]
    finish(arguments.out, run, figures, {"cases": cases})


if __name__ == "__main__":
    main()
