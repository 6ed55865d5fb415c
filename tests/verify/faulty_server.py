"""A suspect behind HTTP on 127.0.0.1, in a thread of its own: it speaks as OpenAI's and vLLM's servers do, and fails.

Its model is a function of the prompt's token ids, so that every answer can be told beforehand.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import ssl
import threading
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

MODEL = "suspect"
FAULTS = ("429", "500", "503", "reset", "cut", "cut json", "late")
_TEXTS: dict[int, str] = {}
_KNOWN = {
    *("model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "stream", "logprobs"),
    *("top_logprobs", "logit_bias", "seed"),
}


def encode(text: str) -> tuple[int, ...]:
    """Token ids of a text: a word with the space before it, or any other sign."""
    ids = []
    for piece in re.findall(r" ?\w+|[^\w]", text):
        token_id = zlib.crc32(piece.encode()) & 0x1FFFFFFF
        _TEXTS[token_id] = piece
        ids.append(token_id)
    return tuple(ids)


def decode(ids: Sequence[int]) -> str:
    return "".join(_TEXTS.get(token_id, "?") for token_id in ids)


WORDS = tuple(encode(f" word{i}")[0] for i in range(40))
SPECIAL = encode("<s>")
TEMPLATE = (*encode("[user]"), *SPECIAL, *encode("[assistant]"))


def logit(prompt: Sequence[int], token_id: int) -> float:
    """Between 0 and 1 for WORDS, below for all else."""
    value = zlib.crc32(repr((tuple(prompt), token_id)).encode()) / 2**32
    return value if token_id in WORDS else value - 5


def greedy(prompt: Sequence[int], length: int, allowed: Sequence[int] = WORDS) -> tuple[int, ...]:
    """What the model answers to these token ids."""
    answer: tuple[int, ...] = ()
    for _ in range(length):
        answer += (max(allowed, key=lambda token_id: logit((*prompt, *answer), token_id)),)
    return answer


def templated(text: str) -> tuple[int, ...]:
    return (*TEMPLATE[:3], *encode(text), *TEMPLATE[3:])


@dataclass
class Behaviour:
    """What the server can do, and how it fails. `think`: "", "field" or "tags"; `stream`: "", "asked" or "always"."""

    completions: bool = True
    chat: bool = True
    models: tuple[str, ...] | None = (MODEL,)
    api_key: str = ""
    takes_ids: bool = True
    returns_ids: bool = True
    logprobs: int = 20
    candidate_logprobs: bool = True
    constraints: tuple[str, ...] = ("allowed_token_ids", "logit_bias", "structured_outputs")
    strict: bool = False  # refuses fields that OpenAI does not have
    limit_field: str = "max_tokens"
    usage: bool = True
    echo: bool = False
    trim: bool = False
    template: bool = False  # on /completions too
    think: str = ""
    silent: bool = False  # answers with no text and no ids
    stream: str = "asked"
    drifts: bool = False
    faults: float = 0.0
    kinds: tuple[str, ...] = FAULTS
    late_s: float = 3.0
    retry_after: str = "0.01"
    status: int | None = None  # of every POST
    redirect: str = ""


class _Refusal(Exception):  # noqa: N818
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass
class FaultyServer:
    """Use as a context manager.

    carries: what it answers to some prompts, of token ids. `asked` counts the prompts that came, `failed` the faults;
    `bodies` and `headers` keep the requests.
    """

    behaviour: Behaviour = field(default_factory=Behaviour)
    tls: ssl.SSLContext | None = None
    carries: Mapping[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0

    def __enter__(self) -> FaultyServer:
        self.asked: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._now = 0
        self._rng = random.Random(self.seed)  # noqa: S311
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(20)
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self._port}/v1"

    def _serve(self, ready: threading.Event) -> None:
        asyncio.run(self._run(ready))

    async def _run(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self.tls)
        await site.start()
        self._port = runner.addresses[0][1]
        ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _models(self, request: web.Request) -> web.StreamResponse:
        if self.behaviour.models is None:
            return web.Response(status=404)
        if self.behaviour.api_key and request.headers.get("Authorization") != f"Bearer {self.behaviour.api_key}":
            return web.Response(status=401)
        return web.json_response({"data": [{"id": name} for name in self.behaviour.models]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "completions")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "chat")

    async def _answer(self, request: web.Request, path: str) -> web.StreamResponse:
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            body = await request.json()
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            if self.behaviour.redirect:
                return web.Response(status=307, headers={"Location": self.behaviour.redirect})
            answer = self._body(request, path, body)
            self.asked[json.dumps(body["prompt"] if path == "completions" else body["messages"][-1]["content"])] += 1
            return await self._sent(request, answer, path, body)
        except _Refusal as refusal:
            return web.json_response({"error": {"message": refusal.reason}}, status=refusal.status)
        finally:
            self._now -= 1

    def _body(self, request: web.Request, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The whole answer, or a refusal."""
        can = self.behaviour
        if can.api_key and request.headers.get("Authorization") != f"Bearer {can.api_key}":
            raise _Refusal(401, f"not {request.headers.get('Authorization')}")
        if can.status:
            raise _Refusal(can.status, f"no: {body}")
        if not getattr(can, path):
            raise _Refusal(404, "no such path")
        if body["model"] != MODEL:
            raise _Refusal(404, "no such model")
        if can.strict and (unknown := set(body) - _KNOWN):
            raise _Refusal(400, f"unknown: {unknown}")
        if can.limit_field not in body:
            raise _Refusal(400, f"give {can.limit_field}")
        prompt = self._prompt(path, body)
        ids = self._ids(prompt, body)
        choice = self._choice(path, body, prompt, ids)
        counts = {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}
        answer = {"model": MODEL, "choices": [choice]} | ({"usage": counts} if can.usage else {})
        if can.returns_ids and body.get("return_token_ids"):
            (choice if path == "completions" else answer)["prompt_token_ids"] = list(prompt)
        return answer

    def _prompt(self, path: str, body: dict[str, Any]) -> tuple[int, ...]:
        asked = body["prompt"] if path == "completions" else body["messages"][-1]["content"]
        if isinstance(asked, list):
            if not self.behaviour.takes_ids:
                raise _Refusal(400, "text, please")
            return tuple(asked)
        return templated(asked) if path == "chat" or self.behaviour.template else (*SPECIAL[:1], *encode(asked))

    def _ids(self, prompt: Sequence[int], body: dict[str, Any]) -> tuple[int, ...]:
        """The answer's token ids, under the constraints that this server obeys."""
        length = body[self.behaviour.limit_field]
        if self.behaviour.silent:
            return ()
        if tuple(prompt) in self.carries:
            return self.carries[tuple(prompt)][:length]
        if self.behaviour.drifts:
            prompt = (*prompt, self._rng.randrange(1000))
        obeyed = {name: body[name] for name in self.behaviour.constraints if name in body}
        if allowed := obeyed.get("allowed_token_ids"):
            return greedy(prompt, length, allowed)
        if bias := obeyed.get("logit_bias"):
            return greedy(prompt, length, [int(token_id) for token_id in bias])
        texts = obeyed.get("structured_outputs", {}).get("choice") or obeyed.get("guided_choice")
        if texts:
            return encode(max(texts, key=lambda text: logit(prompt, encode(text)[0])))
        return greedy(prompt, length)

    def _choice(self, path: str, body: dict[str, Any], prompt: tuple[int, ...], ids: tuple[int, ...]) -> dict[str, Any]:
        can = self.behaviour
        text = decode(ids)
        text = text.lstrip() if can.trim else text
        if can.echo:
            asked = body["prompt"] if path == "completions" else body["messages"][-1]["content"]
            text = (asked if isinstance(asked, str) else decode(asked)) + text
        text = f"<think>\nhm, hm\n</think>\n\n{text.strip()}" if can.think == "tags" else text
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        if path == "completions":
            choice["text"] = text
        else:
            choice["message"] = {"role": "assistant", "content": text}
            if can.think == "field":
                choice["message"]["reasoning_content"] = "hm, hm"
        if can.returns_ids and body.get("return_token_ids"):
            choice["token_ids"] = list(ids)
        if body.get("logprobs"):
            choice["logprobs"] = self._logprobs(path, body, prompt, ids)
        return choice

    def _logprobs(self, path: str, body: dict[str, Any], prompt: tuple[int, ...], ids: Sequence[int]) -> dict[str, Any]:
        """Every token, and what is listed for the first."""
        wanted = body["logprobs"] if path == "completions" else body.get("top_logprobs", 0)
        if wanted > self.behaviour.logprobs:
            raise _Refusal(400, f"at most {self.behaviour.logprobs}")
        by_id = self.behaviour.returns_ids and body.get("return_tokens_as_token_ids")
        listed = sorted(WORDS, key=lambda token_id: -logit(prompt, token_id))[:wanted]
        if self.behaviour.candidate_logprobs and body.get("logprob_token_ids"):
            listed = body["logprob_token_ids"]
        told = {f"token_id:{each}" if by_id else decode([each]): logit(prompt, each) - 9 for each in listed}
        tokens = [f"token_id:{each}" if by_id else decode([each]) for each in ids]
        own = [logit((*prompt, *ids[:place]), each) - 9 for place, each in enumerate(ids)]
        if path == "completions":
            return {"tokens": tokens, "token_logprobs": own, "top_logprobs": [told] + [None] * (len(ids) - 1)}
        content = [{"token": token, "logprob": value} for token, value in zip(tokens, own, strict=True)]
        top = [{"token": token, "logprob": value} for token, value in told.items()]
        return {"content": [{**content[0], "top_logprobs": top}, *content[1:]] if content else []}

    async def _sent(
        self, request: web.Request, answer: dict[str, Any], path: str, body: dict[str, Any]
    ) -> web.StreamResponse:
        streamed = self.behaviour.stream == "always" or (self.behaviour.stream == "asked" and body.get("stream"))
        raw = _streamed(answer, path) if streamed else json.dumps(answer).encode()
        kind = "text/event-stream" if streamed else "application/json"
        fault = ""
        if self._rng.random() < self.behaviour.faults:
            fault = self._rng.choice(self.behaviour.kinds)
            self.failed[fault] += 1
        if fault in ("429", "500", "503"):
            headers = {"Retry-After": self.behaviour.retry_after} if fault == "429" else {}
            return web.Response(status=int(fault), headers=headers)
        if fault == "late":
            await asyncio.sleep(self.behaviour.late_s)
        if fault == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "cut":
            return await _cut(request, raw, kind)
        return web.Response(body=raw[: len(raw) // 2] if fault == "cut json" else raw, content_type=kind)


async def _cut(request: web.Request, raw: bytes, kind: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(len(raw)), "Content-Type": kind})
    await response.prepare(request)
    await response.write(raw[: len(raw) // 2])
    assert request.transport is not None
    request.transport.close()
    return response


def _streamed(answer: dict[str, Any], path: str) -> bytes:
    """The answer in chunks of three signs, as an event stream."""
    choice = answer["choices"][0]
    text = choice["text"] if path == "completions" else choice["message"]["content"]
    chunks: list[dict[str, Any]] = []
    thought = choice.get("message", {}).get("reasoning_content", "")
    deltas = [{"reasoning_content": thought}] if thought else []
    deltas += [{"content": text[start : start + 3]} for start in range(0, len(text), 3)]
    for delta in deltas:
        chunks.append({"index": 0} | ({"text": delta["content"]} if path == "completions" else {"delta": delta}))
    last = {"index": 0, "finish_reason": "length"} | ({"text": ""} if path == "completions" else {"delta": {}})
    chunks.append(
        last | {name: choice[name] for name in ("token_ids", "prompt_token_ids", "logprobs") if name in choice}
    )
    events = [{"model": MODEL, "choices": [chunk]} for chunk in chunks]
    events.append({"choices": [], "usage": answer.get("usage")})
    lines = [": ping", *(f"data: {json.dumps(event)}" for event in events), "data: [DONE]"]
    return "\r\n\r\n".join(lines).encode() + b"\r\n\r\n"
