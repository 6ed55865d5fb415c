"""Endpoint: where a suspect answers over HTTP, how fast and for how much it may be asked. No API key in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ...errors import InvalidArgumentError

KINDS = ("auto", "completions", "chat")
_PATHS = ("/chat/completions", "/completions", "/models")
# What the completer itself says in every request.
_OURS = frozenset(
    {
        *("model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "n", "best_of", "echo"),
        *("stream", "logprobs", "top_logprobs", "logprob_token_ids", "logit_bias", "allowed_token_ids"),
        *("structured_outputs", "guided_choice", "return_token_ids", "return_tokens_as_token_ids"),
    }
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Settings of an OpenAI-compatible endpoint. Raises InvalidArgumentError.

    url: up to and with /v1. model: "" for the only one that is served. kind: "completions", "chat", or "auto" for
    whichever asks a format as it was made. timeout_s, backoff_s, longest_wait_s: seconds; a server that asks to wait
    longer than the last ends the asking. Prices and budget: money in one currency, prices for 1,000 token ids.
    key_header: the header that carries the API key; "Authorization" makes it a bearer token. trust_env: take the proxy
    from the environment. reasoning_tokens: how many more a chat endpoint may spend on thinking before it answers.
    """

    url: str
    model: str = ""
    kind: str = "auto"
    concurrency: int = 16
    requests_per_second: float | None = None
    timeout_s: float = 60.0
    retries: int = 5
    backoff_s: float = 0.5
    longest_wait_s: float = 120.0
    price_per_1k_prompt: float = 0.0
    price_per_1k_completion: float = 0.0
    budget: float | None = None
    max_requests: int | None = None
    reasoning_tokens: int = 0
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    key_header: str = "Authorization"
    proxy: str | None = field(default=None, repr=False)
    trust_env: bool = False
    ca_file: str | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _base(self.url))
        _require(self.kind in KINDS, f"endpoint kind {self.kind!r}: one of {', '.join(KINDS)}.")
        self._require_numbers()
        free = self.price_per_1k_prompt == self.price_per_1k_completion == 0
        _require(self.budget is None or not free, f"a budget of {self.budget} needs the prices of token ids.")
        names = [name.lower() for name in self.headers]
        own = {"authorization", self.key_header.lower()} & set(names)
        _require(not own, f"header {', '.join(own)}: an API key comes from the environment, never as an option.")
        broken = [name for name, value in self.headers.items() if not name or set("\r\n") & set(name + value)]
        _require(not broken, "a header has no name, or a line break in it: give NAME: VALUE.")
        taken = sorted(_OURS & set(self.extra_body))
        _require(not taken, f"extra body: {', '.join(taken)} is set by the asking itself; leave it out.")

    def _require_numbers(self) -> None:
        for name in ("concurrency", "timeout_s", "longest_wait_s"):
            _require(getattr(self, name) > 0, f"{name} {getattr(self, name)}: it must be above 0.")
        for name in ("retries", "backoff_s", "price_per_1k_prompt", "price_per_1k_completion", "reasoning_tokens"):
            _require(getattr(self, name) >= 0, f"{name} {getattr(self, name)}: it cannot be below 0.")
        for name in ("requests_per_second", "budget", "max_requests"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} {value}: it must be above 0, or not given.")

    def address(self, path: str) -> str:
        """The URL of a path such as "/models"; a query in the endpoint's URL stays at the end."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=parts.path + path))

    @property
    def shown(self) -> str:
        """The URL for reports and errors, without its query."""
        return urlunsplit(urlsplit(self.url)._replace(query=""))


def _base(url: str) -> str:
    """The URL that the paths are appended to: forgives a full path, a last slash and a missing /v1."""
    try:
        parts = urlsplit(url.strip())
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    _require(good, f"endpoint {url!r}: give a URL such as https://host:8000/v1.")
    _require(
        not (parts.username or parts.password),
        "the endpoint's URL has a user name or password in it: give the API key in the environment instead.",
    )
    path = parts.path.rstrip("/")
    for ending in _PATHS:
        path = path.removesuffix(ending)
    return urlunsplit(parts._replace(path=path or "/v1", fragment=""))


def _require(condition: object, message: str) -> None:
    if not condition:
        raise InvalidArgumentError(message)
