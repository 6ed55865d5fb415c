"""Where r responses lie among k candidates in the order of the suspect's scores: chances and p-values, all exact. Pure.

Given the scores, the owner's draw is uniform over all C(k, r) subsets. `sizes` are the numbers of candidates with equal
scores, the highest score first; `places` the groups in which the responses lie, in ascending order. Ties need no random
number: groups are the outcomes, and the chances of how many responses lie in each are counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from ..errors import InvalidArgumentError
from .statistics import log_tail_of_sum, rank_test

Sizes = tuple[int, ...]
Places = tuple[int, ...]

_STEPS = 8  # of a score for each doubling of a rank: the first 11 ranks have scores of their own


def require_ranks(sizes: Sequence[int], places: Sequence[int]) -> None:
    """Raise InvalidArgumentError unless such groups can hold the responses so."""
    fits = bool(places) and all(size >= 1 for size in sizes) and list(places) == sorted(places)
    fits = fits and all(0 <= place < len(sizes) and places.count(place) <= sizes[place] for place in places)
    if not fits:
        raise InvalidArgumentError(f"responses in the groups {list(places)} of candidates in groups of {list(sizes)}.")


@lru_cache(maxsize=65536)
def rank_steps(sizes: Sizes, places: Places) -> tuple[tuple[tuple[float, ...], int], ...]:
    """(r,) the responses one after the other, best first: the chances of the next one's group, and which was seen.

    The first step is rank_null and the best response's group. Each further step is given those before it. Where m
    responses are seen in the group of the last, of size g, and s are to come, the next lies in a later group of size h,
    of which and behind which are b candidates, in C(g, m) (C(b, s) - C(b - h, s)) of the subsets that begin so, and in
    the same group in the rest of them. The product of the chances of what was seen is the chance of `places`: at best
    1 / C(k, r).
    """
    steps = []
    group, here, subsets = 0, -1, math.comb(sum(sizes), len(places))  # at first an empty group in front of all
    for seen, place in enumerate(places):
        left, within = len(places) - seen, math.comb(group, places[:seen].count(here))
        behind = list(accumulate(reversed(sizes[here + 1 :]), initial=0))[::-1]
        beyond = [within * math.comb(count, left) for count in behind]
        ways = [subsets - beyond[0], *(more - less for more, less in pairwise(beyond))]
        possible = [offset for offset, count in enumerate(ways) if count]
        steps.append((tuple(ways[offset] / subsets for offset in possible), possible.index(place - here)))
        subsets = ways[place - here] if place == here else ways[place - here] // within
        group, here = sizes[place], place
    return tuple(steps)


def ranks_test(keys: Iterable[tuple[Sizes, Places]]) -> float:
    """log10 of twice the lesser of two exact p-values: rank_test of each key's best response, and log_rank_test of all.

    So p is at most twice 1 / C(k, r) for each key that has all its responses first, without ties; and never more than
    twice what the best responses alone give, however far back the others fell. Raises InvalidArgumentError.
    """
    seen = list(keys)
    for sizes, places in seen:
        require_ranks(sizes, places)
    best = rank_test(rank_steps(sizes, places)[0] for sizes, places in seen)
    return min(0.0, math.log10(2) + min(best, log_rank_test(seen))) + 0.0


def log_rank_test(keys: Iterable[tuple[Sizes, Places]]) -> float:
    """log10 of P(sum of scores <= the sum seen), over the responses of all keys; all of one width and number.

    A response's score is log2 of the middle rank of its group, in steps of 1/8: one that fell from the first place to
    the last of 16 costs no more than two that fell to the fourth. Raises InvalidArgumentError.
    """
    seen = list(keys)
    shapes = {(sum(sizes), len(places)) for sizes, places in seen}
    if len(shapes) > 1:
        raise InvalidArgumentError(f"keys of several widths and numbers of responses: {sorted(shapes)}.")
    if not shapes:
        return 0.0
    ((width, responses),) = shapes
    evidence = sum(_most(width, responses) - _score(sizes, places) for sizes, places in seen)
    counts = Counter(sizes for sizes, _ in seen)
    masses = [(score_chances(sizes, responses)[::-1], count) for sizes, count in counts.items()]
    return min(0.0, log_tail_of_sum(masses, evidence) / math.log(10)) + 0.0


def chance_of_ranks(sizes: Sizes, places: Places) -> float:
    """P(the sum of one key's scores <= the sum seen)."""
    return min(1.0, float(score_chances(sizes, len(places))[: _score(sizes, places) + 1].sum()))


@lru_cache(maxsize=4096)
def score_chances(sizes: Sizes, responses: int) -> npt.NDArray[np.float64]:
    """(r * most + 1,) the chance of each sum of scores under H0, `most` the last rank's score.

    Group by group: the subsets of n responses in the groups so far with a sum of s; c of the next group's g candidates
    add C(g, c) ways and c times its score.
    """
    ways = np.zeros((responses + 1, _most(sum(sizes), responses) + 1))
    ways[0, 0] = 1
    for size, score in zip(sizes, group_scores(sizes), strict=True):
        before = ways.copy()
        for taken in range(1, min(size, responses) + 1):
            step = taken * score
            ways[taken:, step:] += math.comb(size, taken) * before[: responses + 1 - taken, : ways.shape[1] - step]
    return np.asarray(ways[responses] / math.comb(sum(sizes), responses), dtype=np.float64)


@lru_cache(maxsize=65536)
def group_scores(sizes: Sizes) -> tuple[int, ...]:
    """The score of each group: log2 of its middle rank, in steps of 1/8."""
    before = np.cumsum(sizes) - np.asarray(sizes)
    return tuple(int(score) for score in np.rint(_STEPS * np.log2(before + (np.asarray(sizes) + 1) / 2)))


def _score(sizes: Sizes, places: Places) -> int:
    scores = group_scores(sizes)
    return sum(scores[place] for place in places)


def _most(width: int, responses: int) -> int:
    return responses * round(_STEPS * math.log2(width))
