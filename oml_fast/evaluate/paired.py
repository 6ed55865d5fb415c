"""Two models compared item by item: the difference, its standard error, a bound on the loss, the items that flipped.

Both models answer the same items, so what an item is worth cancels: the standard error of the difference is far smaller
than that of either score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

from ..errors import InvalidArgumentError

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Paired:
    """Model against base on `items` items.

    difference: model - base. loss_bound: with 95 % confidence the model is worse than the base by less than this, in
    the score's own unit. Both are infinite where one item alone says nothing of the spread. binary: items
    are right or wrong; then lost, won: places of those that the base had right and the model wrong, and the reverse.
    """

    items: int
    base: float
    model: float
    difference: float
    standard_error: float
    loss_bound: float
    binary: bool = False
    lost: tuple[int, ...] = ()
    won: tuple[int, ...] = ()

    def __str__(self) -> str:
        flipped = f"; lost {len(self.lost)}, won {len(self.won)} of {self.items:,}" if self.binary else ""
        return (
            f"{self.base:.4f} to {self.model:.4f}: {self.difference:+.4f} ± {self.standard_error:.4f}, "
            f"loss < {self.loss_bound:.4f}{flipped}"
        )

    def to_json(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Plain JSON, with the flipped items by place, or by name; what is infinite is null."""
        flipped = {
            side: [place if names is None else names[place] for place in getattr(self, side)]
            for side in ("lost", "won")
        }
        plain = {name: value for name, value in asdict(self).items() if name not in flipped}
        return {name: None if value == math.inf else value for name, value in plain.items()} | flipped


def flips(base: ArrayLike, model: ArrayLike) -> Paired:
    """Right or wrong, [N] of 0 and 1 each: the standard error from the flips (McNemar), the bound by Tango's score.

    se = sqrt(lost + won - (lost - won)^2 / N) / N. It is 0 where nothing flipped; the bound [Tango 1998] is not, since
    N items without a flip do not show that there is none.
    """
    before, after = _pair(base, model)
    if not np.isin(before, (0, 1)).all() or not np.isin(after, (0, 1)).all():
        raise InvalidArgumentError("flips: items must be right (1) or wrong (0); compare other scores with `means`.")
    lost, won = np.flatnonzero(before > after), np.flatnonzero(after > before)
    count, difference = len(before), len(won) - len(lost)
    return Paired(
        items=count,
        base=float(before.mean()),
        model=float(after.mean()),
        difference=difference / count,
        standard_error=math.sqrt(len(lost) + len(won) - difference**2 / count) / count,
        loss_bound=_tango(len(lost), len(won), count),
        binary=True,
        lost=tuple(lost.tolist()),
        won=tuple(won.tolist()),
    )


def means(
    base: ArrayLike, model: ArrayLike, counts: ArrayLike | None = None, *, higher_is_better: bool = True
) -> Paired:
    """Sums [N] over items of `counts` parts each (default 1): means over all parts, items as the clusters.

    With d_i the difference of item i and d their mean over all parts: se = sqrt(N / (N - 1) * sum((d_i - d n_i)^2)) /
    sum(n_i); the bound is Student's with N - 1 degrees of freedom. Raises InvalidArgumentError.
    """
    before, after = _pair(base, model)
    parts = np.ones(len(before)) if counts is None else np.asarray(counts, dtype=np.float64)
    if parts.shape != before.shape or not (parts > 0).all():
        raise InvalidArgumentError("means: `counts` must have one positive number for each item.")
    count, whole = len(before), parts.sum()
    difference = (after - before).sum() / whole
    spread = (((after - before) - difference * parts) ** 2).sum()
    if count > 1:
        error = math.sqrt(count / (count - 1) * spread) / whole
        bound = (-difference if higher_is_better else difference) + float(stdtrit(count - 1, CONFIDENCE)) * error
    else:
        error, bound = math.inf, math.inf
    return Paired(
        count, float(before.sum() / whole), float(after.sum() / whole), float(difference), float(error), float(bound)
    )


def compare(base: ArrayLike, model: ArrayLike, *, higher_is_better: bool = True) -> Paired:
    """`flips` for items that are right or wrong, `means` for any other scores."""
    before, after = _pair(base, model)
    if higher_is_better and np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
        return flips(before, after)
    return means(before, after, higher_is_better=higher_is_better)


def _tango(lost: int, won: int, count: int) -> float:
    """Upper bound on P(lost) - P(won): where the score statistic falls to the normal quantile, by bisection."""
    wanted = float(ndtri(CONFIDENCE))
    low, high = (lost - won) / count, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if -_score(lost, won, count, middle) < wanted else (low, middle)
    return high


def _score(lost: int, won: int, count: int, loss: float) -> float:
    """Tango's statistic of H0: P(lost) - P(won) = loss, with P(won) at its most likely value under H0."""
    a = 2 * count
    b = -lost - won + (2 * count - lost + won) * loss
    c = -won * loss * (1 - loss)
    probability = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = count * (2 * probability + loss * (1 - loss))
    deviation = lost - won - count * loss
    return deviation / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, deviation)


def _pair(base: ArrayLike, model: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    before, after = np.asarray(base, dtype=np.float64), np.asarray(model, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1 or not len(before):
        raise InvalidArgumentError(
            f"scores of {before.shape} and {after.shape} items cannot be compared: score both models on the same items."
        )
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise InvalidArgumentError("a score is not finite: one of the models gives no usable logits.")
    return before, after
