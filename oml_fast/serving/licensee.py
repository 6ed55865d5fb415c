"""Who asks, as the engine gets to know it: from the permission token, whatever the client says of itself.

The body of a request names the licensee as vLLM's extra argument: `{"vllm_xargs": {"oml_licensee": NAME}}`. There it
reaches `SamplingParams.extra_args`, and with that every logits processor and log of the engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from .routes import BadRequestError

ARGUMENTS = "vllm_xargs"
NAME = "oml_licensee"


def with_licensee(content: bytes, body: Mapping[str, Any], licensee: str) -> bytes:
    """`content`, a body that was read as `body`, naming the licensee. Other extra arguments stay as they are."""
    arguments = body.get(ARGUMENTS)
    if arguments is not None and not isinstance(arguments, dict):
        raise BadRequestError(f"{ARGUMENTS} is no object.")
    if ARGUMENTS in body:
        return json.dumps({**body, ARGUMENTS: {**(arguments or {}), NAME: licensee}}).encode()
    return content.rstrip()[:-1] + (b"," if body else b"") + _ending(licensee)  # its last brace is the last byte


@lru_cache(maxsize=1024)
def _ending(licensee: str) -> bytes:
    return json.dumps({ARGUMENTS: {NAME: licensee}}).encode()[1:]
