"""A gate around a stub app, tokens for it, and a client that speaks ASGI to it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oml_fast.permission import Limits, SqliteStore, change_key_file, issue
from oml_fast.serving.gate_settings import GateSettings
from oml_fast.serving.permission_gate import PermissionGate
from oml_fast.signing import SigningKey, new_signing_key

ISSUER = "Acme Models"
LICENSEE = "Bolt"
MODEL = "ab" * 32
NAME = "smollm2"
CHAT = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
CHAT_PATH, COMPLETION_PATH = "/v1/chat/completions", "/v1/completions"
Headers = Sequence[tuple[bytes, bytes]]
App = Callable[..., Awaitable[None]]


@dataclass
class Owner:
    """Keys of an owner and settings of a gate, in a folder. The store began long ago."""

    folder: Path
    key: SigningKey = field(default_factory=new_signing_key)
    owner: SigningKey = field(default_factory=new_signing_key)

    def __post_init__(self) -> None:
        self.change(lambda keys: keys.with_key(self.key.verification_key, time.time() - 1000), issuer=ISSUER)
        (self.folder / "owner.pub").write_text(self.owner.verification_key.pem())
        SqliteStore(self.folder / "store.sqlite", now=time.time() - 1000).close()

    def change(self, change: Callable[[Any], Any], issuer: str | None = None) -> None:
        change_key_file(self.folder / "keys.jws", self.owner, change, now=time.time(), issuer=issuer)

    def settings(self, **given: Any) -> GateSettings:
        values: dict[str, Any] = {
            "owner_key": self.folder / "owner.pub",
            "keys": self.folder / "keys.jws",
            "store": str(self.folder / "store.sqlite"),
            "models": {NAME: MODEL},
        }
        return GateSettings(**(values | given))

    def token(self, **given: Any) -> str:
        values: dict[str, Any] = {"issuer": ISSUER, "licensee": LICENSEE, "models": MODEL}
        return issue(self.key, **(values | given))

    def limited(self, **limits: Any) -> str:
        return self.token(limits=Limits(**limits))


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


@dataclass
class Stub:
    """An app that answers with usage and remembers what it was asked. parts: of an event stream instead."""

    output_tokens: int = 3
    status: int = 200
    parts: Sequence[bytes] = ()
    seen: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    going: asyncio.Event | None = None  # the answer waits for it

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        self.seen.append(scope)
        content = b""
        while True:
            message = await receive()
            content += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(json.loads(content) if content else None)
        if self.going is not None:
            await self.going.wait()
        await self.answer(send)

    async def answer(self, send: Any) -> None:
        kind = b"text/event-stream; charset=utf-8" if self.parts else b"application/json"
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"content-type", kind)]})
        for part in self.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        usage = {"prompt_tokens": 7, "completion_tokens": self.output_tokens, "total_tokens": 7 + self.output_tokens}
        body = b"" if self.parts else json.dumps({"answer": len(self.bodies), "usage": usage}).encode()
        await send({"type": "http.response.body", "body": body})


async def lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def scope_of(method: str, path: str, headers: Headers, **given: Any) -> dict[str, Any]:
    plain = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(headers),
    }
    return plain | given


async def request(
    gate: Any,
    path: str = CHAT_PATH,
    body: Any = None,
    token: str | None = None,
    *,
    method: str = "POST",
    headers: Headers = (),
    pieces: Sequence[bytes] | None = None,
    gone_after: int | None = None,
    **given: Any,
) -> Answer:
    """Ask, as a server would pass it on. pieces: the body as it arrives. gone_after: messages, then the client left."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    arriving = list([content] if pieces is None else pieces)
    sent: list[dict[str, Any]] = []
    left = asyncio.Event()
    every = [*headers, *([] if token is None else [(b"authorization", f"Bearer {token}".encode())])]
    if pieces is None and content:
        every.append((b"content-length", str(len(content)).encode()))

    async def receive() -> dict[str, Any]:
        if arriving:
            return {"type": "http.request", "body": arriving.pop(0), "more_body": bool(arriving)}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if gone_after is not None and len(sent) >= gone_after:
            left.set()
            await asyncio.sleep(0)
            raise OSError("the client went away")
        sent.append(message)

    await gate(scope_of(method, path, every, **given), receive, send)
    start = sent[0] if sent else {"status": 0, "headers": []}
    found = {name.decode(): value.decode() for name, value in start.get("headers", [])}
    return Answer(start["status"], found, b"".join(message.get("body", b"") for message in sent[1:]))


@asynccontextmanager
async def running(owner: Owner, app: App | None = None, **settings: Any) -> AsyncIterator[PermissionGate]:
    gate = PermissionGate(Stub() if app is None else app, owner.settings(**settings))
    try:
        yield gate
    finally:
        await gate.close()


def asked(owner: Owner, *requests: dict[str, Any], app: App | None = None, **settings: Any) -> list[Answer]:
    """The answers to requests, one after the other, of a gate that is closed afterwards."""

    async def ask() -> list[Answer]:
        async with running(owner, app, **settings) as gate:
            return [await request(gate, **given) for given in requests]

    return asyncio.run(ask())
