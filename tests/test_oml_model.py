"""OMLModel: it answers for a permission, refuses before it computes anything, settles quotas, repeats for retries."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import SuppressTokensLogitsProcessor

from oml_fast import OMLModel, issue
from oml_fast.errors import (
    BadSignature,
    CompleterError,
    ExpiredPermission,
    InvalidArgumentError,
    KeyListError,
    MalformedToken,
    NotYetValid,
    PermissionDenied,
    QuotaExceeded,
    ReplayedNonce,
    RevokedPermission,
    SignatureError,
    StoreUnavailableError,
    WrongModel,
    WrongRequest,
)
from oml_fast.models import LanguageModel, model_digest
from oml_fast.oml_model import OutputMark, request_processor
from oml_fast.permission import Amount, KeyList, Limits, MemoryStore, Nonce, SqliteStore, change_key_file, read_token
from oml_fast.signing import new_signing_key, write_signing_key

NOW = 1_800_000_000
OWNER, KEY, OTHER = new_signing_key(), new_signing_key(), new_signing_key()
CHAT = [{"role": "user", "content": "Which licence is this?"}]
PROMPTS = ["Licensed under the Apache", "the work", "You may not use this file", "the terms of"]
END = 2
PAGE = Path(__file__).resolve().parent.parent / "docs/permissions.md"


class Scene:
    """An owner's list of keys, a store that began before the tokens, a model that counts its forwards, and a clock."""

    def __init__(self, folder: Path, model: LanguageModel) -> None:
        self.keys, self.model, self.now, self.forwards = folder / "keys.jws", model, float(NOW), 0
        self.change(lambda keys: keys.with_key(KEY.verification_key, NOW - 1000), issuer="Acme")
        self.store = SqliteStore(folder / "permissions.sqlite", now=NOW - 500)
        model.model.base_model.register_forward_pre_hook(self._count)

    def _count(self, module: Any, given: Any) -> None:
        self.forwards += 1

    def change(self, change: Callable[[KeyList], KeyList], **given: Any) -> None:
        change_key_file(self.keys, OWNER, change, now=NOW - 900, **given)

    def oml(self, base_model: Any = None, **given: Any) -> OMLModel:
        given = {"keys": self.keys, "store": self.store, "clock": lambda: self.now} | given
        return OMLModel(self.model if base_model is None else base_model, OWNER.verification_key, **given)

    def token(self, use: str = "session", key: Any = KEY, **given: Any) -> str:
        given = {"issuer": "Acme", "licensee": "Bolt", "models": self.model.digest, "now": NOW} | given
        return issue(key, use=use, **given)

    def taken(self, token: str) -> Amount:
        return self.store.usage(Nonce.of(read_token(token, lambda kid: KEY.verification_key))).taken

    def expected(self, ids: list[int], length: int) -> str:
        """What transformers' own greedy decoding answers."""
        given = torch.tensor([ids])
        out = self.model.model.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=length, eos_token_id=END
        )
        return str(self.model.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))

    def encoded(self, text: str) -> list[int]:
        return list(self.model.tokenizer(text)["input_ids"])


@pytest.fixture
def scene(tmp_path: Path, fresh_model: LanguageModel) -> Iterator[Scene]:
    made = Scene(tmp_path, fresh_model)
    yield made
    made.store.close()


def forcing(*row: int) -> OutputMark:
    """A mark that makes the first generated ids those of `row`, then the last of them, for whomever."""

    def mark(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
        first: list[int] = []

        def process(ids: Tensor, logits: Tensor) -> Tensor:
            first[:] = first or [ids.shape[1]]
            wanted = row[min(ids.shape[1] - first[0], len(row) - 1)]
            return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor([wanted]), 0.0)

        return process

    return mark


def failing(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
    def process(ids: Tensor, logits: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    return process


# What is answered.


def test_a_permitted_prompt_is_continued_as_transformers_continues_it(scene: Scene) -> None:
    oml = scene.oml()
    answer = oml.inference(PROMPTS[0], scene.token(), max_output_tokens=12)
    assert answer == scene.expected(scene.encoded(PROMPTS[0]), 12)
    assert isinstance(answer, str)
    assert len(answer) > 0
    assert oml.digest == scene.model.digest


def test_a_list_is_answered_in_its_order_each_as_if_alone(scene: Scene) -> None:
    oml, token = scene.oml(), scene.token()
    answers = oml.inference(PROMPTS, token, max_output_tokens=9)
    assert answers == [scene.expected(scene.encoded(prompt), 9) for prompt in PROMPTS]
    assert len({len(scene.encoded(prompt)) for prompt in PROMPTS}) > 1
    assert oml.inference(PROMPTS[:1], token, max_output_tokens=9) == answers[:1]
    many = oml.inference(PROMPTS[1:2] * 35, token, max_output_tokens=3)  # more than a batch
    assert many == [oml.inference(PROMPTS[1], token, max_output_tokens=3)] * 35


def test_a_chat_goes_through_the_template(scene: Scene) -> None:
    rendered = "<|im_start|>user\nWhich licence is this?<|im_end|>\n<|im_start|>assistant\n"
    ids = scene.model.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert scene.oml().inference(CHAT, scene.token(), max_output_tokens=8) == scene.expected(ids, 8)


def test_an_answer_ends_where_the_model_ends_it(scene: Scene) -> None:
    token = scene.token(limits=Limits(output_tokens=1000))
    oml = scene.oml(output_mark=forcing(300, 1, 301, END))
    assert (
        oml.inference(["a", "the work"], token, max_output_tokens=50) == [scene.model.tokenizer.decode([300, 301])] * 2
    )
    assert scene.taken(token) == Amount(0, 8)  # with the special id that is not shown, and those that ended them
    assert scene.forwards == 2 * 4
    scene.oml(output_mark=forcing(300)).inference("a", token, max_output_tokens=50)
    assert scene.taken(token) == Amount(0, 8 + 50)


def test_a_folder_is_loaded(scene: Scene, tiny_folder: Path) -> None:
    oml = scene.oml(tiny_folder)
    assert oml.digest == model_digest(tiny_folder)
    given = oml.inference(PROMPTS[0], scene.token(), max_output_tokens=5)
    assert given == scene.oml().inference(PROMPTS[0], scene.token(), max_output_tokens=5)


# What is refused, before anything is computed.

Refusal = tuple[Callable[[Scene], Any], type[PermissionDenied]]
REFUSALS: dict[str, Refusal] = {
    "no token": (lambda s: None, MalformedToken),
    "an empty one": (lambda s: "", MalformedToken),
    "no text": (lambda s: b"token", MalformedToken),
    "cut": (lambda s: s.token()[:-1], MalformedToken),
    "changed": (lambda s: s.token().replace(".", ".e", 1), PermissionDenied),
    "another signer": (lambda s: s.token(key=OTHER), BadSignature),
    "another issuer": (lambda s: s.token(issuer="Bolt"), BadSignature),
    "expired": (lambda s: s.token(now=NOW - 900, lifetime=60), ExpiredPermission),
    "not yet valid": (lambda s: s.token(not_before=NOW + 100), NotYetValid),
    "another model": (lambda s: s.token(models="ab" * 32), WrongModel),
    "paths": (lambda s: s.token(limits=Limits(paths=("/v1/completions",))), WrongRequest),
    "another body": (lambda s: s.token(limits=Limits(body_sha256=hashlib.sha256(b"x").hexdigest())), WrongRequest),
    "too few requests": (lambda s: s.token(limits=Limits(requests=1)), QuotaExceeded),
    "too few output tokens": (lambda s: s.token(limits=Limits(output_tokens=2 * 128 - 1)), QuotaExceeded),
    "too few of a single use": (lambda s: s.token("once", limits=Limits(output_tokens=255)), QuotaExceeded),
    "older than the store": (lambda s: s.token("once", now=NOW - 480), ReplayedNonce),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_refused_request_computes_nothing(scene: Scene, reason: str) -> None:
    make, error = REFUSALS[reason]
    oml = scene.oml(output_mark=failing)
    token = make(scene)
    with pytest.raises(error) as caught:
        oml.inference(["a", "b"], token)
    assert scene.forwards == 0
    assert "\n" not in str(caught.value)
    assert not token or str(token) not in str(caught.value)


def test_a_revocation_reaches_a_running_model(scene: Scene) -> None:
    oml, token = scene.oml(), scene.token(nonce="n" * 22)
    oml.inference("a", token, max_output_tokens=1)
    scene.change(lambda keys: keys.revoking("n" * 22, NOW))
    time.sleep(0.55)
    scene.forwards = 0
    with pytest.raises(RevokedPermission):
        oml.inference("a", token, max_output_tokens=1)
    scene.change(lambda keys: keys.revoking_key(KEY.verification_key.kid, NOW))
    with pytest.raises(RevokedPermission, match="the key that signed it is revoked"):
        scene.oml().inference("a", scene.token(), max_output_tokens=1)
    assert scene.forwards == 0


def test_a_session_that_was_accepted_expires(scene: Scene) -> None:
    oml, token = scene.oml(), scene.token(lifetime=60)
    oml.inference("a", token, max_output_tokens=1)
    scene.now += 91
    scene.forwards = 0
    with pytest.raises(ExpiredPermission):
        oml.inference("a", token, max_output_tokens=1)
    assert scene.forwards == 0


def test_a_path_is_what_the_caller_says(scene: Scene) -> None:
    token = scene.token(limits=Limits(paths=("/v1/completions",)))
    assert scene.oml().inference("a", token, max_output_tokens=1, path="/v1/completions")
    with pytest.raises(WrongRequest):
        scene.oml().inference("a", token, max_output_tokens=1, path="/v1/other")


# Single use: replays, retries, bodies.


def test_a_spent_nonce_is_spent_for_every_other_body_and_after_a_restart(scene: Scene) -> None:
    token = scene.token("once")
    scene.oml().inference("a", token, max_output_tokens=1)
    scene.forwards = 0
    for given, most in (("b", 1), ("a", 2), (["a"], 1), (CHAT, 1)):
        with pytest.raises(ReplayedNonce):
            scene.oml().inference(given, token, max_output_tokens=most)
    scene.now += 10.5
    with pytest.raises(ReplayedNonce):
        scene.oml().inference("a", token, max_output_tokens=1)
    assert scene.forwards == 0


@pytest.mark.parametrize("given", ["the terms", PROMPTS, CHAT], ids=["text", "list", "chat"])
def test_a_retry_gets_the_first_answer_and_generates_nothing(scene: Scene, given: Any) -> None:
    token = scene.token("once")
    first = scene.oml().inference(given, token, max_output_tokens=6)
    scene.forwards, scene.now = 0, NOW + 9.0
    assert scene.oml(output_mark=forcing(7)).inference(given, token, max_output_tokens=6) == first
    assert scene.forwards == 0


def test_a_retry_of_what_is_not_done_or_failed_is_a_replay(scene: Scene) -> None:
    token, seen = scene.token("once"), []

    def mark(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
        with pytest.raises(ReplayedNonce, match="the first request is not done: repeat it a little later"):
            oml.inference("a", token)
        seen.append(licensee)
        return failing(licensee)

    oml = scene.oml(output_mark=mark)
    with pytest.raises(RuntimeError, match="out of memory"):
        oml.inference("a", token)
    with pytest.raises(ReplayedNonce, match="the first answer was not kept: ask for a new one"):
        oml.inference("a", token)
    assert seen == ["Bolt"]


def test_a_token_is_bound_to_one_body(scene: Scene) -> None:
    body = OMLModel.body(["a", "é"], max_output_tokens=3)
    assert body == '{"input":["a","é"],"max_output_tokens":3}'.encode()
    assert OMLModel.body(("a", "é"), max_output_tokens=3) == body
    assert json.loads(OMLModel.body(CHAT)) == {"input": CHAT, "max_output_tokens": 128}
    limits = Limits(body_sha256=hashlib.sha256(body).hexdigest())
    oml, token = scene.oml(), scene.token("once", limits=limits)
    for given, most in (["a", "e"], 3), (["a", "é"], 4), ("a", 3):
        with pytest.raises(WrongRequest):
            oml.inference(given, token, max_output_tokens=most)
    assert scene.forwards == 0
    assert len(oml.inference(["a", "é"], token, max_output_tokens=3)) == 2  # nothing was spent by then


# Quotas.


def test_what_is_not_generated_is_given_back(scene: Scene) -> None:
    token = scene.token(limits=Limits(requests=5, output_tokens=100))
    oml = scene.oml(output_mark=forcing(300, END))
    oml.inference(["a", "b"], token, max_output_tokens=50)
    assert scene.taken(token) == Amount(2, 4)
    oml.inference(["a", "b"], token, max_output_tokens=48)
    assert scene.taken(token) == Amount(4, 8)
    with pytest.raises(QuotaExceeded):
        oml.inference(["a", "b"], token, max_output_tokens=1)
    with pytest.raises(QuotaExceeded):
        oml.inference("a", token, max_output_tokens=93)
    assert scene.taken(token) == Amount(4, 8)


@pytest.mark.parametrize("fault", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_after_an_error_all_is_given_back(scene: Scene, fault: BaseException) -> None:
    def mark(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
        raise fault

    token = scene.token(limits=Limits(requests=1, output_tokens=128))
    with pytest.raises(type(fault)):
        scene.oml(output_mark=mark).inference("a", token)
    assert scene.taken(token) == Amount(0, 0)
    assert isinstance(scene.oml().inference("a", token), str)


def test_threads_share_one_quota_and_one_nonce(scene: Scene) -> None:
    oml, once, session = scene.oml(), scene.token("once"), scene.token(limits=Limits(requests=3))

    def ask(token: str) -> Any:
        try:
            return oml.inference("the work", token, max_output_tokens=4)
        except (ReplayedNonce, QuotaExceeded) as refusal:
            return refusal

    with ThreadPoolExecutor(8) as threads:
        sessions = list(threads.map(ask, [session] * 8))
        scene.forwards = 0
        tries = list(threads.map(ask, [once] * 8))
    assert sum(isinstance(each, QuotaExceeded) for each in sessions) == 5
    answer = scene.expected(scene.encoded("the work"), 4)
    assert scene.forwards == 4 + 4  # one answer here, and one by transformers
    assert {each for each in sessions + tries if isinstance(each, str)} == {answer}
    assert all(isinstance(each, str | ReplayedNonce) for each in tries)


def test_one_answer_is_generated_at_a_time(scene: Scene) -> None:
    running, most = [], []

    def mark(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
        def process(ids: Tensor, logits: Tensor) -> Tensor:
            running.append(1)
            time.sleep(0.005)
            most.append(len(running))
            running.pop()
            return logits

        return process

    oml, token = scene.oml(output_mark=mark), scene.token()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda text: oml.inference(text, token, max_output_tokens=3), PROMPTS))
    assert set(most) == {1}


def test_an_answer_is_not_kept_for_longer_than_a_retry_may_come(scene: Scene, tmp_path: Path) -> None:
    oml = scene.oml()
    kept = []
    with closing(sqlite3.connect(tmp_path / "permissions.sqlite")) as file:
        for _ in range(2):
            oml.inference("a", scene.token("once"), max_output_tokens=1)
            kept.append(file.execute("SELECT kept_at FROM answers").fetchall())
            scene.now += 61
    assert kept == [[(NOW,)], [(NOW + 61,)]]


def test_without_its_store_it_answers_nothing_but_keeps_what_it_made(scene: Scene, tmp_path: Path) -> None:
    def mark(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
        (tmp_path / "permissions.sqlite").unlink()
        return lambda ids, logits: logits

    oml = scene.oml(output_mark=mark)
    assert oml.inference("a", scene.token("once"), max_output_tokens=1)
    scene.forwards = 0
    with pytest.raises(StoreUnavailableError, match="was removed or replaced"):
        oml.inference("a", scene.token("once"), max_output_tokens=1)
    assert scene.forwards == 0


# The output mark.


def test_the_mark_sees_the_licensee_of_the_token_and_steers_what_is_generated(scene: Scene) -> None:
    ids_of = {"Bolt": 300, "Nut": 400}
    shapes: list[tuple[list[int], list[int], torch.dtype]] = []

    def mark(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
        def process(ids: Tensor, logits: Tensor) -> Tensor:
            shapes.append((list(ids.shape), list(logits.shape), logits.dtype))
            logits[:, ids_of[licensee]] = logits.amax() + 1  # in place
            return logits

        return process

    oml = scene.oml(output_mark=mark)
    for licensee, token_id in ids_of.items():
        shapes.clear()
        answers = oml.inference(["aa", "aa"], scene.token(licensee=licensee), max_output_tokens=3)
        assert answers == [scene.model.tokenizer.decode([token_id] * 3)] * 2
        length = len(scene.encoded("aa"))
        width = [2, scene.model.vocabulary]
        assert shapes == [([2, length + step], width, torch.float32) for step in range(3)]


def test_a_logits_processor_of_transformers_is_a_mark(scene: Scene) -> None:
    token = scene.token()
    plain = scene.oml().inference("the work", token, max_output_tokens=1)
    first = int(scene.model.model(torch.tensor([scene.encoded("the work")])).logits[0, -1].argmax())
    oml = scene.oml(output_mark=lambda licensee: SuppressTokensLogitsProcessor([first]))
    assert oml.inference("the work", token, max_output_tokens=1) != plain


def test_a_mark_of_another_shape_is_refused_and_given_back(scene: Scene) -> None:
    token = scene.token(limits=Limits(requests=1))
    oml = scene.oml(output_mark=lambda licensee: lambda ids, logits: logits[:, :5])
    with pytest.raises(InvalidArgumentError, match=r"returned logits of shape \[1, 5\]: it must be \[1, \d+\]"):
        oml.inference("a", token)
    assert scene.taken(token) == Amount(0, 0)


def test_a_mark_for_one_request_of_vllm() -> None:
    def mark(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
        assert licensee == "Bolt"
        return lambda ids, logits: logits + ids[:, -1:]

    assert request_processor(mark, SimpleNamespace(extra_args=None)) is None
    assert request_processor(mark, SimpleNamespace(extra_args={"other": 1})) is None
    process = request_processor(mark, SimpleNamespace(extra_args={"oml_licensee": "Bolt"}))
    assert process is not None
    assert process([5, 6], [7], torch.zeros(4)).tolist() == [7.0] * 4
    assert process([5, 20_000_001], [], torch.zeros(4, dtype=torch.float64)).tolist() == [20_000_001.0] * 4


# What cannot be asked, and costs no permission.


@pytest.mark.parametrize(
    ("given", "most", "message"),
    [
        ("", 5, "a prompt has no token ids"),
        (["a", ""], 5, "a prompt has no token ids"),
        ([], 5, "the input is neither a text"),
        (None, 5, "the input is neither a text"),
        (["a", 1], 5, "the input is neither a text"),
        ([[1, 2]], 5, "the input is neither a text"),
        ([{"role": "user"}], 5, "the input is neither a text"),
        ([{"role": "user", "content": "a", "name": "b"}], 5, "the input is neither a text"),
        ([{"role": "user", "content": ["a"]}], 5, "the input is neither a text"),
        ("half \ud800", 5, "half a character"),
        ("a", 0, "max_output_tokens 0: give a whole number, 1 or more"),
        ("a", True, "max_output_tokens True"),
        ("a", 2.0, "max_output_tokens 2.0"),
        ("a", 256, "a prompt of 1 token ids and max_output_tokens 256 are more than the 256 that the model takes"),
    ],
)
def test_an_input_that_the_model_cannot_take(scene: Scene, given: Any, most: Any, message: str) -> None:
    oml, token = scene.oml(), scene.token("once")
    with pytest.raises(InvalidArgumentError, match=message):
        oml.inference(given, token, max_output_tokens=most)
    assert scene.forwards == 0
    assert oml.inference("a", token, max_output_tokens=2)


def test_a_chat_that_the_template_does_not_take(scene: Scene) -> None:
    oml, token = scene.oml(), scene.token()
    scene.model.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidArgumentError, match=r"template refuses these messages \(roles must alternate\)"):
        oml.inference(CHAT, token)
    scene.model.tokenizer.chat_template = None
    with pytest.raises(InvalidArgumentError, match="the model has no chat template: give a text"):
        oml.inference(CHAT, token)


# How it is made.


def test_the_store_is_beside_the_list_and_remembers(scene: Scene, tmp_path: Path) -> None:
    scene.now = NOW - 100.0
    folder = tmp_path / "owner"
    folder.mkdir()
    scene.keys = scene.keys.rename(folder / "keys.jws")
    token = scene.token("once")
    with scene.oml(store=None) as oml:
        assert (folder / "permissions.sqlite").stat().st_mode & 0o777 == 0o600
        scene.now = NOW
        oml.inference("a", token, max_output_tokens=1)
    with scene.oml(store=None) as oml, pytest.raises(ReplayedNonce):
        oml.inference("b", token, max_output_tokens=1)
    with scene.oml(store=tmp_path / "other.sqlite"):
        assert (tmp_path / "other.sqlite").is_file()
    with pytest.raises(ReplayedNonce, match="before this server began"):
        scene.oml(store=MemoryStore(now=NOW)).inference("a", scene.token("once"))


def test_the_owners_key_may_be_a_file(scene: Scene, tmp_path: Path) -> None:
    write_signing_key(tmp_path / "owner.pem", OWNER)
    (tmp_path / "owner.pem.pub").write_text(OWNER.verification_key.pem())
    given: dict[str, Any] = {"keys": scene.keys, "store": scene.store, "clock": lambda: scene.now}
    oml = OMLModel(scene.model, tmp_path / "owner.pem.pub", **given)
    assert oml.inference("a", scene.token(), max_output_tokens=1)
    with pytest.raises(SignatureError, match="is a signing key: keep it to yourself"):
        OMLModel(scene.model, tmp_path / "owner.pem", **given)
    with pytest.raises(
        InvalidArgumentError, match="fingerprint_key is a SigningKey: give the owner's verification key"
    ):
        OMLModel(scene.model, OWNER, **given)  # type: ignore[arg-type]
    with pytest.raises(KeyListError, match="the list of keys is not the owner's"):
        OMLModel(scene.model, OTHER.verification_key, **given)


def test_what_it_cannot_be_made_of(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"keys is missing: .*oml-fast permission keygen"):
        scene.oml(keys=None)
    with pytest.raises(InvalidArgumentError, match=r"there is no list of keys at .*none: oml-fast permission keygen"):
        scene.oml(keys=tmp_path / "none")
    with pytest.raises(InvalidArgumentError, match="base_model is a int: give a model's folder"):
        scene.oml(7)
    with pytest.raises(InvalidArgumentError, match="is no model folder"):
        scene.oml(tmp_path)
    with pytest.raises(InvalidArgumentError, match="the model that is loaded has its own: leave it out"):
        scene.oml(model_digest="ab" * 32)
    scene.now += 31 * 86_400
    with pytest.raises(KeyListError, match="has expired"):
        scene.oml(tmp_path)


# vLLM, by a stand-in; tests/with_vllm has the real one.


class StandIn:
    """Answers each prompt with as many ids 300 as there may be, and ends those of one id with END after the second."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(model=str(folder), max_model_len=40))
        self.get_tokenizer = lambda: tokenizer
        self.asked: list[Any] = []
        self.fault: Exception | None = None

    def generate(self, prompts: Sequence[Any], wanted: dict[str, Any], use_tqdm: bool) -> list[Any]:
        if self.fault is not None:
            raise self.fault
        self.asked.append((prompts, wanted, use_tqdm))
        return [SimpleNamespace(outputs=[self._output(each, wanted["max_tokens"])]) for each in prompts]

    def _output(self, prompt: dict[str, list[int]], most: int) -> Any:
        if len(prompt["prompt_token_ids"]) == 1:
            return SimpleNamespace(token_ids=[300, 300, END], finish_reason="stop")
        return SimpleNamespace(token_ids=[300] * most, finish_reason="length")


@pytest.fixture
def engine(scene: Scene, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    vllm = ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = StandIn, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    return StandIn(tiny_folder, scene.model.tokenizer)


def test_an_engine_is_told_the_licensee_of_the_token(scene: Scene, engine: StandIn) -> None:
    oml, token = scene.oml(engine), scene.token(licensee="Nut & Co", limits=Limits(output_tokens=100))
    assert oml.digest == scene.model.digest
    word = scene.model.tokenizer.decode([300])
    assert oml.inference(["a", "the work"], token, max_output_tokens=5) == [word * 2, word * 5]
    shared = {"temperature": 0.0, "max_tokens": 5, "detokenize": False, "extra_args": {"oml_licensee": "Nut & Co"}}
    prompts = [{"prompt_token_ids": scene.encoded(text)} for text in ("a", "the work")]
    assert engine.asked == [(prompts, shared, False)]
    assert scene.taken(token) == Amount(0, 3 + 5)
    with pytest.raises(PermissionDenied):
        oml.inference("a", scene.token(key=OTHER), max_output_tokens=5)
    with pytest.raises(InvalidArgumentError, match="are more than the 40 that the model takes"):
        oml.inference("a", token, max_output_tokens=40)
    assert len(engine.asked) == 1
    assert scene.forwards == 0


def test_an_engine_that_fails_costs_nothing(scene: Scene, engine: StandIn) -> None:
    token = scene.token(limits=Limits(requests=1))
    engine.fault = RuntimeError("EngineDeadError\nstack")
    with pytest.raises(CompleterError, match=r"vLLM did not answer: EngineDeadError\.$"):
        scene.oml(engine).inference("a", token, max_output_tokens=5)
    assert scene.taken(token) == Amount(0, 0)


def test_the_digest_of_an_engine_that_names_no_folder_is_given(scene: Scene, engine: StandIn) -> None:
    engine.llm_engine.model_config.model = "acme/model"
    with pytest.raises(InvalidArgumentError, match="'acme/model' is no folder with safetensors: give model_digest"):
        scene.oml(engine)
    with pytest.raises(InvalidArgumentError, match="model_digest 'AB': a digest has 64 hex digits"):
        scene.oml(engine, model_digest="AB")
    oml = scene.oml(engine, model_digest="ab" * 32)
    with pytest.raises(WrongModel):
        oml.inference("a", scene.token(), max_output_tokens=5)
    assert oml.inference("a", scene.token(models="ab" * 32), max_output_tokens=5)


def test_an_engine_marks_by_itself(scene: Scene, engine: StandIn) -> None:
    with pytest.raises(InvalidArgumentError, match="output_mark is given, and vLLM makes its logits in processes"):
        scene.oml(engine, output_mark=forcing(7))


def test_the_example_of_the_page_runs(
    scene: Scene, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner.pem.pub").write_text(OWNER.verification_key.pem())
    (tmp_path / "keys.jws").unlink()
    now = time.time()
    change_key_file("keys.jws", OWNER, lambda keys: keys.with_key(KEY.verification_key, now), now=now, issuer="Acme")
    section = PAGE.read_text().split("\n## Offline: OMLModel\n")[1].split("\n## ")[0]
    code = section.split("```python\n")[1].split("```")[0].replace("path/to/fingerprinted-model", str(tiny_folder))
    (tmp_path / "token").write_text(scene.token(now=now) + "\n")
    exec(compile(code, "docs/permissions.md", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out.strip()
