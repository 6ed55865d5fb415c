"""What a licensed answer used, read from it as it passes; and for single-use permissions the answer itself."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from typing import Any

from ..permission.stores import MOST_ANSWER_BYTES
from .answers import Message, Send, kept

_JSON = json.JSONDecoder()
_LAST_EVENTS = 4  # of a stream: the one with its usage, and the end mark


@dataclass(frozen=True, slots=True)
class Spent:
    """What one answer used. known: the server said it of all of it; else output_tokens counts events of a stream."""

    prompt_tokens: int
    output_tokens: int
    known: bool


class Watch:
    """Passes an answer on to the client, and remembers of it what is needed.

    keep: also all of it, up to 1 MiB. countable: see `routes.Demand`.
    """

    __slots__ = (
        "_content_type",
        "_countable",
        "_events",
        "_keep",
        "_parts",
        "_send",
        "_size",
        "_stream",
        "ended",
        "status",
    )

    def __init__(self, send: Send, *, keep: bool, countable: bool) -> None:
        self._send, self._keep, self._countable = send, keep, countable
        self._parts: deque[bytes] = deque()
        self._content_type, self._stream, self._events, self._size = b"", False, 0, 0
        self.status, self.ended = 0, False

    async def send(self, message: Message) -> None:
        """An ASGI `send`."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._content_type = next((v for n, v in message.get("headers", ()) if n.lower() == b"content-type"), b"")
            self._stream = self._content_type.startswith(b"text/event-stream")
        elif message["type"] == "http.response.body":
            self._see(message.get("body", b""))
            self.ended = not message.get("more_body", False)
        try:
            await self._send(message)
        except OSError:
            if not self._keep:  # the client of a kept answer may come back for it
                raise

    def _see(self, part: bytes) -> None:
        if self._stream and part.startswith(b"data:"):
            self._events += 1
        if part:
            self._parts.append(part)
            self._size += len(part)
        if self._stream and not (self._keep and self._size <= MOST_ANSWER_BYTES):
            while len(self._parts) > _LAST_EVENTS:
                self._parts.popleft()

    @property
    def failed(self) -> bool:
        """The server refused or broke, and delivered nothing."""
        return self.status >= 400

    def spent(self) -> Spent:
        """What was used so far."""
        for usage in self._usages():
            prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
            if type(prompt) is int and type(output) is int:
                return Spent(prompt, output, True)
        return Spent(0, self._events, False)

    def answer(self) -> bytes | None:
        """The whole answer, to be kept; None where it is not whole or too large."""
        if not self._keep or not self.ended or self._size > MOST_ANSWER_BYTES:
            return None
        return kept(self.status, self._content_type, b"".join(self._parts))

    def _usages(self) -> list[dict[str, Any]]:
        """What says it of itself, the last first."""
        content = b"".join(self._parts)
        if not self._stream:
            return _usage_in(content)
        events = [event.partition(b":")[2] for event in content.split(b"\n") if event.startswith(b"data:")]
        last = reversed(events[-2 * _LAST_EVENTS :])
        return [usage for event in last for usage in _usage_in(event, of_all=not self._countable)]


def _usage_in(content: bytes, *, of_all: bool = False) -> list[dict[str, Any]]:
    """of_all: only where it is the usage of all choices together, which an event without choices has."""
    try:
        value = _JSON.decode(content.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return []
    usage = value.get("usage") if isinstance(value, dict) else None
    if not isinstance(usage, dict) or (of_all and value.get("choices") != []):
        return []
    return [usage]
