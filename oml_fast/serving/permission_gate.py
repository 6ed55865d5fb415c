"""The permission gate: ASGI middleware that lets through what a permission token allows, and nothing else.

    OML_FAST_PERMISSIONS=gate.yaml vllm serve MODEL --middleware oml_fast.serving.permission_gate.PermissionGate

Order of what is done with a request; the first refusal is the answer:
1. its route: an open one passes, one that is neither open nor licensed is refused, with a valid token too;
2. one Authorization header with one token, and none in the URL;
3. all of the token that needs no body: signature, standing, time, path (`Checker.identify`);
4. the body is read, within its limits; it is the one that the token is bound to, and one JSON object;
5. the model that it asks for, and in one transaction, last, the nonce or the quota (`Checker.take`);
6. the body goes on, naming the licensee; the token does not;
7. the answer passes; at its end what it used is settled and metered.

Websockets are refused. A gate whose settings cannot be used lets the server's start fail, and refuses everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable

from ..errors import OmlError, PermissionDenied, PermissionUnavailableError, WrongRequest
from ..permission import Admission, AsyncChecker, Checker, KeyFile, Permission, Request, SqliteStore, Store
from ..registry import PermissionStore, UsageLog
from ..settings import permissions_file
from ..signing import read_verification_key
from . import answers
from .answers import Message, RefusedError, Send, refusal_of, refuse, repeat
from .gate_settings import GateSettings, read_gate_settings
from .licensee import with_licensee
from .meter import Meter
from .metrics import Metrics
from .requests import Receive, Scope, again, going_on, never, path_of, read_content, token_of
from .routes import LICENSED, OPEN, BadRequestError, Body, Demand, read_body
from .watching import Watch

LOG = logging.getLogger("oml_fast.permission_gate")
App = Callable[[Scope, Receive, Send], Awaitable[None]]
SECONDS_BETWEEN_TENDING = 1.0
SECONDS_TO_WAIT = 60.0  # of a retry, for the first try
MOST_WAITING = 200  # retries at once: each of them asks the store
SHORTEST_WAIT, LONGEST_WAIT = 0.05, 1.0  # between two looks whether it is done


class PermissionGate:
    """Wraps an ASGI app. settings: those of the file that OML_FAST_PERMISSIONS names, unless given."""

    def __init__(self, app: App, settings: GateSettings | None = None) -> None:
        self._app = app
        self._tending: asyncio.Task[None] | None = None
        self._fault: OmlError | None = None
        self._warned = float("-inf")
        self._waiting = 0
        try:
            self._set_up(read_gate_settings(permissions_file()) if settings is None else settings)
        except OmlError as error:
            self._fault = error
            LOG.error("the permission gate refuses everything: %s", error)

    def _set_up(self, settings: GateSettings) -> None:
        self._settings = settings
        self._routes = {path: LICENSED[path] for path in settings.routes}
        self._store = open_store(settings.store)
        keys = KeyFile(settings.keys, read_verification_key(settings.owner_key), self._store)
        models = frozenset(settings.models.values())
        checker = Checker(keys, models, self._store, max_lifetime=settings.max_lifetime)
        self._checker = AsyncChecker(checker, threads=8 if "://" in settings.store else 1)  # a file has one writer
        log = None if settings.registry is None else UsageLog(settings.registry)
        self._meter = Meter(log, None if settings.metrics is None else Metrics(*settings.metrics))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    # --- one request

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._fault is not None:
            await refuse(send, answers.UNAVAILABLE)
            return
        path = path_of(scope)
        if path in OPEN and scope["method"] == "GET":
            await self._app(scope, receive, send)
            return
        self._tend()
        try:
            await self._licensed(path, scope, receive, send)
        except (PermissionDenied, PermissionUnavailableError, RefusedError, BadRequestError) as error:
            refusal = refusal_of(error)
            if isinstance(error, PermissionUnavailableError):
                self._warn(f"nothing is permitted: {error}")
            self._meter.refused(refusal.code)
            await refuse(send, refusal, close=scope.get("http_version", "1.1").startswith("1"))

    async def _licensed(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """What refuses is raised before the app is called; nothing is raised after it."""
        route = self._routes.get(path)
        if route is None or route.method != scope["method"]:
            raise RefusedError(answers.NOT_LICENSED)
        permission = await self._checker.identify(token_of(scope), path=path)
        if route.read is None:
            await self._app(going_on(scope, permission), receive, send)
            return
        content = await read_content(scope, receive, self._settings.max_body_bytes, self._settings.body_seconds)
        admission, request, countable, content = await self._admitted(permission, route.read, path, content)
        if admission.earlier is not None:
            await repeat(send, await self._first_answer(admission, request))
            return
        once = permission.use == "once"
        watch = Watch(send, keep=once, countable=countable)
        scope, receive = going_on(scope, permission, content), again(content, never if once else receive)
        del content  # the app has it now, and lets go of it
        try:
            await self._app(scope, receive, watch.send)
        finally:
            await self._settle(admission, request, watch)

    async def _admitted(
        self, permission: Permission, read: Callable[[Body], Demand], path: str, content: bytes
    ) -> tuple[Admission, Request, bool, bytes]:
        """Of a body: the admission, what was asked, whether its stream is countable, and the body that goes on."""
        bound = permission.limits.body_sha256
        digest = hashlib.sha256(content).hexdigest() if bound is not None or permission.use == "once" else None
        if bound not in (None, digest):
            raise WrongRequest("it is for another body.")  # before it is parsed: that costs more
        body = read_body(content)
        demand = read(body)
        model = self._settings.models.get(demand.model)
        if model is None:
            raise BadRequestError("model names no model of this server.")
        request = Request(model, path, digest, demand.generations, demand.output_tokens)
        if self._settings.tell_engine:
            content = with_licensee(content, body, permission.licensee)
        return await self._checker.take(permission, request=request), request, demand.countable, content

    async def _first_answer(self, admission: Admission, request: Request) -> bytes:
        """To a retry of a single-use permission: what the first try answered, once that is done."""
        began = time.time()  # when this retry came counts, not how long it waits
        wait = SHORTEST_WAIT
        while admission.earlier is not None and admission.earlier.state == "started":
            if time.time() - began > SECONDS_TO_WAIT or self._waiting >= MOST_WAITING:
                raise RefusedError(answers.IN_PROGRESS)
            self._waiting += 1
            try:
                await asyncio.sleep(wait)
            finally:
                self._waiting -= 1
            wait = min(2 * wait, LONGEST_WAIT)
            admission = await self._checker.take(admission.permission, request=request, now=began)
        if admission.earlier is None or admission.earlier.answer is None:
            raise RefusedError(answers.LOST)
        return admission.earlier.answer

    async def _settle(self, admission: Admission, request: Request, watch: Watch) -> None:
        spent, permission = watch.spent(), admission.permission
        if not watch.failed:
            assert request.model is not None
            self._meter.add(
                permission.licensee,
                request.model,
                generations=request.requests,
                prompt_tokens=spent.prompt_tokens,
                output_tokens=spent.output_tokens,
                aborted=not (watch.ended and spent.known),
            )
        output_tokens = spent.output_tokens
        if not spent.known and admission.reserved is not None:
            output_tokens = admission.reserved.output_tokens  # as much as it can have been
        try:
            if watch.failed and permission.use == "session":
                await self._checker.abort(admission)
            else:
                await self._checker.finish(admission, output_tokens, watch.answer())
        except PermissionUnavailableError as error:
            self._warn(f"a request could not be settled: {error}")

    def _warn(self, message: str) -> None:
        """Once a second at most: a store that is gone is gone for every request."""
        if time.monotonic() - self._warned >= 1:
            self._warned = time.monotonic()
            LOG.warning(message)

    # --- the server's life

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._fault is not None:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": f"permission gate: {self._fault}"})
            return

        async def told(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._tend()
            elif message["type"].startswith("lifespan.shutdown"):
                await self.close()
            await send(message)

        await self._app(scope, receive, told)

    def _tend(self) -> None:
        if self._tending is None or self._tending.done():
            self._tending = asyncio.get_running_loop().create_task(self._tend_always())

    async def _tend_always(self) -> None:
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_TENDING)
            try:
                await self._checker.tend()
            except PermissionUnavailableError as error:
                LOG.warning("leases stay here: %s", error)
            await asyncio.to_thread(self._meter.flush)

    async def close(self) -> None:
        """Give leases back, hand over what was metered, close what was opened. The lifespan's end does this."""
        if self._tending is not None:
            self._tending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._tending
        try:
            await self._checker.close()
        except PermissionUnavailableError as error:
            LOG.warning("leases are lost: %s", error)
        await asyncio.to_thread(self._meter.close)
        await asyncio.to_thread(self._store.close)


def open_store(where: str) -> Store:
    """Nonces and quotas at a path (SQLite, made where there is none) or in the registry at a URL (PostgreSQL)."""
    return PermissionStore(where) if "://" in where else SqliteStore(where)
