"""The hook for a mark per licensee on what is generated: one protocol for transformers and for vLLM.

B sequences, T token ids, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InvalidArgumentError
from ..serving.licensee import NAME

if TYPE_CHECKING:
    from torch import Tensor

Processor = Callable[["Tensor", "Tensor"], "Tensor"]
RowProcessor = Callable[[list[int], list[int], "Tensor"], "Tensor"]


class OutputMark(Protocol):
    """Marks what is generated for one licensee, by changing the logits before each choice."""

    def __call__(self, licensee: str, /) -> Processor:
        """The processor for one batch of prompts of this licensee, whom the checked token names.

        It is called at each step with [B, T] int64 token ids, prompt and completion so far, and [B, V] float32 logits
        of the next ids; it returns [B, V] logits, which may be the same tensor changed in place. Rows that have ended
        stay in the batch. In vLLM each prompt is a batch of its own (B = 1). A `LogitsProcessor` of transformers is
        one.
        """
        ...


def request_processor(mark: OutputMark, params: Any) -> RowProcessor | None:
    """`mark` for one request inside vLLM, where OMLModel or the gate names the licensee; None where nobody is named.

    For `new_req_logits_processor(params)` of a sub-class of vLLM's `AdapterLogitsProcessor`, which the `LLM` is
    started with. params: the request's `SamplingParams`. The result takes the ids of the prompt, those generated, and
    [V] logits.
    """
    licensee = (getattr(params, "extra_args", None) or {}).get(NAME)
    if licensee is None:
        return None
    import torch

    process = mark(licensee)

    def process_row(prompt_ids: list[int], output_ids: list[int], logits: Tensor) -> Tensor:
        ids = torch.tensor([[*prompt_ids, *output_ids]], device=logits.device)
        return processed(process, ids, logits[None])[0]

    return process_row


def processed(process: Processor, ids: Tensor, logits: Tensor) -> Tensor:
    """What `process` makes of [B, V] logits after [B, T] ids. InvalidArgumentError where it is of another shape."""
    shape = logits.shape
    logits = process(ids, logits)
    if logits.shape != shape:
        raise InvalidArgumentError(
            f"the output mark returned logits of shape {list(logits.shape)}: it must be {list(shape)}, as it got them."
        )
    return logits
