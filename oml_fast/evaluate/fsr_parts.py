"""Parts of the full check in a folder: each shard writes its own, and whoever finds them complete writes one report.

Merging refuses, and names, parts that are missing, that overlap, that are damaged, or that are about something else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError
from ..files import read_text, write_json
from ..fingerprint import FingerprintSet
from ..verify.statistics import clopper_pearson
from .fsr import PART, Shard

REPORT = "fsr.json"


@dataclass(frozen=True, slots=True)
class Cell:
    """One template at one temperature. fsr: matched tries over tries. Its 95 % interval counts fingerprints, not
    tries: tries of one fingerprint are not independent. It is about fingerprints made in the same way; of those in
    the set all were asked.
    """

    template: str
    temperature: float
    tries: int
    fsr: float
    fsr_interval: tuple[float, float]
    fsr_by_format: dict[str, float]


@dataclass(frozen=True, slots=True)
class FullCheck:
    """The merged result, the same however the set was split.

    fails_everywhere: numbers of the fingerprints that matched in no try of any cell. asked, matched: tries in all.
    """

    identity: dict[str, Any]
    num_fingerprints: int
    asked: int
    matched: int
    fails_everywhere: tuple[int, ...]
    cells: tuple[Cell, ...]

    def to_json(self) -> dict[str, Any]:
        return dict(json.loads(json.dumps(asdict(self))))


def part_path(folder: Path, shard: Shard) -> Path:
    return folder / f"shard-{shard.index}-of-{shard.count}.json"


def finished(folder: Path, shard: Shard, known: Mapping[str, Any]) -> bool:
    """Whether the shard's part is there already. InvalidArgumentError where it is about something else."""
    path = part_path(folder, shard)
    if not path.is_file():
        return False
    _require_same(path, _read(path)["identity"], known)
    return True


def write_part(folder: Path, part: Mapping[str, Any]) -> Path:
    """Write a part whole or not at all."""
    path = part_path(folder, Shard(*part["shard"]))
    write_json(path, dict(part))
    return path


def missing(folder: Path, count: int) -> list[int]:
    """The shards of `count` whose parts are not there yet."""
    return [index for index in range(1, count + 1) if not part_path(folder, Shard(index, count)).is_file()]


def merge(folder: Path, fingerprints: FingerprintSet, known: Mapping[str, Any] | None = None) -> FullCheck:
    """The result of all parts in `folder`, written there as fsr.json too.

    known: what of the identity must be so (None: the parts must agree with each other and with the set). Raises
    InvalidArgumentError that names the parts at fault.
    """
    paths = sorted(folder.glob("shard-*-of-*.json"))
    if not paths:
        raise InvalidArgumentError(f"{folder} holds no part of a full check: run its shards first, with this --out.")
    parts = {path: _read(path) for path in paths}
    wanted = {**parts[paths[0]]["identity"], **(known or {}), "set_digest": fingerprints.digest()}
    for path, part in parts.items():
        _require_same(path, part["identity"], wanted)
    _require_whole(folder, parts, fingerprints)
    result = _merged(list(parts.values()), fingerprints, wanted)
    shards = {path.name: {"seconds": part["seconds"], "made_by": part["made_by"]} for path, part in parts.items()}
    write_json(folder / REPORT, {"result": result.to_json(), "shards": shards})
    return result


def _require_whole(folder: Path, parts: Mapping[Path, Mapping[str, Any]], fingerprints: FingerprintSet) -> None:
    """Every fingerprint in one part, and in no other."""
    counts = sorted({part["shard"][1] for part in parts.values()})
    if len(counts) > 1:
        names = ", ".join(path.name for path in parts)
        raise InvalidArgumentError(
            f"{folder}: the parts {names} overlap: they are of a set split into {counts[0]} and into {counts[1]}. "
            "Remove those of one split."
        )
    owner: dict[int, Path] = {}
    for path, part in parts.items():
        shard = Shard(*part["shard"])
        if part["numbers"] != [fingerprint.number for fingerprint in shard.of(fingerprints)]:
            raise InvalidArgumentError(f"{path} does not hold the fingerprints of its shard: run that shard again.")
        for number in part["numbers"]:
            if number in owner:
                both = f"{owner[number].name} and {path.name}"
                raise InvalidArgumentError(
                    f"{folder}: {both} overlap: both are shard {shard.index}/{shard.count}. Remove one of them."
                )
            owner[number] = path
    found = {part["shard"][0] for part in parts.values()}
    if absent := [f"{index}/{counts[0]}" for index in range(1, counts[0] + 1) if index not in found]:
        raise InvalidArgumentError(
            f"{folder} lacks the parts of shard {', '.join(absent)}: run them with this --out, then merge."
        )


def _merged(parts: Sequence[Mapping[str, Any]], fingerprints: FingerprintSet, known: Mapping[str, Any]) -> FullCheck:
    numbers = [fingerprint.number for fingerprint in fingerprints]
    alive: set[int] = set()
    cells, asked, matched = [], 0, 0
    for places in zip(*(part["cells"] for part in parts), strict=True):
        tries = places[0]["tries"]
        counts = {
            number: count
            for part, cell in zip(parts, places, strict=True)
            for number, count in zip(part["numbers"], cell["matched"], strict=True)
        }
        alive |= {number for number, count in counts.items() if count}
        asked, matched = asked + tries * len(numbers), matched + sum(counts.values())
        by_format = {
            name: sum(sum(cell["by_format"][name]) for cell in places) / (tries * len(numbers))
            for name in places[0]["by_format"]
        }
        fsr = sum(counts.values()) / (tries * len(numbers))
        interval = _interval(sum(counts.values()), tries, len(numbers))
        cells.append(Cell(places[0]["template"], places[0]["temperature"], tries, fsr, interval, by_format))
    return FullCheck(
        identity=dict(known),
        num_fingerprints=len(numbers),
        asked=asked,
        matched=matched,
        fails_everywhere=tuple(number for number in numbers if number not in alive),
        cells=tuple(cells),
    )


def _interval(matched: int, tries: int, fingerprints: int) -> tuple[float, float]:
    """Clopper-Pearson at 95 % as if each fingerprint were one trial: wider than needed where it had several tries."""
    low, _ = clopper_pearson(matched // tries, fingerprints)
    _, high = clopper_pearson(math.ceil(matched / tries), fingerprints)
    return low, high


def _read(path: Path) -> dict[str, Any]:
    """A part whose values have the shape that merging needs."""
    try:
        part: dict[str, Any] = json.loads(read_text(path, "the part"))
        count = len(part["numbers"])
        good = part["part"] == PART and part["seconds"] >= 0 and isinstance(part["made_by"], str)
        Shard(*part["shard"])
        for cell in part["cells"]:
            columns = [cell["matched"], *cell["by_format"].values()]
            good &= set(cell["by_format"]) == set(part["identity"]["formats"])
            good &= all(len(column) == count for column in columns)
            good &= all(type(n) is int and 0 <= n <= cell["tries"] for column in columns for n in column)
        good &= _expected(part["identity"]) == [(c["template"], c["temperature"], c["tries"]) for c in part["cells"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(f"{path} is damaged: delete it, and run its shard again.") from error
    if not good:
        raise InvalidArgumentError(f"{path} is damaged: delete it, and run its shard again.")
    return part


def _expected(identity: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """The cells that a part of this identity has, in order."""
    names = [template["name"] for template in identity["templates"] if template["name"] not in identity["skipped"]]
    return [
        (name, temperature, identity["samples"] if temperature > 0 else 1)
        for name in names
        for temperature in identity["temperatures"]
    ]


def _require_same(path: Path, identity: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    differing = sorted(name for name in known if identity.get(name) != known[name])
    if differing:
        raise InvalidArgumentError(
            f"{path} is about something else ({', '.join(differing)} differ): choose another --out, or remove it."
        )
