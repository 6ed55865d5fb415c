"""OMLModel: what it answers for a permission, what it cannot be asked and costs none, and what it is made of."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from scenes import CHAT, END, KEY, NOW, OTHER, OWNER, PROMPTS, Scene, forcing

from oml_fast import OMLModel
from oml_fast.errors import InvalidArgumentError, KeyListError, ReplayedNonce, SignatureError
from oml_fast.models import model_digest
from oml_fast.permission import Amount, Limits, MemoryStore, change_key_file
from oml_fast.signing import write_signing_key

PAGE = Path(__file__).resolve().parents[2] / "docs/permissions.md"


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
