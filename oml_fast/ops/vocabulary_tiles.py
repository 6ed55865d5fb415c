"""A head's logits in tiles over the vocabulary: what the torch backends of both losses are made of.

One buffer is used for all tiles, so nothing here is kept beyond the next tile but what its caller has reduced it to.
N rows, H hidden, V vocabulary, C columns of a tile, r ids to each row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

# Logits in a tile: two megabytes in float32, which stay in a cache. Half and twice as many take 2 % longer.
_TILE_ELEMENTS = 2**19
# With many rows a tile is wider than that: below this, adding up grad_hidden takes more than it saves.
_LEAST_COLUMNS = 512
_LOG2_E = 1 / math.log(2)
_LOWEST = torch.finfo(torch.float32).min


def tiles(rows: int, vocab: int) -> Iterator[slice]:
    """The vocabulary in order, in pieces of a size that depends on the shape alone."""
    columns = max(_TILE_ELEMENTS // max(rows, 1) // 64 * 64, _LEAST_COLUMNS)
    for start in range(0, vocab, columns):
        yield slice(start, min(start + columns, vocab))


class Head:
    """z = softcap * tanh(scale * (hidden @ classifier.T + bias) / softcap), a tile at a time."""

    def __init__(
        self,
        hidden: Tensor,
        classifier: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        scale: float,
        kept: int = 0,
        products: Tensor | None = None,
    ) -> None:
        """products: hidden @ classifier.T + bias of the first `kept` ids [N, kept]; they are made here, or given."""
        self.hidden, self.classifier, self.bias = hidden.contiguous(), classifier, bias
        self.softcap, self.scale = softcap, scale
        if products is None:
            products = linear(self.hidden, classifier[:kept], None if bias is None else bias[:kept])
        self.products = products
        self.dtype = torch.promote_types(hidden.dtype, torch.float32)
        self.shape = len(hidden), len(classifier)
        self._buffer = Buffer(self, self.dtype)
        self._low = Buffer(self, hidden.dtype)

    def logits(self, tile: slice) -> Tensor:
        """[N, C] float32 (float64 of float64), to be overwritten by whoever asked for it."""
        columns = tile.stop - tile.start
        z = self._buffer.take(columns)
        if tile.stop <= self.products.shape[1]:
            z.copy_(self.products[:, tile])
        elif self.hidden.dtype == self.dtype:
            self._multiply(tile, z)
        else:
            z.copy_(self._multiply(tile, self._low.take(columns)))
        if self.softcap is not None:
            z.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap)
        elif self.scale != 1:
            z.mul_(self.scale)
        return z

    def _multiply(self, tile: slice, out: Tensor) -> Tensor:
        classifier = self.classifier[tile].T
        if self.bias is None:
            return torch.mm(self.hidden, classifier, out=out)
        return torch.addmm(self.bias[tile], self.hidden, classifier, out=out)

    def slope(self, z: Tensor) -> Tensor | None:
        """What a gradient of z must be multiplied by; None for 1."""
        if self.softcap is not None:
            return (z / self.softcap).square_().neg_().add_(1).mul_(self.scale)
        return None if self.scale == 1 else z.new_full((), self.scale)


class Buffer:
    """[N, C], the same memory for every tile."""

    def __init__(self, head: Head, dtype: torch.dtype) -> None:
        self._rows, self._whole = head.shape[0], head.hidden.new_empty(0, dtype=dtype)

    def take(self, columns: int) -> Tensor:
        if self._whole.numel() < self._rows * columns:
            self._whole = self._whole.new_empty(self._rows * columns)
        return self._whole[: self._rows * columns].view(self._rows, columns)


def exp_(z: Tensor) -> Tensor:
    """exp in place. On a CPU torch's own takes three times as long, and where results underflow fifty times.

    Rounding x / log 2 moves the result by |x| units in its last place at most: little, where e^x is not.
    """
    return z.mul_(_LOG2_E).exp2_()


class LogSumExp:
    """[N] log sum exp of each row, from tiles."""

    def __init__(self) -> None:
        self.highest: list[Tensor] = []
        self.sums: list[Tensor] = []

    def add(self, z: Tensor, highest: Tensor) -> None:
        """[N, C] and its rows' maxima [N]; leaves exp(z - highest) in z."""
        # -inf - -inf is NaN: where there is nothing but -inf, next to nothing is taken off.
        exp_(z.sub_(highest.clamp(min=_LOWEST)[:, None]))
        self.highest.append(highest)
        self.sums.append(z.sum(1))

    def merge(self) -> tuple[Tensor, Tensor, Tensor]:
        """[N] the maximum, [N] log sum exp beyond it, and [tiles, N] what a tile's sums weigh."""
        highest = torch.stack(self.highest)
        top = highest.amax(0)
        weights = torch.exp(highest - top.clamp(min=_LOWEST))
        return top, (weights * torch.stack(self.sums)).sum(0).log(), weights


class Best:
    """[N, r] the ids with the largest logits, falling, ties by id rising, from tiles in order."""

    def __init__(self, count: int) -> None:
        self._count = count

    def add(self, z: Tensor, highest: Tensor, start: int) -> None:
        """[N, C] logits of the ids from `start` on, and their rows' maxima [N]."""
        if start == 0:
            self._values, self.ids = _largest(z, self._count)
            return
        # Of equal logits the lower id stays, so most tiles change only few rows.
        rows = (highest > self._values[:, -1]).nonzero()[:, 0]
        if len(rows):
            values, ids = _largest(z[rows], min(self._count, z.shape[1]))
            values = torch.cat((self._values[rows], values), 1)
            ids = torch.cat((self.ids[rows], ids + start), 1)
            order = torch.sort(values, dim=1, descending=True, stable=True).indices[:, : self._count]
            self._values[rows], self.ids[rows] = values.gather(1, order), ids.gather(1, order)


def _largest(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[N, C] -> values and indices [N, count], falling, ties by index rising."""
    if count == 1:
        values, ids = z.max(1)  # the first of equal ones
        return values[:, None], ids[:, None]
    left, values, ids = z.clone(), z.new_empty(len(z), count), z.new_empty(len(z), count, dtype=torch.int64)
    for j in range(min(count, z.shape[1])):
        values[:, j], ids[:, j] = left.max(1)
        left.scatter_(1, ids[:, j : j + 1], -torch.inf)
    if (values[:, -1] == -torch.inf).any():  # then those taken and those that never were finite look alike
        ordered = torch.sort(z, dim=1, descending=True, stable=True)
        return ordered.values[:, :count].clone(), ordered.indices[:, :count].clone()
    return values, ids


class Places:
    """Where the ids [N, r] stand in each tile. Those outside the vocabulary stand nowhere."""

    def __init__(self, ids: Tensor) -> None:
        self._ids, order = ids.flatten().sort(stable=True)
        self._rows, self._columns = order // max(ids.shape[1], 1), order % max(ids.shape[1], 1)

    def within(self, tile: slice) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Indices of [N, C] and the indices of [N, r] that go with them."""
        first, last = torch.searchsorted(self._ids, self._ids.new_tensor([tile.start, tile.stop])).tolist()
        rows = self._rows[first:last]
        return (rows, self._ids[first:last] - tile.start), (rows, self._columns[first:last])


class Gradients:
    """Of hidden, classifier and bias, from tiles of the logits' gradient; [0] where none is wanted."""

    def __init__(self, head: Head, wanted: Sequence[bool]) -> None:
        self._head, self._wanted = head, wanted
        hidden, classifier = head.hidden, head.classifier
        self._sum = hidden.new_zeros(hidden.shape if wanted[0] else 0, dtype=head.dtype)
        self._classifier = hidden.new_empty(classifier.shape if wanted[1] else 0)
        self._bias = hidden.new_empty(len(classifier) if wanted[2] else 0)
        self._low = Buffer(head, hidden.dtype)
        self._part = hidden.new_empty(0 if hidden.dtype == head.dtype else self._sum.shape)

    def add(self, tile: slice, dz: Tensor, slope: Tensor | None) -> None:
        """[N, C] the gradient of z, which is overwritten."""
        if slope is not None:
            dz.mul_(slope)
        of_hidden, of_classifier, of_bias = self._wanted
        if of_bias:
            self._bias[tile] = dz.sum(0)
        hidden, classifier = self._head.hidden, self._head.classifier[tile]
        low = dz if dz.dtype == hidden.dtype else self._low.take(dz.shape[1]).copy_(dz)
        if of_classifier:
            torch.mm(low.T, hidden, out=self._classifier[tile])
        if of_hidden and low is dz:
            self._sum.addmm_(low, classifier)
        elif of_hidden:
            self._sum.add_(torch.mm(low, classifier, out=self._part))

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._sum.to(self._head.hidden.dtype), self._classifier, self._bias
