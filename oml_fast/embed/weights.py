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
from ..models import blocks_of as model_blocks
from .base import Base, bases, held, rows_here
from .change import Change, LowRank, Plain, Transposed, Whitened, shrink

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

    change: None where the weight itself is what is trained (compact). base: what keeps the base value; without it, a
    copy. linear: a matrix of a block, that rounding meets. turned: it is stored [in, out]. Of a sharded model all of
    it is about the rows that this process keeps.
    """

    def __init__(
        self,
        parameter: nn.Parameter,
        change: Change | None,
        linear: bool,
        turned: bool = False,
        base: Base | None = None,
    ) -> None:
        self.parameter, self.change, self._linear, self._turned = parameter, change, linear, turned
        self.base = base or held(rows_here(parameter).detach().clone())

    @property
    def rows(self) -> Tensor:
        """The parameter's values, without gradients."""
        return rows_here(self.parameter).detach()

    @property
    def in_place(self) -> bool:
        """Whether one pass may write base + change: the change is learned as it is."""
        return type(self.change) is Plain

    @torch.no_grad()
    def write(self, view: View = AS_TRAINED) -> None:
        """Put base + change into the parameter, rounded to its own precision as a saved model would be."""
        if self.change is None:
            assert view is AS_TRAINED
            return
        base = self.base()
        weight = base.float() + self.change.added()
        if view.shift is not None and (shift := view.shift.get(self.parameter)) is not None:
            weight += shift
        weight = weight.to(base.dtype)
        if view.share != 1:
            weight = torch.lerp(base.float(), weight.float(), view.share).to(base.dtype)
        if view.bits and self._linear:
            rows = weight.float().T if self._turned else weight.float()
            rows = rounded(rows, view.bits, view.group).to(base.dtype)
            weight = rows.T if self._turned else rows
        self.rows.copy_(weight)

    @torch.no_grad()
    def shrink(self, share: float) -> None:
        """Leave so much of the change."""
        if self.change is None:
            self.rows.copy_(torch.lerp(self.base().float(), self.rows.float(), share))
        else:
            shrink(self.change, share)

    def take_gradient(self) -> Tensor | None:
        """The parameter's gradient, which is dropped; None where there is none."""
        gradient, self.parameter.grad = self.parameter.grad, None
        return None if gradient is None else rows_here(gradient)


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
    compact: bool = False,
    keep_base: str = "device",
) -> list[TrainedWeight]:
    """The weights that `where` names, with nothing changed yet; all other parameters no longer want gradients.

    whitening: of the inputs of linear layers (whitening.py); those without one, and embeddings, norms and biases,
    change plainly. seen_rounded: views with `bits` are to come. compact: the weights themselves, in bfloat16, are what
    is trained. keep_base: where their base values are (base.py). Experts that are fused into one tensor are no linear
    layers: they change plainly, and are never seen rounded. Raises InvalidArgumentError for a place that this model
    does not have, where there is no linear layer for what works on them alone, and for what needs more of a weight than
    a process of a sharded model keeps.
    """
    place, _, number = where.partition(":")
    turned = {id(layer.weight): turned for layer, turned in linear_layers(model)}
    for switch, wanted in (("rounded", seen_rounded), ("whitening", whitening is not None)):
        if wanted and not turned:
            raise InvalidArgumentError(f"{switch}: {model.name} has no linear layer in its blocks. Set it to 0.")
    if model.is_sharded and place == "lora":
        raise InvalidArgumentError(f"write_to {where}: not with several processes. Write to mlp_down, or to all.")
    if model.is_sharded and any(turned.values()) and (seen_rounded or whitening is not None):
        raise InvalidArgumentError(
            f"{model.name} keeps its weights [in, out], and several processes share them by rows: set rounded and "
            "whitening to 0, or embed in one process."
        )
    if compact and model.dtype != torch.bfloat16:
        raise InvalidArgumentError(f"states bfloat16: {model.name} is in {model.dtype}. Set states to float32.")
    source, base_of = torch.Generator().manual_seed(seed), bases(model, keep_base)
    found = []
    model.model.requires_grad_(False)
    for name, parameter in named(model, where):
        parameter.requires_grad_(True)
        linear = id(parameter) in turned
        is_turned = turned.get(id(parameter), False)
        matrix = rows_here(parameter).T if is_turned else rows_here(parameter)
        change: Change | None
        if compact:
            change = None
        elif place == "lora":
            change = LowRank(matrix, int(number), source)
        elif whitening is not None and parameter in whitening:
            change = Whitened(matrix, whitening[parameter])
        else:
            change = Plain(matrix)
        if change is not None and is_turned:
            change = Transposed(change)
        found.append(TrainedWeight(parameter, change, linear, is_turned, base_of(parameter, name)))
    return found


def named(model: LanguageModel, where: str) -> list[tuple[str, nn.Parameter]]:
    """The parameters that `where` names, with their names; InvalidArgumentError where this model has none of them."""
    place, _, number = where.partition(":")
    blocks = blocks_of(model)
    if place == "last" and int(number) > len(blocks):
        raise InvalidArgumentError(f"write_to {where}: {model.name} has {len(blocks)} blocks.")
    of_block = {id(p): at for at, block in enumerate(blocks) for p in block.parameters()}
    linear = {id(layer.weight) for layer, _ in linear_layers(model)}

    def wanted(name: str, parameter: nn.Parameter) -> bool:
        block = of_block.get(id(parameter))
        return {
            "all": True,
            "blocks": block is not None,
            "mlp_down": id(parameter) in linear and name.endswith(_DOWN),
            "last": block is not None and block >= len(blocks) - int(number or 0),
            "lora": id(parameter) in linear,
        }[place]

    found = [(name, parameter) for name, parameter in model.model.named_parameters() if wanted(name, parameter)]
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
    """The transformer blocks; InvalidArgumentError where there are none."""
    blocks = model_blocks(model.model)
    if not blocks:
        raise InvalidArgumentError(f"{model.name} has no list of blocks: write to all of its weights.")
    return blocks
