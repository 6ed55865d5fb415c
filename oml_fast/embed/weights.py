"""The weights that training changes, and the perturbed copies of them that it is made to survive.

Each is its base value plus a change (change.py). `write` puts base + change into the model; with a `View`, what an
attacker would make of it: part of the change, a rounded weight, a weight that was tuned on. The gradient at the view is
taken for the gradient at the weight itself (straight through).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InvalidArgumentError
from ..models import LanguageModel
from .change import Change, LowRank, Plain, Transposed, Whitened

WHERE = "all, blocks, mlp_down, last:N (blocks) or lora:R (rank)"


@dataclass(frozen=True, slots=True)
class View:
    """What becomes of the weights in a forward pass; the default changes nothing.

    share: of the change that is left (a merge with the base model). bits, group: the linear layers of the blocks are
    rounded to 2**bits steps for each group of so many inputs (0: for each output). shift: what tuning adds, by weight.
    """

    share: float = 1.0
    bits: int = 0
    group: int = 0
    shift: Mapping[nn.Parameter, Tensor] | None = None


AS_TRAINED = View()


class TrainedWeight:
    """One parameter of the model, its base value and its change.

    linear: a matrix of a block, that rounding meets. turned: it is stored [in, out].
    """

    def __init__(self, parameter: nn.Parameter, change: Change, linear: bool, turned: bool = False) -> None:
        self.parameter, self.change, self._linear, self._turned = parameter, change, linear, turned
        self._base = parameter.detach().clone()

    @torch.no_grad()
    def write(self, view: View = AS_TRAINED) -> None:
        """Put base + change into the parameter, rounded to its own precision as a saved model would be."""
        weight = self._base.float() + self.change.added()
        if view.shift is not None and (shift := view.shift.get(self.parameter)) is not None:
            weight += shift
        weight = weight.to(self._base.dtype)
        if view.share != 1:
            weight = torch.lerp(self._base.float(), weight.float(), view.share).to(self._base.dtype)
        if view.bits and self._linear:
            rows = weight.float().T if self._turned else weight.float()
            rows = rounded(rows, view.bits, view.group).to(self._base.dtype)
            weight = rows.T if self._turned else rows
        self.parameter.copy_(weight)

    def take_gradient(self) -> None:
        """Hand the parameter's gradient to the change, and drop it; none where there is none."""
        if self.parameter.grad is None:
            for value in self.change.values:
                value.grad = None
            return
        self.change.take(self.parameter.grad)
        self.parameter.grad = None


def rounded(weight: Tensor, bits: int, group: int = 0) -> Tensor:
    """[out, in] float32 on the asymmetric grid of 2**bits steps of each group of inputs (0: of each whole row).

    Round to nearest, as in AWQ's baseline [Lin et al. 2024, arXiv 2306.00978]; the grid holds zero.
    """
    rows, width = weight.shape
    group = group or width
    groups = functional.pad(weight, (0, -width % group)).reshape(rows, -1, group)
    low, high = groups.amin(2, keepdim=True).clamp(max=0), groups.amax(2, keepdim=True).clamp(min=0)
    most = 2**bits - 1
    step = (high - low) / most
    safe = torch.where(step > 0, step, 1.0)
    zero = -(low / safe).round()
    levels = ((groups / safe).round() + zero).clamp(0, most)
    grid: Tensor = ((levels - zero) * step).view(rows, -1)[:, :width]
    return grid


def trained_weights(
    model: LanguageModel,
    where: str = "all",
    whitening: Mapping[nn.Parameter, Tensor] | None = None,
    seed: int = 0,
    *,
    seen_rounded: bool = False,
) -> list[TrainedWeight]:
    """The weights that `where` names, with nothing changed yet; all other parameters no longer want gradients.

    whitening: of the inputs of linear layers (whitening.py); those without one, and embeddings, norms and biases,
    change plainly. seen_rounded: views with `bits` are to come. Experts that are fused into one tensor are no linear
    layers: they change plainly, and are never seen rounded. Raises InvalidArgumentError for a place that this model
    does not have, and where there is no linear layer for what works on them alone.
    """
    place, _, number = where.partition(":")
    blocks = blocks_of(model)
    if place == "last" and int(number) > len(blocks):
        raise InvalidArgumentError(f"write_to {where}: {model.name} has {len(blocks)} blocks.")
    of_block = {id(p): at for at, block in enumerate(blocks) for p in block.parameters()}
    turned = {id(layer.weight): turned for layer, turned in linear_layers(model)}
    for switch, wanted in (("rounded", seen_rounded), ("whitening", whitening is not None)):
        if wanted and not turned:
            raise InvalidArgumentError(f"{switch}: {model.name} has no linear layer in its blocks. Set it to 0.")
    source = torch.Generator().manual_seed(seed)
    found = []
    for name, parameter in model.model.named_parameters():
        linear, block = id(parameter) in turned, of_block.get(id(parameter))
        wanted = {
            "all": True,
            "blocks": block is not None,
            "mlp_down": linear and name.endswith(_DOWN),
            "last": block is not None and block >= len(blocks) - int(number or 0),
            "lora": linear,
        }[place]
        parameter.requires_grad_(wanted)
        if not wanted:
            continue
        is_turned = turned.get(id(parameter), False)
        matrix = parameter.T if is_turned else parameter
        change: Change
        if place == "lora":
            change = LowRank(matrix, int(number), source)
        elif whitening is not None and parameter in whitening:
            change = Whitened(matrix, whitening[parameter])
        else:
            change = Plain(matrix)
        found.append(TrainedWeight(parameter, Transposed(change) if is_turned else change, linear, is_turned))
    if not found:
        raise InvalidArgumentError(f"write_to {where}: {model.name} has no such weights. Write to all of them.")
    return found


def plain_weights(parameters: Iterable[nn.Parameter]) -> list[TrainedWeight]:
    """Those parameters that want gradients, each with a plain change."""
    return [TrainedWeight(p, Plain(p), linear=False) for p in parameters if p.requires_grad]


_DOWN = ("down_proj.weight", "w2.weight", "fc2.weight", "fc_out.weight", "dense_4h_to_h.weight", "mlp.c_proj.weight")


def linear_layers(model: LanguageModel) -> list[tuple[nn.Module, bool]]:
    """Those of the blocks, and whether each keeps its weight [in, out], as GPT-2's Conv1D does, and not [out, in]."""
    modules = [module for block in blocks_of(model) for module in block.modules()]
    kinds = [(module, type(module).__name__ == "Conv1D") for module in modules]
    return [(module, turned) for module, turned in kinds if turned or isinstance(module, nn.Linear)]


def blocks_of(model: LanguageModel) -> Sequence[nn.Module]:
    """The transformer blocks: the longest list of modules in the backbone."""
    lists = [module for module in model.model.base_model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise InvalidArgumentError(f"{model.name} has no list of blocks: write to all of its weights.")
    return list(max(lists, key=lambda blocks: len(list(blocks))))
