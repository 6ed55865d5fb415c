"""The gate in a real server: uvicorn on loopback, from start to shutdown, with counters on an address of their own."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from gating import CHAT, CHAT_PATH, LICENSEE, MODEL, Owner, Stub, event, request

from oml_fast.errors import InvalidArgumentError, OmlError
from oml_fast.permission import Nonce, SqliteStore, read_token
from oml_fast.registry import UsageLog, Used
from oml_fast.serving.metrics import Metrics
from oml_fast.serving.permission_gate import PermissionGate


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(app: Any) -> Iterator[str]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        assert thread.is_alive(), "the server did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def ask(url: str, token: str | None = None, body: Any = None, path: str = CHAT_PATH) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(f"{url}{path}", data, headers)  # noqa: S310 - our own server
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_a_server_behind_the_gate_from_start_to_shutdown(owner: Owner) -> None:
    place = owner.folder / "registry.sqlite"
    stub = Stub()
    token = owner.limited(output_tokens=100)
    with serving(PermissionGate(stub, owner.settings(registry=str(place)))) as url:
        assert ask(url, path="/health")[0] == 200
        assert ask(url, body=CHAT)[0] == 401
        assert ask(url, token, CHAT)[0] == 200
        assert ask(url, token, CHAT | {"max_tokens": 101})[0] == 429
        stub.parts = [event(usage={"prompt_tokens": 7, "completion_tokens": 2}), b"data: [DONE]\n\n"]
        assert ask(url, token, CHAT | {"stream": True})[1] == b"".join(stub.parts)
    log = UsageLog(place)
    assert log.total() == [Used(LICENSEE, MODEL, 2, 2, 14, 5, 0)]  # flushed at the end
    log.close()
    store = SqliteStore(owner.folder / "store.sqlite")
    assert store.usage(nonce_of(owner, token)).taken.output_tokens == 5  # every lease was given back
    store.close()


def nonce_of(owner: Owner, token: str) -> Nonce:
    return Nonce.of(read_token(token, lambda kid: owner.key.verification_key))


def test_a_client_that_sends_its_body_slowly_is_answered(owner: Owner) -> None:
    stub = Stub()
    with serving(PermissionGate(stub, owner.settings(body_seconds=0.2))) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = (
                f"POST {CHAT_PATH} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {owner.token()}\r\nContent-Length: 90"
            )
            connection.sendall(f"{head}\r\n\r\n{{".encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")
    assert stub.seen == []


def test_a_huge_body_is_refused_unread(owner: Owner) -> None:
    stub = Stub()
    with serving(PermissionGate(stub, owner.settings(max_body_bytes=4096))) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"POST {CHAT_PATH} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {owner.token()}"
            connection.sendall(f"{head}\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n".encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 413")
    assert stub.seen == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keys": "missing.jws"}, "cannot read the list of keys"),
        ({"owner_key": "missing.pub"}, "missing.pub"),
        ({"store": "/proc/no/store.sqlite"}, "store.sqlite"),
        ({"models": {}}, "at least one model"),
    ],
)
def test_a_gate_that_cannot_work_does_not_start(
    owner: Owner, settings: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = {name: owner.folder / value if name in ("keys", "owner_key") else value for name, value in settings.items()}
    gate = PermissionGate(Stub(), owner.settings(**given))
    server = uvicorn.Server(uvicorn.Config(gate, port=free_port(), log_level="error"))  # lifespan "auto", as vLLM's
    with pytest.raises(SystemExit):
        asyncio.run(server.serve())
    assert not server.started
    assert said in caplog.text


# --- counters


def counters(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith("oml_")}


def test_prometheus_reads_counters_at_an_address_of_their_own(owner: Owner) -> None:
    port = free_port()

    async def run() -> dict[str, float]:
        gate = PermissionGate(Stub(), owner.settings(metrics=("127.0.0.1", port)))
        for token in (owner.token(), owner.token(), "a.b.c", owner.limited(requests=1)):
            await request(gate, body=CHAT | {"n": 2}, token=token)
        await asyncio.sleep(1.2)
        found = await asyncio.to_thread(counters, port)
        await gate.close()
        return found

    found = asyncio.run(run())
    labels = f'{{licensee="{LICENSEE}",model="{MODEL[:16]}"}}'
    expected = {"requests": 2, "generations": 4, "prompt_tokens": 14, "output_tokens": 6, "aborted": 0}
    assert {name: found[f"oml_{name}_total{labels}"] for name in expected} == expected
    assert found['oml_refusals_total{code="malformed_token"}'] == 1
    assert found['oml_refusals_total{code="quota_exceeded"}'] == 1
    with pytest.raises(OSError, match="refused"):
        counters(port)  # the address is free again


def test_an_address_that_is_taken_is_named(owner: Owner) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidArgumentError, match=f"127.0.0.1:{port}: .* Choose another address"):
            Metrics("127.0.0.1", port)


def test_of_several_processes_the_first_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    port = free_port()
    first = Metrics("127.0.0.1", port)
    second = Metrics("127.0.0.1", port)
    second.close()
    assert counters(port) == {}
    first.close()


def test_without_prometheus_client_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(OmlError, match="pip install prometheus_client, or leave the setting metrics out"):
        Metrics("127.0.0.1", free_port())
