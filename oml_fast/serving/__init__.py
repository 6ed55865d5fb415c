"""Servers: the permission gate, and vLLM's offline engine as a completer. Alone imports vllm, only where it is used."""

from __future__ import annotations

from .vllm_completer import VllmCompleter

__all__ = ["VllmCompleter"]
