"""Mutation testing of oml_fast/permission/: is a fault in it seen by the tests in tests/permission/?

`python bench/mutants.py [--sample N] [--seed S]` writes bench/results/mutants.json. Mutants (`mutating.py`) are drawn
from all there are, with a seed; each is put into a copy of the package in a temporary folder, never into the checkout,
and the fast tests run on it, those of its file first, until one fails (`mutant_tests.py`). Killed: a test failed, or
the tests did not end. Every hundred mutants, and at both ends, the tests run on the package as it is, and must pass:
else what was killed would say nothing. `--again FILE` runs the survivors of a result once more, after tests were added.

The figure counts every survivor, also those of which EQUIVALENT says that no test could see them.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import ROOT, Figure, command, describe_run, finish, parser
from mutating import Mutant, mutants
from tqdm import tqdm

PACKAGE, TESTS = Path("oml_fast/permission"), Path("tests/permission")
SAMPLE, SEED, BAR = 400, 6, 0.9
CONTROL_EVERY, PATIENCE = 100, 3  # a run of the tests may take so many times the CPU of a control
# The files of tests that know most of a source file: they run first, in a process of their own.
NEAREST = {
    "asynchronous": ("asynchronous",),
    "checking": ("checking", "sessions", "single_use", "quotas", "two_parts", "refusals"),
    "jws": ("forgeries", "structures", "other_libraries"),
    "key_file": ("key_list", "key_file", "permission_commands"),
    "key_list": ("key_list", "key_file", "permission_commands"),
    "leases": ("leases", "quotas"),
    "memory": ("stores", "single_use", "leases"),
    "permission": ("forgeries", "tokens", "structures"),
    "sqlite": ("stores", "sqlite", "races"),
    "stores": ("stores", "quotas", "leases"),
    "threads": ("asynchronous",),
    "token": ("tokens", "forgeries"),
}
SLOW = ("asynchronous", "mutations", "permission_commands", "races")  # for those alone that they are nearest to
OPTIONS = (
    *("-x", "-q", "--tb=no", "--no-header", "--hypothesis-seed=0", "-m", "not postgres", "-k", "not registry"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # of what the process has imported before
    *("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark", "-p", "no:aiohttp"),
)
# Survivors that behave as the original does, as far as anyone can see: file, before, after, and why.
EQUIVALENT = (
    (
        "checking.py",
        "self._sessions.get(_digest(token)) if keys is not None else None",
        "self._sessions.get(_digest(token)) if True else None",
        "without a list the next line gives None, whatever is kept",
    ),
    (
        "checking.py",
        "keys is None or permission is None",
        "permission is None",
        "the line before makes one of the other",
    ),
    ("jws.py", "False", "True", "the default of an argument that nothing reads"),
    ("key_file.py", "2", "3", "one byte more of a file is read, and is too much all the same"),
    ("key_file.py", "self._state = None", "pass", "the first of three: whatever fails after it does the same"),
    (
        "leases.py",
        "limits.requests is not None and pool.requests < need.requests",
        "pool.requests < need.requests",
        "of what is not limited nothing is needed, and nothing leased",
    ),
    ("leases.py", "return False", "return None", "only its truth is asked"),
    ("memory.py", "0", "1", "the second of two, of which only the first is read"),
    (
        "sqlite.py",
        "connection.execute('PRAGMA secure_delete = ON')",
        "pass",
        "where SQLite was built to do so without being asked, as it is here",
    ),
    ("sqlite.py", "version > seen", "version >= seen", "it writes the same row again"),
    ("sqlite.py", "''", "'x'", "of version 0, which no list has"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant of a file: survived, killed or timeout; by which test."""

    file: str
    mutant: Mutant
    outcome: str
    by: str

    def to_json(self) -> dict[str, Any]:
        mutant = self.mutant
        shown = {"file": self.file, "line": mutant.line, "kind": mutant.kind}
        return shown | {"before": mutant.before, "after": mutant.after, "outcome": self.outcome, "by": self.by}


class Room:
    """A copy of the package and its tests in `folder`, and a process that runs the tests there."""

    def __init__(self, folder: Path) -> None:
        self.cpu = 0.0
        self._package, self._folder = folder / "package", folder / "tree"
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "oml_fast", self._package / "oml_fast", ignore=skipped)
        for name in ("tests/permission", "bench"):
            shutil.copytree(ROOT / name, self._folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        for path in (ROOT / "conftest.py", ROOT / "pyproject.toml", *(ROOT / "tests").glob("*.py")):
            if not path.name.startswith("test_"):
                shutil.copy(path, self._folder / path.relative_to(ROOT))
        env = {name: value for name, value in os.environ.items() if not name.startswith("OML_FAST_")}
        env |= {"PYTHONPATH": str(self._package), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(folder)}
        env |= {"OMP_NUM_THREADS": "1"}
        path = [self._package, self._folder / "tests"]
        self._process = subprocess.Popen(
            [sys.executable, ROOT / "bench" / "mutant_tests.py", ".".join(PACKAGE.parts), *path],
            cwd=self._folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def stages(self, file: str) -> list[list[str]]:
        """The files of tests, the nearest to a source file first."""
        names = [path.stem.removeprefix("test_") for path in sorted((self._folder / TESTS).glob("test_*.py"))]
        first = [name for name in NEAREST.get(file.removesuffix(".py"), ()) if name in names]
        rest = [name for name in names if name not in {*first, *SLOW}]
        return [[str(TESTS / f"test_{name}.py") for name in stage] for stage in (first, rest) if stage]

    def test(self, file: str, source: str | None, seconds: int = 600) -> tuple[str, str]:
        """The outcome for a source in the place of `file`, and the test that failed; None: for the original."""
        path = self._package / PACKAGE / file
        original = path.read_bytes()
        if source is not None:
            path.write_bytes(source.encode())
        try:
            for stage in self.stages(file):
                said = self._ask(
                    [*stage, *OPTIONS, f"--basetemp={self._folder.parent / 'base'}"], seconds, source is None
                )
                if said["outcome"] != "survived":
                    break
        finally:
            path.write_bytes(original)
            shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)  # of the original: it would hide a mutant
        return said["outcome"], said["by"]

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def _ask(self, arguments: Sequence[str], seconds: int, bytecode: bool) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"arguments": arguments, "seconds": seconds, "bytecode": bytecode}
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        said: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"outcome": "ended", "by": ""}')
        if said["outcome"] == "ended":
            raise SystemExit("the process that runs the tests has ended: its errors stand above.")
        self.cpu += said["cpu"]
        return said


@contextmanager
def room() -> Iterator[Room]:
    with tempfile.TemporaryDirectory(prefix="oml-mutants-") as folder:
        made = Room(Path(folder))
        try:
            yield made
        finally:
            made.close()


def all_mutants() -> list[tuple[str, Mutant]]:
    files = [path for path in sorted((ROOT / PACKAGE).glob("*.py")) if path.name != "__init__.py"]
    return [(path.name, mutant) for path in files for mutant in mutants(path.read_text(encoding="utf-8"))]


def survivors_of(result: Path, found: Sequence[tuple[str, Mutant]]) -> list[tuple[str, Mutant]]:
    """Of all mutants, those that a result file lists as survivors."""
    listed = {
        (each["file"], each["kind"], each["before"], each["after"])
        for each in json.loads(result.read_text())["survivors"]
    }
    return [(file, each) for file, each in found if (file, each.kind, each.before, each.after) in listed]


def run(chosen: Sequence[tuple[str, Mutant]]) -> tuple[list[Outcome], int, float]:
    """The outcomes, how many controls passed, and the seconds of CPU. SystemExit where a control does not pass."""
    outcomes, controls, seconds = [], 0, 600
    with room() as tests:
        for place, (file, mutant) in enumerate(tqdm(chosen, unit="mutant", disable=None)):
            if place % CONTROL_EVERY == 0:
                before = tests.cpu
                control(tests, seconds)
                controls += 1
                seconds = 5 + int(PATIENCE * (tests.cpu - before))
            outcomes.append(Outcome(file, mutant, *tests.test(file, mutant.source, seconds)))
            show(outcomes[-1])
        control(tests, seconds)
        return outcomes, controls + 1, tests.cpu


def control(tests: Room, seconds: int) -> None:
    outcome, by = tests.test("checking.py", None, seconds)
    if outcome != "survived":
        raise SystemExit(f"the tests do not pass on the package as it is ({by or outcome}): mend that first.")


def interval(part: int, whole: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    share, scale = part / whole, 1 + z * z / whole
    middle = (share + z * z / (2 * whole)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / whole + z * z / (4 * whole * whole))
    return max(0.0, middle - half), min(1.0, middle + half)


def why_equivalent(file: str, before: str, after: str) -> str | None:
    """Why no test could see it, where EQUIVALENT says so."""
    return next((why for *known, why in EQUIVALENT if known == [file, before, after]), None)


def main() -> None:
    given = parser(__doc__, "mutants")
    given.add_argument("--sample", type=int, default=SAMPLE, help=f"how many mutants, 0 for all (default: {SAMPLE})")
    given.add_argument("--seed", type=int, default=SEED, help="of the draw")
    given.add_argument("--again", type=Path, metavar="FILE", help="run the survivors of this result, print, write none")
    given.add_argument("--reread", action="store_true", help="mark survivors that EQUIVALENT names since, run nothing")
    arguments = given.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended before its end; nothing is left behind."))
    if arguments.reread:
        reread(arguments.out)
        return
    described = describe_run(1)
    found = all_mutants()
    if arguments.again:
        run(survivors_of(arguments.again, found))
        return
    chosen = list(found)
    if 0 < arguments.sample < len(found):
        picked = sorted(random.Random(arguments.seed).sample(range(len(found)), arguments.sample))  # noqa: S311
        chosen = [found[place] for place in picked]
    outcomes, controls, cpu = run(chosen)
    write(arguments.out, described, outcomes, len(found), {"controls": controls, "cpu_seconds": round(cpu)})


def show(each: Outcome) -> None:
    """On a line of its own."""
    mutant = each.mutant
    seen = each.by or why_equivalent(each.file, mutant.before, mutant.after) or ""
    change = f"{mutant.kind}: {mutant.before!r} -> {mutant.after!r}"
    tqdm.write(f"{each.outcome:8}  {PACKAGE / each.file}:{mutant.line}  {change}  {seen}")


def write(out: Path, run: dict[str, Any], outcomes: Sequence[Outcome], of: int, details: dict[str, Any]) -> None:
    left = [each for each in outcomes if each.outcome == "survived"]
    files: dict[str, Counter[str]] = {}
    kinds: dict[str, Counter[str]] = {}
    for each in outcomes:
        files.setdefault(each.file, Counter())[each.outcome] += 1
        kinds.setdefault(each.mutant.kind, Counter())[each.outcome] += 1
    survivors = [marked(each.to_json()) for each in left]
    details |= {"mutants": of, "tried": len(outcomes), "killed": len(outcomes) - len(left)}
    details |= {"by_file": files, "by_kind": kinds, "survivors": survivors}
    finish(out, run, [figure(details, command())], details)


def marked(survivor: dict[str, Any]) -> dict[str, Any]:
    return survivor | {"equivalent": why_equivalent(survivor["file"], survivor["before"], survivor["after"])}


def figure(details: dict[str, Any], command: str) -> Figure:
    tried, killed = details["tried"], details["killed"]
    low, high = interval(killed, tried)
    equivalent = sum(each["equivalent"] is not None for each in details["survivors"])
    return Figure(
        "mutants of oml_fast/permission/ killed by its tests",
        f"{tried:,} of {details['mutants']:,} mutants; {tried - killed} survive, {equivalent} of them equivalent",
        f"{killed / tried:.1%} (95 % interval {low:.1%} to {high:.1%})",
        f">= {BAR:.0%}",
        killed / tried >= BAR,
        command,
    )


def reread(out: Path) -> None:
    """The same result, with the survivors marked anew."""
    result = json.loads(out.read_text())
    result["survivors"] = [marked(each) for each in result["survivors"]]
    result["figures"] = [asdict(figure(result, result["figures"][0]["command"]))]
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
