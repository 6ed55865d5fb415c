"""The options of an endpoint, from the command line to a completer that is ready to be asked."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

from oml_fast.cli.endpoint_options import KINDS, add_endpoint_options, endpoint_from, endpoint_settings
from oml_fast.completer import CHOOSE, SCORE, Prompt
from oml_fast.errors import CompleterError, InvalidArgumentError
from oml_fast.verify.endpoint import Endpoint
from oml_fast.verify.endpoint import settings as settings_module

sys.path.append(str(Path(__file__).resolve().parents[1] / "verify"))

from faulty_server import Behaviour, FaultyServer, encode, greedy


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_endpoint_options(parser)
    return parser.parse_args(arguments)


def test_the_defaults_are_those_of_the_settings() -> None:
    assert endpoint_settings(parsed("--endpoint", "https://host")) == Endpoint("https://host")
    assert KINDS == settings_module.KINDS


def test_every_option_arrives() -> None:
    words = (  # noqa: SIM905
        "--endpoint https://host --endpoint-model m --endpoint-kind chat --concurrency 2 --rate 3 --timeout 4 "
        "--retries 5 --price-in 6 --price-out 7 --budget 8 --max-requests 9 --reasoning-tokens 10 --key-header K "
        "--proxy http://proxy --proxy-from-environment --ca-file f"
    ).split()
    made = endpoint_settings(parsed(*words, "--header", "A: b: c", "--header", "D:", "--extra-body", '{"seed": 0}'))
    assert made == Endpoint(
        "https://host", "m", "chat", 2, 3, 4, 5, 0.5, 120, 6, 7, 8, 9, 10, {"A": "b: c", "D": ""}, "K", "http://proxy",
        True, "f", {"seed": 0},
    )  # fmt: skip


def test_a_mapping_from_a_file_is_taken_too() -> None:
    options = parsed("--endpoint", "https://host")
    options.extra_body, options.header = {"seed": 1}, "A: b"
    assert endpoint_settings(options).extra_body == {"seed": 1}
    assert endpoint_settings(options).headers == {"A": "b"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--header", "top-secret"], "'NAME: VALUE'"),
        (["--header", ": top-secret"], "'NAME: VALUE'"),
        (["--header", "Authorization: top-secret"], "from the environment"),
        (["--extra-body", "{"], "no JSON"),
        (["--extra-body", "[1]"], "is a list"),
        (["--extra-body", '{"prompt": "top-secret"}'], "prompt is set"),
        (["--budget", "3"], "needs the prices"),
    ],
)
def test_what_cannot_be_is_refused_without_quoting_it(arguments: list[str], says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says) as found:
        endpoint_settings(parsed("--endpoint", "https://host", *arguments))
    assert "top-secret" not in str(found.value)


def test_an_endpoint_is_ready_after_its_preflight(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OML_FAST_API_KEY", "k-secret")
    with FaultyServer(Behaviour(api_key="k-secret")) as server:
        completer = endpoint_from(parsed("--endpoint", server.url), formats=["raw", "chat"])
        said = capsys.readouterr().err
        assert completer.complete([Prompt(encode("One key"), "One key", "raw")], 1)[0].token_ids == greedy(  # type: ignore[union-attr]
            encode("One key"), 1
        )
        assert completer.capabilities == {SCORE, CHOOSE}
        assert completer.meter.requests == len(server.bodies)
    assert "takes token ids" in said
    assert "secret" not in said


def test_without_the_api_key_it_says_which_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OML_FAST_API_KEY", raising=False)
    with FaultyServer(Behaviour(api_key="k")) as server, pytest.raises(CompleterError, match="set OML_FAST_API_KEY"):
        endpoint_from(parsed("--endpoint", server.url))


def test_a_tokenizer_is_compared(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OML_FAST_API_KEY", raising=False)
    with FaultyServer() as server:
        completer: Any = endpoint_from(parsed("--endpoint", server.url, "--endpoint-tokenizer", str(tiny_folder)))
    assert completer.tokenizer_digest == ""  # another one: asked by text
    assert "by text" in completer.name
