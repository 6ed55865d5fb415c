"""A training step on tensors without contents: what it holds, and how much it computes.

The training's own code runs, on models of two depths: all that it takes is linear in the number of blocks that are
alike. Where they are not, it runs on the whole model.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..embed.recipe import Recipe
from ..embed.whitening import Inputs, whitening
from ..embed.workload import Workload
from ..errors import InvalidArgumentError
from ..models import skeleton
from .step import Step

ACTIVATIONS_OF = "activations of "


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a process that has the whole model. Bytes that live through all of training, by what they are:

    weights (of one block: block_weights), base (of the trained weights), gradients (block_gradients), states (changes
    and moments), whitening.

    Bytes that live for a while: activations (the most in a forward and backward pass; one block's part of them:
    block_activations), update (the most in the step of the optimizer), measuring (the most while the whitening is
    measured, when there are no states yet).

    cubes: the sum of n**3 over the matrices [n, n] of the whitening.
    flops: of a step's passes. update_flops, update_bytes: of the optimizer's step; bytes that are moved.
    """

    weights: float
    block_weights: float
    base: float
    gradients: float
    block_gradients: float
    states: float
    whitening: float
    activations: float
    block_activations: float
    update: float
    measuring: float
    cubes: float
    flops: float
    update_flops: float
    update_bytes: float


def dry_run(config: Any, recipe: Recipe, work: Workload, processes: int = 1, *, recompute: bool = False) -> Cost:
    """The cost for one of `processes` that share each step's sequences. Their shares of weights are not taken here.

    Raises InvalidArgumentError for a recipe that this architecture cannot be trained by.
    """
    layers, low = config.get_text_config().num_hidden_layers, least_depth(recipe)
    place, _, number = recipe.write_to.partition(":")
    if place == "last" and int(number) > layers:
        raise InvalidArgumentError(f"write_to {recipe.write_to}: the model has {layers} blocks.")
    found, one_more = (at_depth(config, low + more, recipe, work, processes, recompute) for more in (0, 1))
    block = {name: one_more[name] - found[name] for name in found}
    cost = {name: found[name] + (layers - low) * block[name] for name in found}
    if cost["weights"] != _bytes(skeleton(config, device="meta").model.parameters()):  # its blocks are not all alike
        cost = at_depth(config, layers, recipe, work, processes, recompute)
        block = {name: value / layers for name, value in cost.items()}
    most = max((name for name in cost if name.startswith(ACTIVATIONS_OF)), key=lambda name: cost[name])
    return Cost(
        activations=cost[most],
        block_activations=block[most],
        block_weights=block["weights"],
        block_gradients=block["gradients"],
        **{name: value for name, value in cost.items() if not name.startswith(ACTIVATIONS_OF)},
    )


def least_depth(recipe: Recipe) -> int:
    """A number of blocks from which on each further one costs the same; nothing before the first wants gradients."""
    place, _, number = recipe.write_to.partition(":")
    return (int(number) if place == "last" else 1) + 1


def at_depth(
    config: Any, layers: int, recipe: Recipe, work: Workload, processes: int, recompute: bool
) -> dict[str, float]:
    """The fields of Cost of a model with so many blocks, but for those of one block; of activations each pass's."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = skeleton(config, layers)
        whitened, measuring = None, 0.0
        if recipe.whitening:
            inputs = [Inputs([[1] * work.whitening[1]] * work.whitening[0])]
            with Held(model.model.parameters()) as held:
                whitened = whitening(model, inputs, recipe.whitening, recipe.write_to)
            measuring = float(held.most)
        step = Step(model, recipe, work, processes, recompute=recompute, whitened=whitened)
        known = step.tensors
        flops, activations = 0.0, {}
        for name, often, compute in step.passes():
            activations[ACTIVATIONS_OF + name], computed, _ = measured(compute, known)
            flops += often * computed
        update, update_flops, update_bytes = measured(step.update, known)
        if step.viewed:
            most, computed, moved = measured(step.view, known)
            update, update_flops, update_bytes = (
                max(update, most),
                update_flops + step.viewed * computed,
                update_bytes + step.viewed * moved,
            )
        trained = [weight.parameter for weight in step.weights]
        states = _bytes(step.optimizer.tensors().values()) - (_bytes(trained) if step.compact else 0)
        matrices = {id(matrix): matrix for matrix in (whitened or {}).values()}.values()
        return {
            "weights": _bytes(model.model.parameters()),
            "base": _bytes(weight.base() for weight in step.weights),
            "gradients": _bytes(trained),
            "states": states,
            "whitening": _bytes(matrices),
            "cubes": float(sum(len(matrix) ** 3 for matrix in matrices)),
            **activations,
            "update": update,
            "measuring": measuring,
            "flops": flops,
            "update_flops": update_flops,
            "update_bytes": update_bytes,
        }


def measured(compute: Callable[[], Any], known: Iterable[Tensor]) -> tuple[float, float, float]:
    """The most bytes that lived at once beyond `known`; operations of matrix products; bytes moved."""
    with Held(known) as held:
        compute()
    return float(held.most), float(held.flops), float(held.moved)


class Held(TorchDispatchMode):
    """Counts the bytes of storages that are made inside and still live, those of `known` tensors not.

    most: at once, so far. moved: of all tensors that operations took and gave. flops: of products of matrices.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self._now = self.most = self.moved = self.flops = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        found = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._hold(tensor.untyped_storage())
        if not function.is_view:
            both = (arguments, keywords, found)
            self.moved += sum(tensor.nbytes for tensor in tree_leaves(both) if isinstance(tensor, Tensor))
        if (count := _FLOPS.get(function.overloadpacket)) is not None:
            self.flops += count(*arguments, **(keywords or {}), out_val=found)
        return found

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._now += self._sizes[key]
            self.most = max(self.most, self._now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)


def _products(hidden: int, head: int, count: int) -> Callable[..., int]:
    """So many products [N, H] by [H, V] of the arguments at these places."""

    def flops(*arguments: Any, **_: Any) -> int:
        rows, width = arguments[hidden].shape
        return int(2 * count * rows * width * len(arguments[head]))

    return flops


# Of the fused losses: the backward pass computes the products again, and two for the gradients.
_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.oml_fast.linear_cross_entropy: _products(0, 1, 1),
    torch.ops.oml_fast.linear_cross_entropy_backward: _products(1, 2, 3),
    torch.ops.oml_fast.fingerprint_loss: _products(0, 1, 2),
    torch.ops.oml_fast.fingerprint_loss_backward: _products(2, 3, 4),
}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
