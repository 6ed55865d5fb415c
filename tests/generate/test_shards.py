"""Shards make one set between them, whatever their number and order, and whoever finds it complete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from oml_fast.errors import FingerprintFormatError, InvalidArgumentError
from oml_fast.fingerprint import Settings
from oml_fast.generate import Generation, Unfinished, generate, generate_shard, unit_files, units
from oml_fast.generate.askings import Responder
from oml_fast.generate.tally import Tally
from oml_fast.generate.units import UNIT as FULL
from oml_fast.generate.units import UnitFiles
from oml_fast.models import LanguageModel

SECRET = bytes(range(32))
SETTINGS = Settings(width=3, key_source="words", key_length=8)  # of such short keys some are rejected
COUNT, UNIT = 30, 4
KEYS = [f"the work number {n % 11} under the terms" for n in range(16)]  # five of them twice


@pytest.fixture(scope="module", autouse=True)
def small_units(module_units: Callable[[int], None]) -> None:
    module_units(UNIT)


def share(model: LanguageModel, path: Path, shard: tuple[int, int], **changed: Any) -> Generation | Unfinished:
    arguments: dict[str, Any] = {"settings": SETTINGS, "batch_size": 3, "partial_path": path, **changed}
    return generate_shard(model, arguments.pop("count", COUNT), SECRET, shard, **arguments)


def outcome(generation: Generation | Unfinished) -> tuple[Any, ...]:
    assert isinstance(generation, Generation), generation
    return generation.fingerprints, generation.duplicates_dropped, generation.rejected


@pytest.fixture(scope="module")
def undisturbed(tiny_model: LanguageModel) -> tuple[Any, ...]:
    made = outcome(generate(tiny_model, COUNT, SECRET, settings=SETTINGS, batch_size=3))
    assert made[2], "this run should reject something"
    return made


def test_a_unit_has_256_candidates_and_the_first_so_many_are_made_in_four(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FULL == 256
    monkeypatch.setattr(units, "UNIT", FULL)
    monkeypatch.setattr(units, "_PARTS", 4)
    found = [units.candidates(unit) for unit in range(8)]
    assert [len(numbers) for numbers in found] == [64, 64, 64, 64, 256, 256, 256, 256]
    assert [number for numbers in found for number in numbers] == list(range(5 * 256))


@pytest.mark.parametrize("order", [(1,), (1, 2), (2, 1), (1, 2, 3), (3, 2, 1), (2, 5, 1, 4, 3)])
def test_any_number_of_shards_in_any_order_makes_the_same_set(
    tiny_model: LanguageModel, undisturbed: Any, tmp_path: Path, order: Sequence[int]
) -> None:
    path, count = tmp_path / "partial.jsonl", len(order)
    *others, last = [share(tiny_model, path, (index, count)) for index in order]
    for place, (index, made) in enumerate(zip(order, others, strict=False)):
        assert isinstance(made, Unfinished)
        assert made.shard == (index, count)
        assert {*order[place + 1 :]} <= {*made.missing}
        assert 0 < made.fingerprints < COUNT
    assert outcome(last) == undisturbed
    names = [f"partial-{index}-of-{count}.jsonl" for index in sorted(order)] if count > 1 else ["partial.jsonl"]
    assert [file.name for file in unit_files(path)] == sorted(names)


def test_each_shard_makes_its_own_units_and_no_others(tiny_model: LanguageModel, tmp_path: Path) -> None:
    settings = Settings(width=3, key_source="words")  # nothing is rejected: it is known how many units it takes
    for index in (1, 3, 2):
        share(tiny_model, tmp_path / "partial", (index, 3), settings=settings)
    for index in (1, 2, 3):
        _, *lines = (tmp_path / f"partial-{index}-of-3").read_text().splitlines()
        units = [json.loads(line)["unit"] for line in lines]
        assert units == list(range(index - 1, 8, 3))


def test_another_number_of_shards_goes_on_with_what_is_there(
    tiny_model: LanguageModel, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = tmp_path / "partial", []
    append = UnitFiles.append

    def recording(self: UnitFiles, unit: dict[str, Any]) -> None:
        made.append(unit["unit"])
        append(self, unit)

    monkeypatch.setattr(UnitFiles, "append", recording)
    for shard in ((2, 2), (3, 4), (1, 1)):
        done = share(tiny_model, path, shard)
    assert outcome(done) == undisturbed
    assert sorted(made) == list(range(len(made)))


def test_one_further_call_of_any_shard_merges(
    tiny_model: LanguageModel, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after each shard worked on a machine of its own, and their files were brought together.

    Neither saw what the other's keys were like, so that the first call may make what both thought was not needed.
    """
    for index in (1, 2):
        (tmp_path / str(index)).mkdir()
        share(tiny_model, tmp_path / str(index) / "partial", (index, 2))
        shutil.copy(tmp_path / str(index) / f"partial-{index}-of-2", tmp_path)
    assert outcome(share(tiny_model, tmp_path / "partial", (2, 2))) == undisturbed

    def forbidden(*_: Any) -> None:
        raise AssertionError("a unit was made again")

    monkeypatch.setattr(Responder, "respond", forbidden)
    for shard in ((1, 2), (2, 2), (1, 1)):
        assert outcome(share(tiny_model, tmp_path / "partial", shard)) == undisturbed


def test_a_killed_shard_goes_on_from_any_unit(tiny_model: LanguageModel, undisturbed: Any, tmp_path: Path) -> None:
    path, own = tmp_path / "partial", tmp_path / "partial-2-of-3"
    for index in (1, 2, 3):
        share(tiny_model, path, (index, 3))
    lines = own.read_bytes().splitlines(keepends=True)
    assert len(lines) >= 3
    for kept in range(len(lines)):
        own.write_bytes(b"".join(lines[:kept]) + lines[kept][:40])
        assert isinstance(share(tiny_model, path, (1, 3)), Unfinished)
        assert outcome(share(tiny_model, path, (2, 3))) == undisturbed


def test_of_equal_keys_the_first_number_wins_whoever_made_it(tiny_model: LanguageModel, tmp_path: Path) -> None:
    arguments = {"settings": Settings(width=3, key_source="file"), "keys": KEYS, "count": 11}
    whole = share(tiny_model, tmp_path / "one", (1, 1), **arguments)
    for order in ((1, 2), (2, 1)):
        path = tmp_path / f"two{order[0]}"
        for index in order:
            made = share(tiny_model, path, (index, 2), **arguments)
        assert outcome(made) == outcome(whole)
        assert [fingerprint.number for fingerprint in outcome(made)[0]] == list(range(11))


def test_keys_that_run_out_say_so_once_every_shard_is_there(tiny_model: LanguageModel, tmp_path: Path) -> None:
    arguments = {"settings": Settings(width=3, key_source="file"), "keys": KEYS, "count": 12}
    assert isinstance(share(tiny_model, tmp_path / "partial", (2, 2), **arguments), Unfinished)
    with pytest.raises(InvalidArgumentError, match="run out: 11 of 12 fingerprints made, 5 duplicates"):
        share(tiny_model, tmp_path / "partial", (1, 2), **arguments)


def test_a_hopeless_shard_says_so_alone(tiny_model: LanguageModel, tmp_path: Path) -> None:
    settings = Settings(width=4, key_source="words", key_length=4)
    with pytest.raises(InvalidArgumentError, match="almost every key is rejected: 0 of 30"):
        share(tiny_model, tmp_path / "partial", (2, 2), settings=settings)


def test_the_same_shard_twice_is_refused_and_another_is_not(tiny_model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "partial"
    share(tiny_model, path, (1, 2))
    kept = (tmp_path / "partial-1-of-2").read_bytes()
    header = json.loads(kept.splitlines()[0])
    with UnitFiles(path, header, (1, 2)):
        with pytest.raises(InvalidArgumentError, match=r"another process is at work on .*partial-1-of-2: wait for it"):
            share(tiny_model, path, (1, 2))
        assert (tmp_path / "partial-1-of-2").read_bytes() == kept
        assert isinstance(share(tiny_model, path, (2, 2)), Generation)


def test_another_shard_of_another_run_is_refused(tiny_model: LanguageModel, tmp_path: Path) -> None:
    share(tiny_model, tmp_path / "partial", (1, 2))
    with pytest.raises(FingerprintFormatError, match="partial-1-of-2 holds an unfinished run with another batch_size:"):
        share(tiny_model, tmp_path / "partial", (2, 2), batch_size=2)


def test_a_line_that_another_shard_is_writing_does_not_count(tmp_path: Path) -> None:
    header, unit = {"unit": 4}, {"unit": 0, "outcomes": [], "seconds": 0.0, "sampling_seconds": 0.0}
    with UnitFiles(tmp_path / "partial", header, (1, 2)) as files:
        other, line = tmp_path / "partial-2-of-2", json.dumps(unit)
        for content, fresh in (
            ("", []),
            ('{"unit"', []),
            ('{"unit": 4}\n', []),
            (f'{{"unit": 4}}\n{line}', []),
            (f'{{"unit": 4}}\n{line}\n{line[:9]}', [unit]),
            (f'{{"unit": 4}}\n{line}\n{line}\n', [unit]),
        ):
            other.write_text(content)
            assert list(files.fresh()) == fresh
        other.unlink()
        assert list(files.fresh()) == []


@pytest.mark.parametrize("shard", [(0, 1), (3, 2), (1, 0), (-1, -1)])
def test_a_share_that_is_none_is_refused(tiny_model: LanguageModel, tmp_path: Path, shard: tuple[int, int]) -> None:
    with pytest.raises(InvalidArgumentError, match=f"shard {shard[0]}/{shard[1]}: write i/n with i between 1 and n"):
        share(tiny_model, tmp_path / "partial", shard)


def test_shards_need_a_place_to_meet(tiny_model: LanguageModel) -> None:
    with pytest.raises(InvalidArgumentError, match="shard 1/2 needs a partial_path"):
        generate_shard(tiny_model, 4, SECRET, (1, 2), settings=SETTINGS)


def unit(number: int, rejected: int, seconds: float = 1.0) -> dict[str, Any]:
    """A unit of four, the first of them rejected; the others are whole enough to wait, not to be counted."""
    outcomes = [{"number": 4 * number + n, **({"rejected": "key_length"} if n < rejected else {})} for n in range(UNIT)]
    return {"unit": number, "outcomes": outcomes, "seconds": seconds, "sampling_seconds": seconds / 4}


def test_units_that_are_not_there_are_taken_to_be_as_good_as_the_others() -> None:
    tally = Tally(SETTINGS, 12)
    assert tally.missing(None) == [0, 1, 2]
    tally.add(unit(1, rejected=2))
    assert tally.found == 2
    assert tally.missing(None) == [0, 2, 3, 4, 5]
    tally.add(unit(2, rejected=0))
    assert tally.missing(None) == [0, 3]
    tally.add(unit(2, rejected=4))  # a unit that is known changes nothing
    assert tally.missing(None) == [0, 3]
    assert tally.missing(8) == [0]
    assert tally.seconds == 2.0


def next_units(tally: Tally) -> list[int | None]:
    return [tally.next_unit((index, 3), None) for index in (1, 2, 3)]


def test_who_makes_what() -> None:
    tally = Tally(SETTINGS, 8)
    assert next_units(tally) == [0, 1, None]
    tally.add(unit(1, rejected=2))
    assert next_units(tally) == [0, None, 2]
    tally.add(unit(2, rejected=1))
    assert next_units(tally) == [0, None, None]


def test_the_last_to_finish_makes_what_turns_out_to_be_missing() -> None:
    """The units that were expected to do are there, too few are accepted, and the shard of the next has left."""
    tally = Tally(SETTINGS, 1)
    assert next_units(tally) == [0, None, None]
    tally.add(unit(0, rejected=4))
    assert next_units(tally) == [1, 1, 1]
    tally.add(unit(2, rejected=0))  # now somebody is at work, who will see unit 1 or its absence
    assert next_units(tally) == [None, 1, None]
