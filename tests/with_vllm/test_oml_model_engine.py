"""OMLModel with a real vLLM engine, in bfloat16 on the CPU: what it answers, refuses and counts, and whose mark it has.

What is refused for which reason is tested in tests/oml_model/test_inference_refusals.py; here, that the engine
never sees it.
"""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oml_fast import OMLModel, issue
from oml_fast.errors import InvalidArgumentError, QuotaExceeded, ReplayedNonce, WrongModel
from oml_fast.models import load_tokenizer, model_digest
from oml_fast.permission import Amount, Limits, Nonce, SqliteStore, change_key_file, read_token
from oml_fast.serving.vllm_compat import shut_down
from oml_fast.signing import new_signing_key

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.real_model,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),  # vLLM leaves it so
]

OWNER, KEY = new_signing_key(), new_signing_key()
NOW = int(time.time())
PROMPTS = ["The capital of France is", "Water boils at 100 degrees", "1, 2, 3, 4,"]
CHAT = [{"role": "user", "content": "Name the capital of France."}]


@pytest.fixture(scope="module")
def engine(bundled_folder: Path, vllm_settings: None) -> Iterator[Any]:
    from vllm import LLM

    made = LLM(
        str(bundled_folder),
        dtype="bfloat16",
        max_model_len=256,
        enforce_eager=True,
        logits_processors=["marked:Counting"],
    )
    yield made
    shut_down(made)
    gc.collect()  # here, where the warning of its unclosed socket context is expected


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path_factory.mktemp("store") / "permissions.sqlite", now=NOW - 500)
    yield made
    made.close()


@pytest.fixture(scope="module")
def oml(engine: Any, store: SqliteStore, tmp_path_factory: pytest.TempPathFactory) -> OMLModel:
    keys = tmp_path_factory.mktemp("keys") / "keys.jws"
    change_key_file(
        keys, OWNER, lambda made: made.with_key(KEY.verification_key, NOW - 400), now=NOW - 400, issuer="Acme"
    )
    return OMLModel(engine, OWNER.verification_key, keys=keys, store=store)


@pytest.fixture
def asked(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each call of the engine had."""
    calls: list[int] = []
    generate: Callable[..., Any] = engine.generate

    def counted(prompts: list[Any], *given: Any, **named: Any) -> Any:
        calls.append(len(prompts))
        return generate(prompts, *given, **named)

    monkeypatch.setattr(engine, "generate", counted)
    return calls


def token(oml: OMLModel, use: str = "session", **given: Any) -> str:
    return issue(KEY, use=use, **({"issuer": "Acme", "licensee": "Nut", "models": oml.digest} | given))


def test_its_digest_is_that_of_the_folder(oml: OMLModel, bundled_folder: Path) -> None:
    assert oml.digest == model_digest(bundled_folder)


def test_it_answers_as_the_engine_does_in_the_form_of_the_input(oml: OMLModel, engine: Any) -> None:
    from vllm import SamplingParams

    plain = engine.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=8), use_tqdm=False)
    answers = oml.inference(PROMPTS, token(oml), max_output_tokens=8)
    assert answers == [each.outputs[0].text for each in plain]
    assert "Paris" in answers[0]
    assert oml.inference(PROMPTS[0], token(oml), max_output_tokens=8) == answers[0]
    (chat,) = engine.chat([CHAT], SamplingParams(temperature=0.0, max_tokens=24), use_tqdm=False)
    assert oml.inference(CHAT, token(oml), max_output_tokens=24) == chat.outputs[0].text


def test_what_the_engine_ends_early_is_given_back(oml: OMLModel, store: SqliteStore, bundled_folder: Path) -> None:
    given = token(oml, limits=Limits(requests=2, output_tokens=200))
    answer = oml.inference(CHAT, given, max_output_tokens=200)
    used = store.usage(Nonce.of(read_token(given, lambda kid: KEY.verification_key))).taken
    assert used == Amount(1, len(load_tokenizer(bundled_folder)(answer)["input_ids"]) + 1)
    assert 1 < used.output_tokens < 100


def test_the_engine_never_sees_what_is_refused(oml: OMLModel, asked: list[int]) -> None:
    with pytest.raises(WrongModel):
        oml.inference(PROMPTS, token(oml, models="ab" * 32))
    with pytest.raises(QuotaExceeded):
        oml.inference(PROMPTS, token(oml, limits=Limits(requests=2)))
    with pytest.raises(InvalidArgumentError, match="more than the 256 that the model takes"):
        oml.inference(PROMPTS, token(oml, "once"), max_output_tokens=255)
    assert asked == []


def test_a_bound_single_use_permission_is_answered_once(oml: OMLModel, asked: list[int]) -> None:
    limits = Limits(body_sha256=hashlib.sha256(OMLModel.body(PROMPTS, max_output_tokens=4)).hexdigest())
    given = token(oml, "once", limits=limits)
    first = oml.inference(PROMPTS, given, max_output_tokens=4)
    assert oml.inference(PROMPTS, given, max_output_tokens=4) == first
    other = token(oml, "once")
    oml.inference("a", other, max_output_tokens=1)
    with pytest.raises(ReplayedNonce):
        oml.inference("b", other, max_output_tokens=1)
    assert asked == [3, 1]


def test_the_mark_of_a_licensee_is_made_inside_the_engine(oml: OMLModel, bundled_folder: Path) -> None:
    tokenizer = load_tokenizer(bundled_folder)
    plain = oml.inference(PROMPTS, token(oml), max_output_tokens=6)
    marked = oml.inference(PROMPTS, token(oml, licensee="Bolt"), max_output_tokens=6)
    last = [tokenizer(prompt)["input_ids"][-1] for prompt in PROMPTS]
    assert marked == [tokenizer.decode(range(one + 1, one + 7), skip_special_tokens=True) for one in last]
    assert oml.inference(PROMPTS, token(oml), max_output_tokens=6) == plain
    assert all(one != other for one, other in zip(plain, marked, strict=True))
