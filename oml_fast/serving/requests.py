"""What a permission gate reads of a request, and what of it goes on to the app."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..permission import Permission
from . import answers
from .answers import Message, RefusedError
from .routes import BadRequestError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
PERMISSION = "oml_fast.permission"  # where the scope of a request that goes on has its permission
_URL_NAMES = frozenset({b"token", b"access_token", b"api_key", b"authorization"})
_TOKEN_HEADERS = frozenset({b"authorization"})
_BODY_HEADERS = _TOKEN_HEADERS | {b"content-length", b"transfer-encoding"}


def path_of(scope: Scope) -> str:
    """The path as the app routes it; "" where it is spelled in any other way than plainly."""
    path: str = scope["path"]
    raw = scope.get("raw_path")
    if raw is not None and raw != path.encode("utf-8", "surrogateescape"):
        return ""
    root = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def token_of(scope: Scope) -> str:
    """The one token of the one Authorization header."""
    query = scope.get("query_string", b"")
    if query and (b"eyJ" in query or any(part.partition(b"=")[0].lower() in _URL_NAMES for part in query.split(b"&"))):
        scope["query_string"] = b""  # servers log it
        raise RefusedError(answers.IN_URL)
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    if scheme.lower() != b"bearer" or not token:
        raise RefusedError(answers.NO_TOKEN)
    return str(token, "latin-1")


async def read_content(scope: Scope, receive: Receive, most: int, seconds: float) -> bytes:
    """The whole body, of at most `most` bytes. RefusedError where it is larger, or not here within `seconds`."""
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if not length.isdigit() or len(length) > 15 or int(length) > most:
        raise RefusedError(answers.TOO_LARGE)
    try:
        async with asyncio.timeout(seconds):
            return await _read(receive, most)
    except TimeoutError as error:
        raise RefusedError(answers.TOO_SLOW) from error


async def _read(receive: Receive, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise BadRequestError("The client went away.")
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise RefusedError(answers.TOO_LARGE)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def going_on(scope: Scope, permission: Permission, content: bytes | None = None) -> Scope:
    """The scope for the app: without the token, with the permission, and with the length of the body."""
    dropped = _TOKEN_HEADERS if content is None else _BODY_HEADERS
    headers = [pair for pair in scope["headers"] if pair[0] not in dropped]
    if content is not None:
        headers.append((b"content-length", str(len(content)).encode()))
    return {**scope, "headers": headers, PERMISSION: permission}


def again(content: bytes, afterwards: Receive) -> Receive:
    """A `receive` that gives a body that was read, and then what `afterwards` gives."""
    left: list[bytes] = [content]

    async def receive() -> Message:
        if not left:
            return await afterwards()
        return {"type": "http.request", "body": left.pop(), "more_body": False}

    return receive


async def never() -> Message:
    """That the client went away is not told: a single-use permission's answer is made, and kept for the retry."""
    await asyncio.Event().wait()
    raise AssertionError
