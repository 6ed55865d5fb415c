"""One request to an endpoint: paid for, paced, sent, and sent again while that may help.

Sent again: 408, 409, 425, 429 and 5xx, time-outs, lost connections, cut bodies. Not sent again: what no repetition
mends (a wrong API key, path, model or certificate); those raise and say what to check. TLS is always verified,
redirects are never followed (they would carry the API key and the keys elsewhere), and no header, body or proxy enters
a message.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import socket
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from ...errors import InvalidArgumentError
from .answers import IncompleteError, parse, printable
from .budget import EndpointError, Meter
from .settings import Endpoint

if TYPE_CHECKING:
    import aiohttp

AGAIN = frozenset({408, 409, 425, 429})
_MOST_BYTES = 8 << 20  # of one answer: a suspect may send without end
_CHECK = {
    401: "it refuses the API key; set OML_FAST_API_KEY to one that it accepts",
    402: "the account has no money left",
    403: "it forbids this to the API key; set OML_FAST_API_KEY to one that may use this model",
    404: "it knows no such path or model; check the URL (most end in /v1) and the model's name",
    405: "this path takes no such request; check the URL (most end in /v1)",
    407: "the proxy asks for a password; give it in the proxy's URL",
}


class RefusedError(EndpointError):
    """An answer that repeating would not change."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class TemporaryError(Exception):
    """A fault that may pass. `billed`: the model may have answered, and the answer was lost."""

    def __init__(self, reason: str, *, billed: bool, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.billed, self.wait = reason, billed, wait


class Http:
    """A session with one endpoint, within one event loop: `async with Http(...) as http`."""

    def __init__(self, endpoint: Endpoint, api_key: str | None, meter: Meter) -> None:
        self._endpoint, self._meter = endpoint, meter
        self._settled = asyncio.Event()
        self._headers = {**endpoint.headers}
        if api_key:
            bearer = endpoint.key_header.lower() == "authorization"
            self._headers[endpoint.key_header] = f"Bearer {api_key}" if bearer else api_key
        self.last_fault = ""

    async def __aenter__(self) -> Http:
        import aiohttp

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._endpoint.concurrency, ssl=tls(self._endpoint.ca_file)),
            timeout=aiohttp.ClientTimeout(total=self._endpoint.timeout_s),
            trust_env=self._endpoint.trust_env,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._session.close()

    async def ask(
        self, path: str, body: Mapping[str, Any], tokens: tuple[int, int], retries: int | None = None
    ) -> dict[str, Any] | None:
        """The answer's body; None where none came after all retries. Raises EndpointError.

        tokens: how many of the prompt and of the completion the request may cost at most.
        """
        retries = self._endpoint.retries if retries is None else retries
        held = self._meter.cost(*tokens)
        for attempt in range(retries + 1):
            await self._hold(held)
            cost = held  # cut off by Ctrl-C: it may have been billed
            try:
                await self._meter.pace.turn()
                answer = parse(*await self._send("POST", path, body))
                cost = self._meter.price(answer.get("usage"), held)
                return answer
            except (TemporaryError, IncompleteError) as fault:
                self.last_fault = printable(str(fault))
                wait = fault.wait if isinstance(fault, TemporaryError) else 0.0
                if isinstance(fault, TemporaryError) and not fault.billed:
                    cost = 0.0
            except EndpointError:
                cost = 0.0
                raise
            finally:
                self._meter.settle(held, cost)
                self._settled.set()
            if attempt < retries:
                await self._back_off(attempt, wait)
        return None

    async def get(self, path: str) -> Any:
        """The JSON of a GET, None where there is none. Raises RefusedError; TemporaryError where nothing is there."""
        for attempt in range(self._endpoint.retries + 1):
            wait = 0.0
            try:
                _, raw = await self._send("GET", path)
                return json.loads(raw)
            except ValueError:  # cut, or no JSON
                pass
            except TemporaryError as fault:
                if attempt == self._endpoint.retries:
                    raise
                wait = fault.wait
            await self._back_off(attempt, wait)
        return None

    async def _hold(self, cost: float) -> None:
        """Wait until the budget has room for one more request: one in flight may cost less than was held back."""
        while not self._meter.fits(cost):
            self._settled.clear()
            await self._settled.wait()
        self._meter.hold(cost)

    async def _back_off(self, attempt: int, wait: float) -> None:
        """Sleep before the next attempt: doubling, with jitter, and never shorter than the server asked for."""
        if wait > self._endpoint.longest_wait_s:
            raise EndpointError(f"{self._endpoint.shown} asks to wait {wait:.0f} s: go on later, or at a lower rate.")
        if wait:
            self._meter.pace.pause(wait)
        own = min(self._endpoint.longest_wait_s, self._endpoint.backoff_s * 2**attempt)
        await asyncio.sleep(max(wait, own * random.uniform(0.5, 1)))  # noqa: S311 - jitter

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[str, bytes]:
        """(content type, body) of an answer with status 200. TemporaryError, RefusedError or EndpointError."""
        import aiohttp

        shown = self._endpoint.shown
        try:
            async with self._session.request(
                method,
                self._endpoint.address(path),
                json=body,
                proxy=self._endpoint.proxy,
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    raise _fault(shown + path, response)
                return response.content_type, await _read(response, shown)
        except aiohttp.ClientSSLError as error:
            raise EndpointError(
                f"{shown} cannot be trusted: {_tls_reason(error)}. Where its certificate comes from an authority of "
                "your own, name that authority's file with --ca-file; TLS is never left unverified."
            ) from error
        except aiohttp.ClientHttpProxyError as error:
            raise RefusedError(f"the proxy answers {error.status}: check --proxy.", error.status) from error
        except aiohttp.ClientConnectorError as error:
            raise TemporaryError(f"cannot connect ({_connect_reason(error.os_error)})", billed=False) from error
        except aiohttp.InvalidURL as error:
            raise InvalidArgumentError("the endpoint's or the proxy's URL cannot be used: check both.") from error
        except TimeoutError as error:
            raise TemporaryError(f"no answer within {self._endpoint.timeout_s:g} s", billed=True) from error
        except aiohttp.ClientPayloadError as error:
            raise TemporaryError("its answer was cut off", billed=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise TemporaryError(f"the connection was lost ({type(error).__name__})", billed=True) from error


async def _read(response: aiohttp.ClientResponse, shown: str) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise EndpointError(f"{shown} sends more than {_MOST_BYTES >> 20} MiB as one answer: it is not usable.")
    return b"".join(parts)


def _fault(shown: str, response: aiohttp.ClientResponse) -> TemporaryError | RefusedError:
    """What a status other than 200 means. The body stays unread: it may quote the key that was asked."""
    status = response.status
    if status in AGAIN or status >= 500:
        wait = _seconds(response.headers.get("Retry-After", ""))
        return TemporaryError(f"it answers {status}", billed=False, wait=wait)
    if 300 <= status < 400:
        return RefusedError(f"{shown} answers with a redirect ({status}): give the URL that it leads to.", status)
    check = _CHECK.get(status, "it does not accept the request; the preflight says what it accepts")
    return RefusedError(f"{shown} answers {status}: {check}.", status)


def _seconds(retry_after: str) -> float:
    """Retry-After, in seconds or as a date; 0 where it says nothing."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _connect_reason(error: OSError) -> str:
    """Without the address that asyncio writes into its message."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or type(error).__name__
    return os.strerror(error.errno)


def _tls_reason(error: aiohttp.ClientSSLError) -> str:
    inner = error.os_error
    if isinstance(inner, ssl.SSLCertVerificationError):
        return inner.verify_message
    return getattr(inner, "reason", None) or "no TLS connection"


@functools.lru_cache
def tls(ca_file: str | None) -> ssl.SSLContext:
    """Verification against the system's authorities, and against those in `ca_file` too."""
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            reason = getattr(error, "strerror", None) or "no certificate in it"
            raise InvalidArgumentError(
                f"cannot read {ca_file}: {reason}. --ca-file wants a PEM file with the certificates of the authority."
            ) from error
    return context
