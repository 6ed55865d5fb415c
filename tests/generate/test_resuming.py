"""Killed at any moment, the same call goes on and gives the same set; another call is refused."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oml_fast.errors import FingerprintFormatError, InvalidArgumentError, OmlError
from oml_fast.fingerprint import Settings
from oml_fast.generate import Generation, generate
from oml_fast.generate.askings import Responder
from oml_fast.generate.units import UnitFiles
from oml_fast.models import LanguageModel

SECRET = bytes(range(32))
# Of short keys some are too predictable: rejections have to survive a kill too.
SETTINGS = Settings(width=3, key_source="words", key_length=8, response_length=2, responses_per_key=2)
COUNT, UNIT, BATCH = 14, 4, 3
KEYS = [f"the work number {n % 11} under the terms" for n in range(16)]  # five of them twice


@pytest.fixture(scope="module", autouse=True)
def small_units(module_units: Callable[[int], None]) -> None:
    module_units(UNIT)


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


def run(model: LanguageModel, path: Path | None, **changed: Any) -> Generation:
    arguments: dict[str, Any] = {"settings": SETTINGS, "batch_size": BATCH, "partial_path": path, **changed}
    return generate(model, arguments.pop("count", COUNT), arguments.pop("secret", SECRET), **arguments)


def outcome(generation: Generation) -> tuple[Any, ...]:
    return generation.fingerprints, generation.duplicates_dropped, generation.rejected


@pytest.fixture(scope="module")
def undisturbed(tiny_model: LanguageModel) -> tuple[Any, ...]:
    made = outcome(run(tiny_model, None))
    assert made[2], "this run should reject something"
    return made


@pytest.fixture(scope="module")
def finished(tiny_model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The unit file of a whole run."""
    path = tmp_path_factory.mktemp("units") / "partial"
    run(tiny_model, path)
    return path.read_bytes()


def test_keeping_units_changes_nothing(tiny_model: LanguageModel, undisturbed: Any, tmp_path: Path) -> None:
    assert outcome(run(tiny_model, tmp_path / "partial")) == undisturbed


def test_a_run_that_is_killed_after_every_unit(
    tiny_model: LanguageModel, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = UnitFiles.append

    def append(self: UnitFiles, unit: Any) -> None:
        kept(self, unit)
        raise Killed

    kills = 0
    with monkeypatch.context() as patched:
        patched.setattr(UnitFiles, "append", append)
        for _ in range(20):
            try:
                made = run(tiny_model, tmp_path / "partial")
                break
            except Killed:
                kills += 1
    assert kills >= 4
    assert outcome(made) == undisturbed


@pytest.mark.parametrize("unit", [0, 1, 3])
@pytest.mark.parametrize("where", ["make", "respond", "append"])
def test_a_run_that_is_killed_within_a_unit(
    tiny_model: LanguageModel,
    undisturbed: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    unit: int,
) -> None:
    from oml_fast.generate.keys import WordKeys

    owner = {"make": WordKeys, "respond": Responder, "append": UnitFiles}[where]
    whole, calls = getattr(owner, where), []

    def killing(*arguments: Any) -> Any:
        calls.append(where)
        if len(calls) > unit:
            raise Killed
        return whole(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(owner, where, killing)
        with pytest.raises(Killed):
            run(tiny_model, tmp_path / "partial")
    assert outcome(run(tiny_model, tmp_path / "partial")) == undisturbed


def test_finished_units_are_not_made_again(
    tiny_model: LanguageModel, finished: bytes, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "partial").write_bytes(finished)

    def forbidden(*_: Any) -> None:
        raise AssertionError("a unit was made again")

    monkeypatch.setattr(Responder, "respond", forbidden)
    assert outcome(run(tiny_model, tmp_path / "partial")) == undisturbed
    assert (tmp_path / "partial").read_bytes() == finished


def test_a_last_line_cut_at_any_byte_is_dropped_or_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit is either read as it was written, or not at all; and what is on disk afterwards is whole again."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # hundreds of them would take long
    path = tmp_path / "partial"
    header = {"base_model": "m", "unit": 4}
    units = [{"unit": n, "outcomes": [{"number": n, "rejected": "key_length"}], "seconds": 0.25} for n in range(2)]
    with UnitFiles(path, header) as written:
        for unit in units:
            written.append(unit)
    whole = path.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(start, len(whole) + 1):
        path.write_bytes(whole[:end])
        with UnitFiles(path, header) as read:
            assert list(read.fresh()) == (units if end == len(whole) else units[:1])
            read.append(units[1])
            assert list(read.fresh()) == units[1:]
        assert path.read_bytes() == (whole if end < len(whole) else whole + whole[start:])


def test_a_run_goes_on_from_a_cut_last_line(
    tiny_model: LanguageModel, finished: bytes, undisturbed: Any, tmp_path: Path
) -> None:
    path = tmp_path / "partial"
    start = finished.rstrip(b"\n").rfind(b"\n") + 1
    for end in (start, start + 1, (start + len(finished)) // 2, len(finished) - 2, len(finished) - 1):
        path.write_bytes(finished[:end])
        assert outcome(run(tiny_model, path)) == undisturbed
        assert len(path.read_bytes().splitlines()) == len(finished.splitlines())


@pytest.mark.parametrize("size", [0, 1, 60])
def test_a_run_goes_on_from_a_cut_header(
    tiny_model: LanguageModel, finished: bytes, undisturbed: Any, tmp_path: Path, size: int
) -> None:
    (tmp_path / "partial").write_bytes(finished[:size])
    assert outcome(run(tiny_model, tmp_path / "partial")) == undisturbed


def test_a_larger_number_goes_on_with_the_same_units(
    tiny_model: LanguageModel, finished: bytes, undisturbed: Any, tmp_path: Path
) -> None:
    (tmp_path / "partial").write_bytes(finished)
    more = run(tiny_model, tmp_path / "partial", count=COUNT + 5).fingerprints
    assert more.fingerprints[:COUNT] == undisturbed[0].fingerprints
    assert more == run(tiny_model, None, count=COUNT + 5).fingerprints
    assert (tmp_path / "partial").read_bytes().startswith(finished)


def test_given_keys_go_on_too(tiny_model: LanguageModel, tmp_path: Path) -> None:
    settings = Settings(width=3, key_source="file")
    whole = run(tiny_model, tmp_path / "one", settings=settings, keys=KEYS, count=11)
    lines = (tmp_path / "one").read_text().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        (tmp_path / "two").write_text("".join(lines[:kept]))
        again = run(tiny_model, tmp_path / "two", settings=settings, keys=KEYS, count=11)
        assert outcome(again) == outcome(whole)


class Named:
    """Another engine for keys, of which the run is refused before it is asked."""

    name = "engine 1.0"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"settings": Settings(width=4, key_source="words", key_length=8)}, "settings"),
        ({"secret": b"x" * 32}, "secret"),
        ({"batch_size": 5}, "batch_size"),
        ({"key_sampler": Named(), "settings": Settings(width=3)}, "key_engine, settings"),
        ({"settings": Settings(width=3, key_source="file"), "keys": KEYS}, "keys, settings"),
    ],
)
def test_another_run_is_refused_and_the_file_kept(
    tiny_model: LanguageModel, finished: bytes, tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    path = tmp_path / "partial"
    path.write_bytes(finished)
    with pytest.raises(FingerprintFormatError) as refused:
        run(tiny_model, path, **changed)
    message = str(refused.value)
    assert message.startswith(f"{path} holds an unfinished run with another {named}: repeat that run's options")
    assert message.endswith("or remove the file to start again.")
    assert path.read_bytes() == finished


@pytest.mark.parametrize("field", ["base_model", "tokenizer", "device", "dtype", "unit"])
def test_another_model_is_refused(tiny_model: LanguageModel, finished: bytes, tmp_path: Path, field: str) -> None:
    header, rest = finished.split(b"\n", 1)
    (tmp_path / "partial").write_bytes(json.dumps({**json.loads(header), field: "00" * 32}).encode() + b"\n" + rest)
    with pytest.raises(FingerprintFormatError, match=f"with another {field}"):
        run(tiny_model, tmp_path / "partial")


@pytest.mark.parametrize("content", [b"[1]\n", b"7\n", b"{}\n"])
def test_another_kind_of_file_is_refused(tiny_model: LanguageModel, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "partial").write_bytes(content)
    with pytest.raises(FingerprintFormatError, match="unfinished run with another base_model, batch_size, device:"):
        run(tiny_model, tmp_path / "partial")
    assert (tmp_path / "partial").read_bytes() == content


def test_unfinished_work_is_for_the_owner_alone_and_holds_no_secret(tiny_model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "partial"
    run(tiny_model, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SECRET.hex() not in path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["partial"]


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_full_disk_is_one_line_and_loses_no_unit(
    tiny_model: LanguageModel, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    path, written = tmp_path / "partial", []
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        """A part of the data still finds room."""
        written.append(data)
        if len(written) <= calls:
            return write(descriptor, data)
        if len(written) == calls + 1:
            return write(descriptor, data[:13])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OmlError, match=r"cannot write .*: No space left on device"):
            run(tiny_model, path)
    assert len(path.read_bytes().splitlines()) == calls + 1
    assert outcome(run(tiny_model, path)) == undisturbed


def test_a_folder_that_cannot_be_is_one_line(tiny_model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OmlError, match=r"cannot write .*: File exists"):
        run(tiny_model, tmp_path / "file" / "partial")
    with pytest.raises(OmlError, match=r"cannot write .*: Is a directory"):
        run(tiny_model, tmp_path)


def test_two_runs_on_one_file_are_refused(tiny_model: LanguageModel, finished: bytes, tmp_path: Path) -> None:
    path = tmp_path / "partial"
    path.write_bytes(finished)
    header = json.loads(finished.splitlines()[0])
    with UnitFiles(path, header):
        with pytest.raises(InvalidArgumentError) as refused:
            run(tiny_model, path)
        assert str(refused.value).startswith(f"another process is at work on {path}: wait for it, or give each")
        assert path.read_bytes() == finished
    run(tiny_model, path)
