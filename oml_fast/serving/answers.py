"""What a permission gate answers itself: refusals in the shape of OpenAI's errors, and first answers to retries."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from ..errors import PermissionDenied, PermissionUnavailableError
from .routes import BadRequestError

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
STATUS = {
    "malformed_token": 401,
    "bad_signature": 401,
    "expired": 401,
    "not_yet_valid": 401,
    "wrong_model": 403,
    "wrong_request": 403,
    "revoked": 403,
    "replayed_nonce": 403,
    "quota_exceeded": 429,
}
_JSON = b"application/json"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that refuses. `code` says why to programs; nothing secret is in `message`. `retry`: in seconds."""

    status: int
    code: str
    message: str
    retry: int | None = None


class RefusedError(Exception):
    """Ends a request with a refusal of the gate's own."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


NOT_LICENSED = Refusal(403, "route_not_licensed", "No permission covers this route of the server.")
NO_TOKEN = Refusal(401, "malformed_token", "Send one permission token: Authorization: Bearer TOKEN.")
IN_URL = Refusal(401, "malformed_token", "Send the permission token in the Authorization header, never in the URL.")
TOO_LARGE = Refusal(413, "body_too_large", "The body is larger than this server reads.")
TOO_SLOW = Refusal(408, "body_too_slow", "The body did not arrive in time.")
IN_PROGRESS = Refusal(409, "in_progress", "The first try of this request is not done: repeat it in a moment.", 1)
LOST = Refusal(409, "answer_lost", "This request was answered before, and its answer is gone: ask for a new token.")
UNAVAILABLE = Refusal(503, "permissions_unavailable", "Permissions cannot be checked now: try again later.", 1)


def refusal_of(error: Exception) -> Refusal:
    """What a client is told of an error. Why permissions are unavailable is the server's affair, and in its log."""
    if isinstance(error, RefusedError):
        return error.refusal
    if isinstance(error, PermissionDenied):
        return Refusal(STATUS[error.code], error.code, f"The permission token is refused: {error}")
    if isinstance(error, BadRequestError):
        return Refusal(400, "bad_request", str(error))
    assert isinstance(error, PermissionUnavailableError)
    return UNAVAILABLE


async def refuse(send: Send, refusal: Refusal, *, close: bool = False) -> None:
    """Answer with a refusal. close: and end the connection, as HTTP/1 has it, where the rest of a body may come."""
    kind = "invalid_request_error" if refusal.status in (400, 408, 413) else "permission_error"
    error = {"message": refusal.message, "type": kind, "param": None, "code": refusal.code}
    headers = []
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refusal.retry is not None:
        headers.append((b"retry-after", str(refusal.retry).encode()))
    if close and refusal.status in (408, 413):
        headers.append((b"connection", b"close"))
    if refusal.status == 409 and refusal.retry is None:
        headers.append((b"x-should-retry", b"false"))  # OpenAI's clients repeat each 409
    await _answer(send, refusal.status, [*headers, (b"content-type", _JSON)], json.dumps({"error": error}).encode())


def kept(status: int, content_type: bytes, body: bytes) -> bytes:
    """An answer as the store keeps it for retries."""
    return b"%d %b\n%b" % (status, content_type, body)


async def repeat(send: Send, answer: bytes) -> None:
    """Send an answer that was kept."""
    head, _, body = answer.partition(b"\n")
    status, _, content_type = head.partition(b" ")
    await _answer(send, int(status), [(b"content-type", content_type)], body)


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
