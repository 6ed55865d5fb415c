"""Perinucleus sampling in Triton: two passes over the logits, then over few tokens only.

B rows, V vocabulary, W width. All sums are of integers, so neither how many programs there are nor which comes first
changes a bit. What masses and keys of tokens are: perinucleus_masses.py.

1. `extremes_kernel`: each row's maximum and minimum.
2. `masses_kernel`: the normaliser, and a list of the tokens near the maximum.
3. `histogram_kernel`: over the logits of the list or, where it overflowed (flat rows), of the row.
4. `gather_kernel`: the histogram tells in which bucket the nucleus ends, and up to which one candidates are needed; the
   tokens of these buckets go into a short list.
5. `select_kernel`: a radix walk over their keys finds the last token of the nucleus, another the last candidate. Where
   the short list overflowed (many ties) or lacks candidates, they walk over the row.
6. `write_kernel`: ids and probabilities of the candidates, which torch has sorted.
"""

from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from .perinucleus_masses import (
    KEY_BITS,
    NO_TOKEN,
    ids_of,
    keys_of,
    logits_of,
    masses_of,
    normaliser_of,
    probabilities_of,
)

BLOCK = 2048  # tokens at a time in passes over rows
WALK_BLOCK = 512  # the same where each is compared with 16 pivots
LIST = 16384  # tokens that a list holds
PROGRAMS = 1024  # a row is split over several programs until there are so many
ROWS = 1024  # at a time, to bound memory
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}

# The histogram: FINE buckets over the logits from the row's maximum to REACH below it, or to its minimum; then coarse
# ones, COARSE to a unit, of which the last takes all that is left.
BUCKETS = tl.constexpr(1024)
FINE = tl.constexpr(960)
REACH = tl.constexpr(8.0)
COARSE = tl.constexpr(2.0)
# In coarse buckets only the largest of so many tokens is counted, which costs little. It is taken to be admissible with
# the share of all tokens that are, divided by CAUTION. Where that was too much, nothing but time is lost.
GROUP = tl.constexpr(32)
CAUTION = tl.constexpr(4)
# A row's counters: masses and counts of buckets, tokens in the list and in the short one, tokens before that.
COUNTERS = tl.constexpr(2 * BUCKETS.value + 3)
NEAR = tl.constexpr(2 * BUCKETS.value)
SHORT = tl.constexpr(2 * BUCKETS.value + 1)
BEFORE = tl.constexpr(2 * BUCKETS.value + 2)

# oml_fast.ops.reference.RowStatus
STATUS_OK, STATUS_SHORT, STATUS_NAN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
STATUS_NO_FINITE, STATUS_PLUS_INFINITY = tl.constexpr(3), tl.constexpr(4)


@triton.jit
def buckets_of(x, top, low):
    """A falling function of the logit, so that the order of buckets is the order of tokens."""
    fine = (top - x) * tl.div_rn(FINE * 1.0, tl.maximum(top - low, 1e-30))
    coarse = FINE + tl.minimum((low - x) * COARSE, BUCKETS - FINE - 1.0)
    return tl.where(x >= low, tl.minimum(fine, FINE - 1.0), coarse).to(tl.int32)


@triton.jit
def row_extremes(extremes, row, SPLITS: tl.constexpr):
    """-> the row's maximum, where its fine buckets end, and its status."""
    at = row * (2 * SPLITS) + tl.arange(0, SPLITS)
    tops = tl.load(extremes + at)
    nan = tl.max((tops != tops).to(tl.int32), 0)
    top = tl.max(tops, 0)
    low = tl.maximum(tl.min(tl.load(extremes + SPLITS + at), 0), top - REACH)
    status = tl.where(top == float("inf"), STATUS_PLUS_INFINITY, STATUS_OK)
    status = tl.where(top == float("-inf"), STATUS_NO_FINITE, status)
    return top, low, tl.where(nan > 0, STATUS_NAN, status)


@triton.jit
def row_total(totals, row, SPLITS: tl.constexpr):
    return tl.sum(tl.load(totals + row * SPLITS + tl.arange(0, SPLITS)), 0)


@triton.jit
def goal_of(threshold_bits, total):
    """The mass that the nucleus must reach. The threshold comes as bits, because Triton's scalars are float32."""
    threshold = threshold_bits.to(tl.int64).to(tl.float64, bitcast=True)
    return tl.maximum(threshold * total.to(tl.float64), 1.0)  # at least one unit, so that it takes a token


@triton.jit
def admitted(admissible, ids, chosen, HAS_MASK: tl.constexpr):
    """Which of the chosen tokens are admissible."""
    if HAS_MASK:
        chosen = chosen & (tl.load(admissible + ids, mask=chosen, other=0) != 0)
    return chosen


@triton.jit
def put(to, counter, values, chosen, LIST: tl.constexpr):
    """Append the chosen values to a list that other programs append to. It may overflow: the counter tells."""
    count = tl.sum(chosen.to(tl.int32), 0)
    if count > 0:
        slots = tl.atomic_add(counter, count.to(tl.int64), sem="relaxed") + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(to + slots, values, mask=chosen & (slots < LIST))


@triton.jit
def near_tokens(near, logits, listed, at, n):
    """Ids and logits of some tokens near the maximum or, where these were too many for a list, of the row."""
    ids = at
    if listed:
        ids = tl.load(near + at, mask=at < n, other=0)
    return ids, tl.load(logits + ids, mask=at < n, other=float("-inf")).to(tl.float32)


@triton.jit
def keys_from(short, logits, listed, start, n, BLOCK: tl.constexpr):
    """The keys of some tokens of the short list or, where these were too many for it, of the row."""
    at = start + tl.arange(0, BLOCK)
    if listed:
        keys = tl.load(short + at, mask=at < n, other=NO_TOKEN)
    else:
        keys = keys_of(tl.load(logits + at, mask=at < n, other=float("-inf")).to(tl.float32), at)
    return keys


@triton.jit
def candidates_among(keys, boundary, end, admissible, HAS_MASK: tl.constexpr):
    chosen = (keys > boundary) & (keys <= end) & (keys < NO_TOKEN)
    return admitted(admissible, ids_of(keys), chosen, HAS_MASK)


@triton.jit
def extremes_kernel(logits, extremes, V, stride, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """extremes [B, 2, SPLITS]: the maximum of some of a row's logits, or NaN; the minimum of those that are finite."""
    row = tl.program_id(0).to(tl.int64)
    tops = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    bottoms = tl.full((BLOCK,), float("inf"), dtype=tl.float32)
    nan = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(tl.program_id(1) * BLOCK, V, SPLITS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * stride + at, mask=at < V, other=float("-inf")).to(tl.float32)
        nan |= (x != x).to(tl.int32)
        tops = tl.where(x > tops, x, tops)
        bottoms = tl.where((x < bottoms) & (x > float("-inf")), x, bottoms)
    top = tl.where(tl.max(nan, 0) > 0, float("nan"), tl.max(tops, 0))
    place = row * (2 * SPLITS) + tl.program_id(1)
    tl.store(extremes + place, top)
    tl.store(extremes + SPLITS + place, tl.min(bottoms, 0))


@triton.jit
def masses_kernel(
    logits, extremes, totals, counters, near,
    V, stride,
    FRACTION: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """totals [B, SPLITS]: the mass of some of a row's tokens. near [B, LIST]: ids of those in the fine buckets."""
    row = tl.program_id(0).to(tl.int64)
    top, low, status = row_extremes(extremes, row, SPLITS)
    counter = counters + row * COUNTERS
    sums = tl.zeros((BLOCK,), dtype=tl.int64)
    for start in range(tl.program_id(1) * BLOCK, tl.where(status == STATUS_OK, V, 0), SPLITS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * stride + at, mask=at < V, other=float("-inf")).to(tl.float32)
        sums += masses_of(x, top, FRACTION)
        put(near + row * LIST, counter + NEAR, at, x >= low, LIST)
        largest = tl.max(tl.reshape(x, (BLOCK // GROUP, GROUP)), 1)
        far = (largest < low) & (largest > float("-inf"))
        tl.atomic_add(counter + BUCKETS + buckets_of(largest, top, low), far.to(tl.int64), mask=far, sem="relaxed")
    tl.store(totals + row * SPLITS + tl.program_id(1), tl.sum(sums, 0))


@triton.jit
def histogram_kernel(
    logits, admissible, extremes, counters, near,
    V, stride,
    HAS_MASK: tl.constexpr, FRACTION: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """The mass and the number of tokens in each fine bucket."""
    row = tl.program_id(0).to(tl.int64)
    top, low, status = row_extremes(extremes, row, SPLITS)
    counter = counters + row * COUNTERS
    count = tl.load(counter + NEAR)
    n = tl.where(status == STATUS_OK, tl.where(count <= LIST, count.to(tl.int32), V), 0)
    for start in range(tl.program_id(1) * BLOCK, n, SPLITS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        ids, x = near_tokens(near + row * LIST, logits + row * stride, count <= LIST, at, n)
        close = x >= low
        bucket = buckets_of(x, top, low)
        tl.atomic_add(counter + bucket, masses_of(x, top, FRACTION), mask=close, sem="relaxed")
        wanted = admitted(admissible, ids, close, HAS_MASK)
        tl.atomic_add(counter + BUCKETS + bucket, tl.full((BLOCK,), 1, tl.int64), mask=wanted, sem="relaxed")


@triton.jit(do_not_specialize=["width", "threshold_bits"])
def gather_kernel(
    logits, admissible, num_admissible, extremes, totals, counters, near, short, spans,
    V, stride, width, threshold_bits,
    HAS_MASK: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """short [B, LIST]: keys of the bucket in which the nucleus ends, and admissible ones of the next buckets.

    spans [B, 3]: these buckets' first (BUCKETS: the histogram does not reach the goal) and last, and the mass before.
    """
    row = tl.program_id(0).to(tl.int64)
    top, low, status = row_extremes(extremes, row, SPLITS)
    counter = counters + row * COUNTERS
    index = tl.arange(0, BUCKETS)
    masses = tl.load(counter + index)
    goal = goal_of(threshold_bits, row_total(totals, row, SPLITS))
    first = tl.sum((tl.cumsum(masses, 0).to(tl.float64) < goal).to(tl.int32), 0)
    # In units of 1 / (CAUTION V) of an admissible token.
    whole = tl.full((), CAUTION, dtype=tl.int64) * V
    share = tl.load(num_admissible) if HAS_MASK else whole // CAUTION
    counts = tl.load(counter + BUCKETS + index) * tl.where(index < FINE, whole, share)
    passed = tl.cumsum(tl.where(index > first, counts, 0), 0)
    last = tl.minimum(tl.sum((passed < width * whole).to(tl.int32), 0), BUCKETS - 1)
    if tl.program_id(1) == 0:
        tl.store(spans + row * 3, first.to(tl.int64))
        tl.store(spans + row * 3 + 1, last.to(tl.int64))
        tl.store(spans + row * 3 + 2, tl.sum(tl.where(index < first, masses, 0), 0))
    count = tl.load(counter + NEAR)
    listed = (count <= LIST) & (last < FINE)
    n = tl.where(listed, count.to(tl.int32), V)
    n = tl.where((status == STATUS_OK) & (first < BUCKETS), n, 0)
    before = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(tl.program_id(1) * BLOCK, n, SPLITS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        ids, x = near_tokens(near + row * LIST, logits + row * stride, listed, at, n)
        bucket = buckets_of(x, top, low)
        before += (bucket < first).to(tl.int32)
        after = (bucket > first) & (bucket <= last) & (x > float("-inf"))
        wanted = admitted(admissible, ids, after, HAS_MASK) | (bucket == first)
        put(short + row * LIST, counter + SHORT, keys_of(x, ids), wanted, LIST)
    tl.atomic_add(counter + BEFORE, tl.sum(before, 0).to(tl.int64), sem="relaxed")


@triton.jit
def walk(
    short, logits, listed, n, admissible, boundary, before, goal, top,
    COUNTS: tl.constexpr, HAS_MASK: tl.constexpr, FRACTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The least key up to which the sum of the tokens' weights reaches the goal, 4 bits at a time; or the largest key.

    Weights are masses; COUNTS: 1 for admissible tokens after the boundary.
    """
    pivots = tl.arange(0, 16).to(tl.int64)
    found = tl.full((), 0, dtype=tl.int64)
    for digit in range(KEY_BITS // 4):
        shift = KEY_BITS - 4 - 4 * digit
        ends = found + ((pivots + 1) << shift)
        parts = tl.zeros((BLOCK, 16), dtype=tl.int64)
        for start in range(0, n, BLOCK):
            keys = keys_from(short, logits, listed, start, n, BLOCK)
            if COUNTS:
                weights = candidates_among(keys, boundary, keys, admissible, HAS_MASK).to(tl.int64)
            else:
                weights = masses_of(logits_of(keys), top, FRACTION)
            parts += tl.where(keys[:, None] < ends[None, :], weights[:, None], 0)
        missed = tl.sum(((before + tl.sum(parts, 0)).to(tl.float64) < goal).to(tl.int32), 0)
        found += tl.minimum(missed, 15).to(tl.int64) << shift
    return found


@triton.jit(do_not_specialize=["width", "threshold_bits"])
def select_kernel(
    logits, admissible, extremes, totals, counters, short, spans, candidates, nucleus_size, nucleus_mass,
    V, stride, width, threshold_bits,
    HAS_MASK: tl.constexpr, FRACTION: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """The nucleus of a row, and candidates [B, W]: the keys of its candidates in any order, then NO_TOKEN."""
    row = tl.program_id(0).to(tl.int64)
    top, _, status = row_extremes(extremes, row, SPLITS)
    usable = status == STATUS_OK
    total = row_total(totals, row, SPLITS)
    goal = goal_of(threshold_bits, total)
    logits += row * stride
    short += row * LIST
    candidates += row * width
    first = tl.load(spans + row * 3)
    last = tl.load(spans + row * 3 + 1)
    count = tl.load(counters + row * COUNTERS + SHORT)
    listed = (first < BUCKETS) & (count <= LIST)
    n = tl.where(usable, tl.where(listed, count.to(tl.int32), V), 0)
    mass = tl.where(listed, tl.load(spans + row * 3 + 2), 0)
    size = tl.where(listed, tl.load(counters + row * COUNTERS + BEFORE), 0)
    zero = tl.full((), 0, dtype=tl.int64)
    boundary = walk(short, logits, listed, n, admissible, zero, mass, goal, top, False, HAS_MASK, FRACTION, BLOCK)
    after = zero
    for start in range(0, n, BLOCK):
        keys = keys_from(short, logits, listed, start, n, BLOCK)
        inside = keys <= boundary
        size += tl.sum(inside.to(tl.int64), 0)
        mass += tl.sum(tl.where(inside, masses_of(logits_of(keys), top, FRACTION), 0), 0)
        after += tl.sum(candidates_among(keys, boundary, keys, admissible, HAS_MASK).to(tl.int64), 0)
    tl.store(nucleus_size + row, size)
    tl.store(nucleus_mass + row, tl.where(usable, mass.to(tl.float64) / tl.maximum(total, 1).to(tl.float64), 0.0))

    # The histogram only bounds how many tokens there are below its fine buckets, so candidates may be missing.
    listed = listed & ((after >= width) | (last == BUCKETS - 1))
    n = tl.where(usable, tl.where(listed, count.to(tl.int32), V), 0)
    end = walk(
        short, logits, listed, n, admissible, boundary, zero, width.to(tl.float64), top, True, HAS_MASK, FRACTION, BLOCK
    )
    written = tl.full((), 0, dtype=tl.int32)
    for start in range(0, n, BLOCK):
        keys = keys_from(short, logits, listed, start, n, BLOCK)
        chosen = candidates_among(keys, boundary, end, admissible, HAS_MASK)
        slots = written + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(candidates + slots, keys, mask=chosen)
        written += tl.sum(chosen.to(tl.int32), 0)
    for start in range(written, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(candidates + at, tl.full((BLOCK,), NO_TOKEN, dtype=tl.int64), mask=at < width)


@triton.jit
def write_kernel(
    candidates, extremes, totals, token_ids, probs, statuses,
    width,
    FRACTION: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """token_ids, probs [B, W] of sorted candidates, as long as p > 0 in float64."""
    row = tl.program_id(0).to(tl.int64)
    top, _, status = row_extremes(extremes, row, SPLITS)
    normaliser = normaliser_of(row_total(totals, row, SPLITS), top, FRACTION)
    found = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        keys = tl.load(candidates + row * width + at, mask=at < width, other=NO_TOKEN)
        p = probabilities_of(logits_of(keys), top, normaliser)
        there = (keys < NO_TOKEN) & (p > 0)
        tl.store(token_ids + row * width + at, tl.where(there, ids_of(keys), -1), mask=at < width)
        tl.store(probs + row * width + at, tl.where(there, p, 0.0), mask=at < width)
        found += there.to(tl.int32)
    short = (status == STATUS_OK) & (tl.sum(found, 0) < width)
    tl.store(statuses + row, tl.where(short, STATUS_SHORT, status).to(tl.uint8))


def perinucleus(logits: Tensor, threshold: float, width: int, admissible: Tensor | None) -> tuple[Tensor, ...]:
    """[B, V] logits, B > 0, V <= 2**20 -> the columns of `oml_fast.ops.reference.PerinucleusRows`, in its order.

    Any row stride. Nothing here waits for the device. Of rows that cannot be used only the status means something.
    """
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    mask = None if admissible is None else admissible.contiguous().view(torch.uint8)
    num_admissible = None if mask is None else mask.sum()
    parts = [_some_rows(some, threshold, width, mask, num_admissible) for some in torch.split(logits, ROWS)]
    return parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _some_rows(
    logits: Tensor, threshold: float, width: int, mask: Tensor | None, num_admissible: Tensor | None
) -> tuple[Tensor, ...]:
    rows, vocab = logits.shape
    splits = triton.next_power_of_2(min(triton.cdiv(PROGRAMS, rows), triton.cdiv(vocab, BLOCK)))

    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(rows, *shape, dtype=dtype, device=logits.device)

    extremes, totals, spans = empty(2, splits, dtype=torch.float32), empty(splits), empty(3)
    limit = min(LIST, triton.next_power_of_2(vocab))
    near, short, candidates = empty(limit, dtype=torch.int32), empty(limit), empty(width)
    token_ids, probs, status = empty(width), empty(width, dtype=torch.float64), empty(dtype=torch.uint8)
    size, mass = empty(), empty(dtype=torch.float64)
    counters = torch.zeros(rows, COUNTERS.value, dtype=torch.int64, device=logits.device)

    sizes = vocab, logits.stride(0)
    (threshold_bits,) = struct.unpack("q", struct.pack("d", threshold))
    sought = *sizes, width, threshold_bits
    # Masses, each below 2 before it is scaled, must not overflow when they are added up.
    fraction = {"FRACTION": min(44, 62 - (vocab - 1).bit_length())}
    options = OPTIONS | {"SPLITS": splits}
    lists = options | {"LIST": limit, "HAS_MASK": mask is not None}
    grid = rows, splits
    with torch.cuda.device_of(logits):  # nothing where that is the CPU, for the interpreter
        extremes_kernel[grid](logits, extremes, *sizes, BLOCK=BLOCK, **options)
        summed = extremes, totals, counters
        masses_kernel[grid](logits, *summed, near, *sizes, BLOCK=BLOCK, LIST=limit, **fraction, **options)
        histogram_kernel[grid](logits, mask, extremes, counters, near, *sizes, BLOCK=BLOCK, **fraction, **lists)
        gather_kernel[grid](logits, mask, num_admissible, *summed, near, short, spans, *sought, BLOCK=BLOCK, **lists)
        found = candidates, size, mass
        select_kernel[rows,](
            logits, mask, *summed, short, spans, *found, *sought, BLOCK=WALK_BLOCK, **fraction, **lists
        )
        ordered = candidates.sort(dim=1).values
        written = token_ids, probs, status
        write_kernel[rows,](ordered, extremes, totals, *written, width, BLOCK=WALK_BLOCK, **fraction, **options)
    return token_ids, probs, size, mass, status
