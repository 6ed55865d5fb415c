"""Options for a suspect behind an OpenAI-compatible endpoint. The API key is no option: OML_FAST_API_KEY holds it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError
from .common import say

if TYPE_CHECKING:
    from ..verify.endpoint import Endpoint, EndpointCompleter

KINDS = ("auto", "completions", "chat")  # as in verify.endpoint.settings, which is not imported for --help


def add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("a suspect behind an endpoint (docs/endpoints.md)")
    own.add_argument("--endpoint", metavar="URL", help="ask the OpenAI-compatible endpoint here, as https://host/v1")
    own.add_argument("--endpoint-model", default="", metavar="NAME", help="which model (default: the only one served)")
    own.add_argument(
        "--endpoint-kind", choices=KINDS, default="auto", help="ask /completions or /chat/completions (default: auto)"
    )
    own.add_argument(
        "--endpoint-tokenizer", type=Path, metavar="FOLDER", help="the set's tokenizer, to compare the endpoint's with"
    )
    own.add_argument("--concurrency", type=int, default=16, metavar="N", help="requests at a time (default: 16)")
    own.add_argument("--rate", type=float, metavar="R", help="requests a second at most (default: no limit)")
    own.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds for one request (default: 60)")
    own.add_argument("--retries", type=int, default=5, metavar="N", help="of a request that fails (default: 5)")
    own.add_argument(
        "--price-in", type=float, default=0.0, metavar="P", help="money for 1,000 token ids of prompts (default: 0)"
    )
    own.add_argument(
        "--price-out", type=float, default=0.0, metavar="P", help="money for 1,000 of completions (default: 0)"
    )
    own.add_argument("--budget", type=float, metavar="M", help="money to spend at most (needs prices)")
    own.add_argument("--max-requests", type=int, metavar="N", help="requests to send at most, retries counted")
    own.add_argument(
        "--reasoning-tokens", type=int, default=0, metavar="N", help="room for thinking before an answer (default: 0)"
    )
    own.add_argument("--header", action="append", metavar="'NAME: VALUE'", help="one more header; may be repeated")
    own.add_argument(
        "--key-header", default="Authorization", metavar="NAME", help="header of the API key (default: Authorization)"
    )
    own.add_argument("--proxy", metavar="URL", help="an HTTP proxy to go through")
    own.add_argument("--proxy-from-environment", action="store_true", help="the proxy that the environment names")
    own.add_argument("--ca-file", metavar="FILE", help="certificates of an authority of your own (PEM)")
    own.add_argument("--extra-body", metavar="JSON", help="fields for every request, as '{\"seed\": 0}'")


def endpoint_settings(options: argparse.Namespace) -> Endpoint:
    """The endpoint that the options describe. Raises InvalidArgumentError."""
    from ..verify.endpoint import Endpoint

    return Endpoint(
        url=options.endpoint,
        model=options.endpoint_model,
        kind=options.endpoint_kind,
        concurrency=options.concurrency,
        requests_per_second=options.rate,
        timeout_s=options.timeout,
        retries=options.retries,
        price_per_1k_prompt=options.price_in,
        price_per_1k_completion=options.price_out,
        budget=options.budget,
        max_requests=options.max_requests,
        reasoning_tokens=options.reasoning_tokens,
        headers=_headers(options.header),
        key_header=options.key_header,
        proxy=options.proxy,
        trust_env=options.proxy_from_environment,
        ca_file=options.ca_file,
        extra_body=_object(options.extra_body),
    )


def endpoint_from(options: argparse.Namespace, formats: Sequence[str] | None = None) -> EndpointCompleter:
    """The endpoint, ready to be asked: its preflight is done, and what it learnt said on stderr.

    formats: those that will be asked, so that one that cannot be is refused before a key is spent.
    """
    from .. import settings
    from ..verify.endpoint import EndpointCompleter, Meter, preflight

    endpoint = endpoint_settings(options)
    encode, digest = None, ""
    if options.endpoint_tokenizer is not None:
        from ..models import load_tokenizer, tokenizer_digest

        tokenizer = load_tokenizer(options.endpoint_tokenizer)
        digest = tokenizer_digest(tokenizer)

        def encode(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    key, meter = settings.api_key(), Meter(endpoint)
    learnt = preflight(endpoint, key, encode, meter)
    for line in learnt.lines():
        say(line)
    return EndpointCompleter(
        endpoint, learnt, key, formats=formats, tokenizer_digest=digest, meter=meter, progress=True
    )


def _headers(given: str | Sequence[str] | None) -> dict[str, str]:
    headers = {}
    for header in [given] if isinstance(given, str) else given or ():
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise InvalidArgumentError("a --header is not of the form 'NAME: VALUE'.")  # it may be a secret
        headers[name.strip()] = value.strip()
    return headers


def _object(given: str | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """A JSON object, as text on the command line or as a mapping in a file."""
    try:
        value = json.loads(given) if isinstance(given, str) else given or {}
    except ValueError as error:
        raise InvalidArgumentError(f"--extra-body is no JSON: {error}.") from error
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f"--extra-body is a {type(value).__name__}: give a JSON object.")
    return value
