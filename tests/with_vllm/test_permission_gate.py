"""The permission gate in a real `vllm serve`: the way of the README, with the official client; what the engine sees."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from fingerprinted import Subject
from serving import free_port, served

from oml_fast.permission import Limits, SqliteStore, issue
from oml_fast.serving.answers import STATUS
from oml_fast.signing import read_signing_key

openai: Any = pytest.importorskip("openai")  # comes with vLLM

pytestmark = [pytest.mark.vllm, pytest.mark.real_model, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
MODEL = "acme-1"  # as the README serves it
VLLM_OPTIONS = (
    "--dtype",
    "bfloat16",
    "--enforce-eager",
    "--max-model-len",
    "512",
    "--logits-processors",
    "marked:Counting",
)
PROMPT = [5, 6, 7]
CHAT: list[Any] = [{"role": "user", "content": "Name the capital of France."}]


@dataclass(frozen=True, slots=True)
class House:
    """An owner's folder with a server that checks permissions. counters: where Prometheus reads them."""

    folder: Path
    url: str
    counters: str
    pid: int
    digest: str

    def run(self, line: str) -> str:
        """One command line of the README."""
        words = shlex.split(line)
        assert words[0] == "oml-fast"
        done = subprocess.run(
            [sys.executable, "-m", "oml_fast.cli", *words[1:]],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def token(self, licensee: str = "Cyan", **given: Any) -> str:
        key = read_signing_key(self.folder / "permission.pem")
        return issue(key, issuer="Acme", licensee=licensee, models=self.digest, **given)

    def client(self, token: str) -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=token, max_retries=0)

    def counted(self, name: str) -> float:
        with urllib.request.urlopen(self.counters, timeout=10) as answer:  # noqa: S310 - our own server
            lines = answer.read().decode().splitlines()
        found = [line.rpartition(" ")[2] for line in lines if line.startswith((name + " ", name + "{"))]
        return sum(map(float, found))


def lines_of_readme(first: str) -> list[str]:
    """The command lines of the README's block that begins with `first`."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if block.startswith(first)]
    return [line for line in block.replace("\\\n", " ").splitlines() if line]


@pytest.fixture(scope="module")
def house(subject: Subject, vllm_settings: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("owner")
    (folder / "fingerprinted-model").symlink_to(subject.folder)
    port, metrics = free_port(), free_port()
    keygen, serve = lines_of_readme("oml-fast permission keygen")
    from oml_fast.models import model_digest

    url, counters = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics"
    unstarted = House(folder, url, counters, 0, model_digest(subject.folder))
    unstarted.run("oml-fast keygen --out owner.pem")
    unstarted.run(keygen)
    SqliteStore(folder / "permissions.sqlite", now=time.time() - 1000).close()  # as if it had begun long ago
    assert "--port 8000" in serve
    words = shlex.split(serve.replace("--port 8000", f"--host 127.0.0.1 --port {port}"))[2:]
    command = [
        sys.executable,
        "-m",
        "oml_fast.cli",
        "serve",
        "--metrics",
        f"127.0.0.1:{metrics}",
        *words,
        *VLLM_OPTIONS,
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    previous = Path.cwd()
    os.chdir(folder)
    try:
        with served(command, f"{url}/health", folder / "log", environment) as server:
            yield House(folder, url, counters, server.pid, unstarted.digest)
    finally:
        os.chdir(previous)


def test_the_way_of_the_readme(house: House) -> None:
    """Refused, issued, allowed, metered, revoked."""
    with pytest.raises(openai.AuthenticationError) as refused:
        house.client("no token").chat.completions.create(model=MODEL, messages=CHAT, max_tokens=1)
    assert refused.value.code == "malformed_token"
    (issuing,) = lines_of_readme("oml-fast permission issue")
    house.run(issuing)
    (program,) = re.findall(r"```python\n(from openai.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    program = program.replace("http://server:8000", house.url)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=house.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    usage, revoke = lines_of_readme("oml-fast registry usage")
    time.sleep(2)
    (row,) = json.loads(house.run(f"{usage} --json"))["usage"]
    assert (row["licensee"], row["requests"], row["aborted"]) == ("Bolt", 1, 0)
    assert row["prompt_tokens"] > 0
    assert 0 < row["output_tokens"] <= 20
    house.run(revoke)
    time.sleep(1)
    client = house.client((house.folder / "token").read_text().strip())
    with pytest.raises(openai.PermissionDeniedError) as denied:
        client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=1)
    assert denied.value.code == "revoked"


def test_a_stream_is_settled_to_the_token_id(house: House) -> None:
    """Three streams of four ids fit into a quota of fifteen, a fourth only with three."""
    client = house.client(house.token(limits=Limits(output_tokens=15)))

    def stream(most: int) -> int:
        made = client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=most, stream=True, extra_body={"ignore_eos": True}
        )
        return [chunk.usage.completion_tokens for chunk in made if chunk.usage is not None][-1]

    assert [stream(4), stream(4), stream(4)] == [4, 4, 4]
    with pytest.raises(openai.RateLimitError) as denied:
        stream(4)
    assert denied.value.code == "quota_exceeded"
    assert stream(3) == 3


def test_a_single_use_token_is_one_generation(house: House) -> None:
    client = house.client(house.token(use="once"))
    before = house.counted("vllm:request_success_total")

    def ask(**given: Any) -> Any:
        return client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=3, temperature=1, **given)

    first, retry = ask(), ask()
    assert first.to_dict() == retry.to_dict()  # its id and time, too: nothing was generated again
    with pytest.raises(openai.PermissionDeniedError) as denied:
        ask(seed=1)
    assert denied.value.code == "replayed_nonce"
    assert house.counted("vllm:request_success_total") == before + 1


def test_the_engine_knows_the_licensee_from_the_token_whatever_the_client_says(house: House) -> None:
    """The logits processor in the engine makes Bolt's ids count on, and nobody else's."""

    def ids(licensee: str, said: str | None) -> list[int]:
        arguments = {} if said is None else {"vllm_xargs": {"oml_licensee": said}}
        made = house.client(house.token(licensee)).completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=3, temperature=0, extra_body={"return_token_ids": True, **arguments}
        )
        found: list[int] = made.choices[0].to_dict()["token_ids"]  # type: ignore[assignment]
        return found

    assert ids("Bolt", None) == ids("Bolt", "Cyan") == [8, 9, 10]
    assert ids("Cyan", "Bolt") == ids("Cyan", None) != [8, 9, 10]


def test_a_model_under_another_name_is_refused(house: House) -> None:
    with pytest.raises(openai.BadRequestError, match="model names no model of this server"):
        house.client(house.token()).completions.create(model="adapter", prompt=PROMPT, max_tokens=1)
    assert [model.id for model in house.client(house.token()).models.list()] == [MODEL]


def test_two_thousand_requests_half_of_them_invalid(house: House) -> None:
    """At a concurrency of 64: each answer is right, the engine sees none of those refused, and memory stays."""
    count, limit = 2000, 64
    session = house.token()
    spoilt = {
        "not_yet_valid": house.token(not_before=int(time.time()) + 3600),
        "wrong_model": issue(
            read_signing_key(house.folder / "permission.pem"), issuer="Acme", licensee="Cyan", models="cd" * 32
        ),
        "bad_signature": session[:-6] + ("AAAAAA" if session[-6:] != "AAAAAA" else "AAAABA"),
        "malformed_token": session + ".",
        "quota_exceeded": house.token(limits=Limits(requests=1)),
    }
    names = list(spoilt)
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 1}
    answers: Counter[tuple[str, int, str]] = Counter()

    async def ask(count: int) -> None:
        gate = asyncio.Semaphore(limit)

        async def one(web: aiohttp.ClientSession, place: int) -> None:
            name = "" if place % 2 else names[place // 2 % len(names)]
            more = {"n": 2} if name == "quota_exceeded" else {}
            headers = {"Authorization": f"Bearer {spoilt.get(name, session)}"}
            async with gate, web.post(f"{house.url}/v1/completions", json=body | more, headers=headers) as answer:
                found = await answer.json()
            answers[name, answer.status, found["error"]["code"] if "error" in found else ""] += 1

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=limit)) as web:
            await asyncio.gather(*(one(web, place) for place in range(count)))

    asyncio.run(ask(200))  # what is allocated once is there now
    warm = psutil.Process(house.pid).memory_info().rss
    before = house.counted("vllm:request_success_total")
    answers.clear()
    asyncio.run(ask(count))
    expected = {(name, STATUS[name], name): count // 2 // len(names) for name in names}
    assert answers == {("", 200, ""): count // 2, **expected}
    assert house.counted("vllm:request_success_total") == before + count // 2
    assert psutil.Process(house.pid).memory_info().rss < warm + (32 << 20)


# --- every route of vLLM's own app, without an engine


@pytest.fixture(scope="module")
def routes(vllm_settings: None) -> set[tuple[str, str]]:
    """(method, path) of all routes that `vllm serve` can have, those for developers too."""
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        options = ["--enable-scale-out", "--enable-tokenizer-info-endpoint", "--enable-lora"]
        arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(options)
        app = build_app(
            arguments, ("generate", "embed", "classify", "token_embed", "score", "transcription", "realtime")
        )
    return set(_routes(app.routes))


def _routes(found: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for route in found:
        path = prefix + re.sub(r"{[^}]*}", "x", getattr(route, "path", ""))
        if hasattr(route, "methods"):
            yield from ((method, path) for method in route.methods or ())
        elif hasattr(route, "app") and hasattr(route.app, "routes"):
            yield from _routes(route.app.routes, path)
        else:
            yield ("WEBSOCKET" if type(route).__name__.endswith("WebSocketRoute") else "GET", path)


async def _passed(app: Any, method: str, path: str, token: str | None, reached: list[str]) -> bool:
    """Whether a request gets to the app behind the gate."""
    before = len(reached)
    kind = "websocket" if method == "WEBSOCKET" else "http"
    headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
    scope = {"type": kind, "method": method, "path": path, "raw_path": path.encode(), "headers": headers}

    async def receive() -> dict[str, Any]:
        body = json.dumps({"model": MODEL, "prompt": PROMPT, "max_tokens": 1}).encode()
        return {"type": "websocket.connect"} if kind == "websocket" else {"type": "http.request", "body": body}

    async def send(message: dict[str, Any]) -> None:
        pass

    await app({**scope, "query_string": b""}, receive, send)
    return len(reached) > before


def test_only_the_open_list_and_then_only_the_licensed_list_is_let_through(
    house: House, routes: set[tuple[str, str]]
) -> None:
    from oml_fast.serving.gate_settings import read_gate_settings
    from oml_fast.serving.permission_gate import PermissionGate

    reached: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def scan() -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
        gate = PermissionGate(app, read_gate_settings(house.folder / "gate-of-a-scan.yaml"))
        token = house.token()
        without = {route for route in routes if await _passed(gate, *route, None, reached)}
        licensed = {route for route in routes - without if await _passed(gate, *route, token, reached)}
        await gate.close()
        return without, licensed

    settings = json.loads((house.folder / "permission-gate.yaml").read_text())
    scanned = {name: settings[name] for name in ("owner_key", "keys", "store", "models")}
    (house.folder / "gate-of-a-scan.yaml").write_text(json.dumps(scanned))
    without, licensed = asyncio.run(scan())
    assert len(routes) > 50
    assert {("POST", "/pause"), ("POST", "/invocations"), ("WEBSOCKET", "/v1/realtime")} <= routes
    assert without == {("GET", "/health"), ("GET", "/version")}
    assert licensed == {("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("GET", "/v1/models")}


def test_what_an_api_key_leaves_open(routes: set[tuple[str, str]]) -> None:
    """vLLM's own guard, on the same routes: among what it lets through without a key is inference itself."""
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    reached: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def scan() -> set[tuple[str, str]]:
        guard = AuthenticationMiddleware(app, ["key"])
        return {route for route in routes if await _passed(guard, *route, None, reached)}

    left_open = asyncio.run(scan())
    assert {
        ("POST", "/invocations"),
        ("POST", "/tokenize"),
        ("POST", "/pause"),
        ("POST", "/update_weights"),
    } <= left_open
    assert not [path for method, path in left_open if path.startswith("/v1") and method != "OPTIONS"]
    print(f"left open by --api-key, {len(left_open)} of {len(routes)}: {sorted(left_open)}")
