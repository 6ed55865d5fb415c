"""OMLModel, the class of the OML papers: a model in this process that answers for permissions alone."""

from __future__ import annotations

from .model import MAX_OUTPUT_TOKENS, OMLModel
from .output_mark import OutputMark, Processor, request_processor

__all__ = ["MAX_OUTPUT_TOKENS", "OMLModel", "OutputMark", "Processor", "request_processor"]
