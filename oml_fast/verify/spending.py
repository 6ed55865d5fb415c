"""Which keys are asked next. The registry's attempts keep account across verifications; `InOrder` keeps none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Attempt(Protocol):
    """One verification's hold on keys: what it takes is spent, and nobody else is given it."""

    @property
    def id(self) -> str:
        """Names this attempt in the registry and in the report; "" where nobody keeps account."""
        ...

    def take(self, count: int) -> tuple[int, ...]:
        """Numbers of the next keys, at most `count`, in the order of asking; spent on this suspect from now on.

        Fewer, or none, where the set has no more. A resumed attempt gives those again that it took before, first.
        """
        ...

    def ended(self, verdict: str, report: Mapping[str, Any], digest: str | None = None) -> None:
        """The verdict, the whole report as plain JSON values, and its digest where it has one of its own."""
        ...


class InOrder:
    """The keys in the order given, with no account of who has seen them."""

    id = ""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = tuple(numbers)
        self._left = list(numbers)

    def take(self, count: int) -> tuple[int, ...]:
        taken, self._left = self._left[:count], self._left[count:]
        return tuple(taken)

    def ended(self, verdict: str, report: Mapping[str, Any], digest: str | None = None) -> None:
        """Nothing to keep."""
