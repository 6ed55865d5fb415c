"""vLLM: its offline engine as a completer. The only room that imports vllm, and only where it is used."""

from __future__ import annotations

from .vllm_completer import VllmCompleter

__all__ = ["VllmCompleter"]
