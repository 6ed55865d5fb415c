"""A mark for one licensee, and the processor that vLLM's engine loads it with, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from oml_fast.oml_model import request_processor


def counting(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Makes Bolt's every id one more than the id before it, and leaves others alone."""

    def process(ids: Tensor, logits: Tensor) -> Tensor:
        if licensee != "Bolt":
            return logits
        return torch.full_like(logits, -torch.inf).scatter(1, ids[:, -1:] + 1, 0.0)

    return process


class Counting(AdapterLogitsProcessor):  # type: ignore[misc, unused-ignore]
    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        return request_processor(counting, params)
