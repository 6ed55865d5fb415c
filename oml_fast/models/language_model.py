"""A causal language model, cut where this project needs it: a backbone to hidden states, a head to logits.

Fingerprints need logits at one or a few positions of each sequence. Computing them there, as one matrix product over
the rows wanted, costs a fraction of [B, T, V] logits (and avoids a slow path of torch on CPU, where the head over a
strided [B, 1, H] slice took a hundred times longer than over [B, H]).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from ..errors import InvalidArgumentError


class LanguageModel:
    """A transformers causal model with its tokenizer and digests.

    B sequences, T token ids, H hidden, V vocabulary, N rows.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, digest: str, tokenizer_digest: str) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.digest = digest
        self.tokenizer_digest = tokenizer_digest
        config = model.config.get_text_config()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._scale = _logit_scale(config)
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

    def hidden(self, ids: Tensor, cache: Any = None) -> Tensor:
        """[B, T] token ids, all of one length -> [B, T, H] final hidden states; `cache` is continued and extended."""
        output = self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=cache is not None)
        hidden: Tensor = output.last_hidden_state
        return hidden

    @property
    def reads_in_parts(self) -> bool:
        """Whether a prompt may be read in parts with a plain cache: every layer is full attention."""
        kinds = getattr(self.model.config.get_text_config(), "layer_types", None) or ["full_attention"]
        return set(kinds) == {"full_attention"} and not getattr(self.model, "_is_stateful", False)

    def head(self) -> tuple[Tensor, Tensor | None]:
        """The head's weight [V, H] and bias [V] or None: the model's own tensors, not copies."""
        head = self.model.get_output_embeddings()
        return head.weight, getattr(head, "bias", None)

    def logits(self, hidden: Tensor, head: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """[N, H] hidden states -> [N, V] logits, in the model's dtype, with the model's head or a `head` kept of it."""
        if head is None:  # the module, not its tensors: its weight may be packed
            logits: Tensor = self.model.get_output_embeddings()(hidden.contiguous())
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
        theirs = self.model(input_ids=ids, use_cache=False).logits[0].float()
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


def _logit_scale(config: Any) -> float:
    """Cohere multiplies its logits by `logit_scale`, Granite divides them by `logits_scaling`."""
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
