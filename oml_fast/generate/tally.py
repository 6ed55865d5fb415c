"""What the finished units amount to: fingerprints in the order of their numbers, whoever made them and when."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..errors import InvalidArgumentError
from ..fingerprint import Fingerprint, Settings
from ..fingerprint_json import fingerprint_from_json
from .acceptance import KEY_PREDICTABLE, SHORT_WINDOW
from .units import candidates

_WAYS_OUT = {
    SHORT_WINDOW: "Lower --width or --threshold",
    KEY_PREDICTABLE: "Raise --key-length or --key-temperature",
}


class Tally:
    """Accepted fingerprints, duplicates and rejections by reason, counted unit after unit up to the number wanted.

    A unit that comes before one of a lower number waits for it, so that of two equal keys the first number wins.
    `seconds` and `sampling_seconds` are those of all units, of every process.
    """

    def __init__(self, settings: Settings, wanted: int) -> None:
        self._settings, self._wanted = settings, wanted
        self.accepted: list[Fingerprint] = []
        self.duplicates = 0
        self.rejected: Counter[str] = Counter()
        self.seconds = self.sampling_seconds = 0.0
        self._seen: set[tuple[int, ...]] = set()
        self._counted = 0  # units
        self._waiting: dict[int, list[dict[str, Any]]] = {}

    @property
    def complete(self) -> bool:
        return len(self.accepted) == self._wanted

    @property
    def found(self) -> int:
        """Fingerprints that are there, waiting ones too; at most as many as are wanted."""
        return min(self._wanted, len(self.accepted) + sum(map(_passed, self._waiting.values())))

    def add(self, unit: dict[str, Any]) -> None:
        """Take a finished unit; one that is known already changes nothing."""
        if unit["unit"] < self._counted or unit["unit"] in self._waiting:
            return
        self.seconds += unit["seconds"]
        self.sampling_seconds += unit["sampling_seconds"]
        self._waiting[unit["unit"]] = unit["outcomes"]
        while self._counted in self._waiting:
            self._count(self._waiting.pop(self._counted))
            self._counted += 1

    def missing(self, limit: int | None) -> list[int]:
        """The units that the set still needs, as far as one can tell: those not there, taken to be as good as the rest.

        limit: candidates that there are, None where they have no end.
        """
        if self.complete:
            return []
        made = sum(len(candidates(unit)) for unit in (*range(self._counted), *self._waiting))
        found = len(self.accepted) + sum(map(_passed, self._waiting.values()))
        share = found / made if made else 1.0
        expected: float = len(self.accepted)
        absent, unit = [], self._counted
        while expected < self._wanted and (limit is None or candidates(unit).start < limit):
            if unit in self._waiting:
                expected += _passed(self._waiting[unit])
            else:
                expected += max(1.0, share * len(candidates(unit)))
                absent.append(unit)
            unit += 1
        return absent

    def next_unit(self, shard: tuple[int, int], limit: int | None) -> int | None:
        """The unit that this shard makes next: of n shards the i-th makes those of number i - 1, i - 1 + n, ...

        None where its share is done. Should the set need more in the end than was to be expected, nobody may be left
        whose share it would be: whoever sees all units before it finished makes it. Raises InvalidArgumentError where
        going on cannot reach the number wanted.
        """
        absent = self.missing(limit)
        if not absent and not self.complete:
            raise InvalidArgumentError(
                f"the keys have run out: {self._so_far()}. Give more keys than {limit}, or lower --num-fingerprints."
            )
        own = next((unit for unit in absent if unit % shard[1] == shard[0] - 1), None)
        if own is None and absent and self._counted and not self._waiting:
            own = absent[0]
        if own is not None:
            self._require_hope()
        return own

    def _count(self, outcomes: list[dict[str, Any]]) -> None:
        for outcome in outcomes:
            if self.complete:
                return
            if "rejected" in outcome:
                self.rejected[outcome["rejected"]] += 1
            elif tuple(outcome["key_ids"]) in self._seen:
                self.duplicates += 1
            else:
                self._seen.add(tuple(outcome["key_ids"]))
                self.accepted.append(fingerprint_from_json(outcome, self._settings))

    def _require_hope(self) -> None:
        rejected = self._all_rejected()
        if rejected.total() > 50 * (1 + self.found):
            way_out = _WAYS_OUT.get(rejected.most_common(1)[0][0], "Choose other keys")
            raise InvalidArgumentError(f"almost every key is rejected: {self._so_far()}. {way_out}.")

    def _so_far(self) -> str:
        reasons = ", ".join(f"{reason} {n}" for reason, n in self._all_rejected().most_common()) or "none"
        return f"{self.found} of {self._wanted} fingerprints made, {self.duplicates} duplicates, rejected: {reasons}"

    def _all_rejected(self) -> Counter[str]:
        waiting = (o["rejected"] for outcomes in self._waiting.values() for o in outcomes if "rejected" in o)
        return self.rejected + Counter(waiting)


def _passed(outcomes: list[dict[str, Any]]) -> int:
    return sum("rejected" not in outcome for outcome in outcomes)
