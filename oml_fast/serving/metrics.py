"""Counters for Prometheus, on an address of their own: the server's own /metrics is no open route.

The same address has the counters of the server itself, where it keeps them with prometheus_client as vLLM does. Where
several processes serve (PROMETHEUS_MULTIPROC_DIR, which vLLM sets for them), the first one answers for all.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from ..errors import BackendUnavailableError, InvalidArgumentError
from ..registry import Used
from ..settings import counters_are_shared

_BY_LICENSEE = {
    "requests": "Requests that were admitted and have ended.",
    "generations": "Prompts times choices of these requests.",
    "prompt_tokens": "Token ids of their prompts.",
    "output_tokens": "Token ids generated for them.",
    "aborted": "Of these requests, those that were cut off.",
}


class Metrics:
    """oml_requests_total and its like by licensee, and oml_refusals_total by code.

    Raises InvalidArgumentError where the address cannot be used.
    """

    def __init__(self, host: str, port: int) -> None:
        prometheus = _prometheus()
        registry = prometheus.CollectorRegistry()
        self._counters = {
            what: prometheus.Counter(f"oml_{what}", text, ["licensee", "model"], registry=registry)
            for what, text in _BY_LICENSEE.items()
        }
        self._refusals = prometheus.Counter("oml_refusals", "Requests that were refused.", ["code"], registry=registry)
        self._server = _serve(prometheus, registry, host, port)

    def count(self, used: Iterable[Used], refused: Mapping[str, int]) -> None:
        """Add to the counters."""
        for row in used:
            for what, counter in self._counters.items():
                counter.labels(row.licensee, row.model_digest[:16]).inc(getattr(row, what))
        for code, count in refused.items():
            self._refusals.labels(code).inc(count)

    def close(self) -> None:
        """Free the address."""
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()


def _prometheus() -> Any:
    try:
        import prometheus_client
    except ImportError as error:
        raise BackendUnavailableError(
            "metrics need prometheus_client: pip install prometheus_client, or leave the setting metrics out."
        ) from error
    return prometheus_client


def _serve(prometheus: Any, own: Any, host: str, port: int) -> Any:
    """The server and its thread; None where another process of this server answers already."""
    shared = counters_are_shared()
    collected = prometheus.CollectorRegistry()
    if shared:
        from prometheus_client import multiprocess

        collector: Any = multiprocess.MultiProcessCollector
        collector(collected)
    else:
        collected.register(own)
        collected.register(prometheus.REGISTRY)
    try:
        return prometheus.start_http_server(port, host, collected)
    except OSError as error:
        if shared and error.errno == errno.EADDRINUSE:
            return None
        raise InvalidArgumentError(
            f"metrics cannot be read at {host}:{port}: {error.strerror}. Choose another address for them."
        ) from error


assert set(_BY_LICENSEE) == {field.name for field in fields(Used)} - {"licensee", "model_digest"}
