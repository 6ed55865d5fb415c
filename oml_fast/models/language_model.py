"""A causal language model, cut where this project needs it: a backbone to hidden states, a head to logits.

Fingerprints need logits at one or a few positions of each sequence. Computing them there, as one matrix product over
the rows wanted, costs a fraction of [B, T, V] logits (and avoids a slow path of torch on CPU, where the head over a
strided [B, 1, H] slice took a hundred times longer than over [B, H]).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from ..errors import InvalidArgumentError

Value = TypeVar("Value")


class LanguageModel:
    """A transformers causal model with its tokenizer and digests.

    B sequences, T token ids, H hidden, V vocabulary, N rows. `whole`: the root of a sharded model (sharded.py).
    `packs`: sequences of different lengths are read as one row, which wants an attention that skips what is masked.
    `checked`: that this class does to hidden states what the model itself does; it computes with the model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        digest: str,
        tokenizer_digest: str,
        whole: nn.Module | None = None,
        packs: bool = False,
        checked: bool = True,
    ) -> None:
        self.model = model.eval()
        self.packs = packs
        self._whole, self._inside = whole, False
        self.tokenizer = tokenizer
        self.name = name
        self.digest = digest
        self.tokenizer_digest = tokenizer_digest
        config = model.config.get_text_config()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._scale = _logit_scale(config)
        if checked:
            self._check_head()
            self._check_cache()

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def vocabulary(self) -> int:
        """V, the width of the logits; at least the number of the tokenizer's token ids."""
        return int(self.head()[0].shape[0])

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end an answer: the tokenizer's EOS and those of the model's generation settings."""
        ends = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        return frozenset(int(i) for i in (self.tokenizer.eos_token_id, *ends) if i is not None)

    @property
    def is_sharded(self) -> bool:
        """Whether this process holds some rows of each weight only."""
        return self._whole is not None

    def within(self, compute: Callable[..., Value], *arguments: Any) -> Value:
        """compute(*arguments), with the weights outside of the blocks whole: it matters for a sharded model only.

        A loss is computed in one such call, from ids to its value: its backward pass brings the weights again.
        """
        if self._whole is None or self._inside:
            return compute(*arguments)
        self._inside, gradients = True, torch.is_grad_enabled()
        try:
            # FSDP2 keeps tensors that it makes here, and those made in inference mode could never have gradients.
            with torch.inference_mode(False), torch.set_grad_enabled(gradients):
                found: Value = self._whole(lambda: compute(*arguments))
            return found
        finally:
            self._inside = False

    def hidden(self, ids: Tensor, cache: Any = None) -> Tensor:
        """[B, T] token ids, all of one length -> [B, T, H] final hidden states; `cache` is continued and extended."""

        def compute() -> Tensor:
            output = self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=cache is not None)
            states: Tensor = output.last_hidden_state
            return states

        return self.within(compute)

    def states(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """[sum of T - start, H]: the states that predict each sequence's token ids from its `start` (at least 1) on.

        A sequence's last id is not read. Sequences of one length are read as a batch, others as one row, packed.
        """
        lengths = [len(sequence) - 1 for sequence in sequences]
        if len(set(lengths)) == 1:
            ids = torch.tensor([sequence[:-1] for sequence in sequences], device=self.device)
            rows = self.hidden(ids).unbind(0)
        else:
            rows = self._packed([sequence[:-1] for sequence in sequences]).split(lengths)
        return torch.cat([row[start - 1 :] for row, start in zip(rows, starts, strict=True)])

    def _packed(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """[sum of T, H], no sequence seeing another: transformers tells them apart by where positions begin again."""
        ids = torch.tensor([[i for sequence in sequences for i in sequence]], device=self.device)
        places = torch.cat([torch.arange(len(sequence), device=self.device) for sequence in sequences])[None]

        def compute() -> Tensor:
            output = self.model.base_model(input_ids=ids, position_ids=places, use_cache=False)
            states: Tensor = output.last_hidden_state[0]
            return states

        return self.within(compute)

    @property
    def reads_in_parts(self) -> bool:
        """Whether a prompt may be read in parts with a plain cache: every layer is full attention."""
        kinds = getattr(self.model.config.get_text_config(), "layer_types", None) or ["full_attention"]
        return set(kinds) == {"full_attention"} and not getattr(self.model, "_is_stateful", False)

    def head(self) -> tuple[Tensor, Tensor | None]:
        """The head's weight [V, H] and bias [V] or None: the model's own tensors, not copies."""
        head = self.model.get_output_embeddings()
        return head.weight, getattr(head, "bias", None)

    @property
    def curve(self) -> dict[str, Any]:
        """What is done to the head's products, as `ops` takes it: softcap, scale."""
        return {"softcap": self._softcap, "scale": self._scale}

    def logits(self, hidden: Tensor, head: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """[N, H] hidden states -> [N, V] logits, in the model's dtype, with the model's head or a `head` kept of it."""
        logits: Tensor
        if head is None:  # the module, not its tensors: its weight may be packed
            logits = self.within(lambda: self.model.get_output_embeddings()(hidden.contiguous()))
        else:
            logits = functional.linear(hidden.contiguous(), *head)
        if self._scale != 1.0:
            logits = logits * self._scale
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuse an architecture whose head does more than this class knows; silence would give wrong windows."""
        ids = torch.arange(1, 5, device=self.device)[None] % self.vocabulary
        theirs = self.within(lambda: self.model(input_ids=ids, use_cache=False)).logits[0].float()
        if not theirs.isfinite().all():
            raise InvalidArgumentError(f"{self.name}: its logits are not finite: save or download its weights again.")
        ours = self.logits(self.hidden(ids)[0]).float()
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=0.05, atol=0.05 * float(theirs.std())):
            raise InvalidArgumentError(
                f"{self.name}: the architecture {type(self.model).__name__} changes its logits in a way that oml_fast "
                "does not know. Use another base model, or report the architecture."
            )

    @torch.no_grad()
    def _check_cache(self) -> None:
        """Refuse an architecture that keeps another state than keys and values; it would forget all but the last id."""
        ids = torch.arange(1, 9, device=self.device)[None] % self.vocabulary
        cache = DynamicCache()
        self.hidden(ids[:, :-1], cache)
        step = self.logits(self.hidden(ids[:, -1:], cache)[0]).float()
        whole = self.logits(self.hidden(ids)[0, -1:]).float()
        if cache.get_seq_length() != ids.shape[1] or (step - whole).std() > 0.2 * whole.std():
            raise InvalidArgumentError(
                f"{self.name}: the architecture {type(self.model).__name__} has no key-value cache that oml_fast can "
                "use. Use another base model, or report the architecture."
            )


def blocks_of(model: nn.Module) -> Sequence[nn.Module]:
    """The transformer blocks of a transformers model: the longest list of modules in its backbone, or none."""
    backbone: Any = model.base_model
    lists = [module for module in backbone.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=lambda blocks: len(list(blocks)))) if lists else []


def recompute_blocks(model: nn.Module) -> None:
    """From now on keep a block's input for its backward pass and nothing inside it, which is computed again."""
    for block in blocks_of(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _logit_scale(config: Any) -> float:
    """Cohere multiplies its logits by `logit_scale`, Granite divides them by `logits_scaling`."""
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
