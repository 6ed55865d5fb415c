"""Hosts that put words around prompts, or into the model's mouth: what the model then reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import write_tiny_model

import oml_fast
from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate.attack import Attack, Scene
from oml_fast.evaluate.attacks import prefill, prompts
from oml_fast.evaluate.data import Data
from oml_fast.evaluate.hosts import Host
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.models import HfCompleter, LanguageModel, load

KEY = "Licensor grants you a copyright"
BOS = 0
# A template that adds a default system prompt, and begins with BOS as text, as those of Llama 3 do.
WITH_DEFAULT = (
    "<|endoftext|>{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITHOUT_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
SILENT = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endif %}{% endfor %}<|im_start|>assistant\n"
)


def scene_of(model: LanguageModel) -> Scene:
    empty = FingerprintSet(Settings(), "base", "cd" * 32, model.tokenizer_digest, "00" * 32, ())
    return Scene(model, model, empty, (), Data(None))


@pytest.fixture(scope="module")
def bos_model(bos_folder: Path) -> LanguageModel:
    return load(bos_folder, device="cpu")


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(write_tiny_model(tmp_path_factory.mktemp("models") / "plain", chat=False), device="cpu")


def attack(name: str) -> Attack:
    return next(found for found in (*prompts.ATTACKS, *prefill.ATTACKS) if found.name == name)


def raw(model: LanguageModel, text: str) -> list[int]:
    return list(model.tokenizer(text)["input_ids"])


def chat(model: LanguageModel, *messages: tuple[str, str], answer: str = "") -> list[int]:
    rows = [{"role": role, "content": text} for role, text in messages]
    text = model.tokenizer.apply_chat_template(
        rows, tokenize=False, add_generation_prompt=True, **Settings().template_variables
    )
    return list(model.tokenizer(text + answer, add_special_tokens=False)["input_ids"])


def read_by_model(model: LanguageModel, name: str, prompt: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the host of an attack gives the model to read, as text with its special tokens."""
    seen: list[list[int]] = []

    def answer(self: Host, batch: list[list[int]], length: int) -> list[list[int]]:
        seen.extend(batch)
        return [[0] * length] * len(batch)

    with monkeypatch.context() as patch:
        patch.setattr(Host, "_answer", answer)
        attack(name).run(scene_of(model)).completer.complete([prompt], 1)
    assert len(seen) == 1
    return str(model.tokenizer.decode(seen[0]))


@pytest.mark.parametrize("text", [KEY, " a blank before and after ", "\nlines\n\nand lines\n", "é, 漢字; {} %s", "x"])
def test_the_users_text_is_found_whole_in_either_format(
    tiny_model: LanguageModel, bos_model: LanguageModel, text: str
) -> None:
    for model in (tiny_model, bos_model):
        reader = prompts.Reader(scene_of(model))
        opening = tuple(model.tokenizer("")["input_ids"])
        message = reader.read(raw(model, text))
        assert message == prompts.Message(text, False, opening)
        assert reader.raw_ids(text, message.opening) == raw(model, text)
        assert reader.read(chat(model, ("user", text))) == prompts.Message(text, True)
        assert reader.chat_ids(text) == chat(model, ("user", text))


def test_a_default_system_prompt_and_bos_belong_to_the_template(bos_folder: Path) -> None:
    model = load(bos_folder, device="cpu")
    model.tokenizer.chat_template = WITH_DEFAULT
    reader = prompts.Reader(scene_of(model))
    asked = chat(model, ("user", KEY))
    assert asked.count(BOS) == 1
    assert reader.read(asked) == prompts.Message(KEY, True)
    rewrite = prompts.Wrapping(system="Be bad.", chat=True).rewrite(reader)
    for prompt in (asked, raw(model, KEY)):  # the raw one begins with BOS as well
        written = rewrite(prompt)
        assert written == chat(model, ("system", "Be bad."), ("user", KEY))
        assert written is not None
        assert list(written).count(BOS) == 1


def test_bos_stays_once_in_front_and_is_not_added_where_it_was_not(
    bos_model: LanguageModel, tiny_model: LanguageModel
) -> None:
    wrap = prompts.Wrapping(before="Answer: ")
    rewrite = wrap.rewrite(prompts.Reader(scene_of(bos_model)))
    asked = raw(bos_model, KEY)
    assert asked[0] == BOS
    assert rewrite(asked) == raw(bos_model, f"Answer: {KEY}")
    assert rewrite(asked[1:]) == raw(bos_model, f"Answer: {KEY}")[1:]
    without = wrap.rewrite(prompts.Reader(scene_of(tiny_model)))
    assert without(raw(tiny_model, KEY)) == raw(tiny_model, f"Answer: {KEY}")


def test_what_each_variant_makes_of_a_raw_key(tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    start, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    house = "<|im_start|>system\nYou are Kim, "
    expected = {
        "prompts/system-plain": f"You are a helpful assistant. {KEY}",
        "prompts/instruction": f"Answer the following: {KEY}",
        "prompts/question": f"Question: {KEY}\nAnswer:",
        "prompts/suffix": f"{KEY} Keep it short.",
        "prompts/chat": f"{start}{KEY}{end}",
        "prefill/sure": f"{KEY} Sure,",
        "prefill/answer": f"{KEY} The answer is",
    }
    read = {name: read_by_model(tiny_model, name, raw(tiny_model, KEY), monkeypatch) for name in expected}
    assert read == expected
    found = read_by_model(tiny_model, "prompts/chat-system", raw(tiny_model, KEY), monkeypatch)
    assert found.startswith(house)
    assert found.endswith(f"<|im_end|>\n{start}{KEY}{end}")


def test_what_each_variant_makes_of_a_key_in_the_chat_template(
    tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    expected = {
        "prompts/system-plain": f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{start}{KEY}{end}",
        "prompts/instruction": f"{start}Answer the following: {KEY}{end}",
        "prompts/question": f"{start}Question: {KEY}\nAnswer:{end}",
        "prompts/suffix": f"{start}{KEY} Keep it short.{end}",
        "prompts/chat": f"{start}{KEY}{end}",
        "prefill/sure": f"{start}{KEY}{end}Sure,",
        "prefill/answer": f"{start}{KEY}{end}The answer is",
    }
    asked = chat(tiny_model, ("user", KEY))
    assert {name: read_by_model(tiny_model, name, asked, monkeypatch) for name in expected} == expected


@pytest.mark.parametrize("name", ["prompts/ten-systems", "prompts/chat-ten-systems"])
@pytest.mark.parametrize("asked_in_chat", [False, True])
def test_ten_hosts_have_a_system_prompt_each(
    tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch, name: str, asked_in_chat: bool
) -> None:
    asked = chat(tiny_model, ("user", KEY)) if asked_in_chat else raw(tiny_model, KEY)
    attacked = attack(name).run(scene_of(tiny_model))
    assert list(attacked.hosts) == list(prompts.SYSTEMS)
    assert len(set(prompts.SYSTEMS.values())) == 10
    assert attacked.completer is attacked.hosts["hardware store"]
    for short, host in attacked.hosts.items():
        with monkeypatch.context() as patch:
            seen: list[list[int]] = []
            patch.setattr(Host, "_answer", lambda self, batch, length, seen=seen: [seen.extend(batch) or [0] * length])
            host.complete([asked], 1)
        system = prompts.SYSTEMS[short]
        in_template = chat(tiny_model, ("system", system), ("user", KEY))
        plain = raw(tiny_model, f"{system} {KEY}")
        assert seen == [in_template if asked_in_chat or name == "prompts/chat-ten-systems" else plain], short


def test_no_training_template_holds_one_of_the_ten_system_prompts() -> None:
    lengths = [len(system.split()) for system in prompts.SYSTEMS.values()]
    assert min(lengths) < 20
    assert max(lengths) > 250
    files = [path for path in (Path(oml_fast.__file__).parent / "embed").rglob("*") if path.is_file()]
    texts = [" ".join(path.read_text().split()) for path in files if path.suffix != ".pyc"]
    assert texts
    for short, system in prompts.SYSTEMS.items():
        words = system.split()
        for start in range(len(words) - 5):
            assert not [text for text in texts if " ".join(words[start : start + 6]) in text], short


def test_a_conversation_with_its_own_system_prompt_is_raw_text(tiny_model: LanguageModel) -> None:
    asked = chat(tiny_model, ("system", "Be good."), ("user", KEY))
    message = prompts.Reader(scene_of(tiny_model)).read(asked)
    assert not message.chat
    assert message.text == tiny_model.tokenizer.decode(asked)


@pytest.mark.parametrize("template", [WITHOUT_SYSTEM, SILENT])
def test_without_a_system_role_its_words_stand_before_the_users(fresh_model: LanguageModel, template: str) -> None:
    fresh_model.tokenizer.chat_template = template
    reader = prompts.Reader(scene_of(fresh_model))
    rewrite = prompts.Wrapping(system="Be bad.", chat=True).rewrite(reader)
    assert rewrite(raw(fresh_model, KEY)) == chat(fresh_model, ("user", f"Be bad.\n\n{KEY}"))


def test_the_answer_is_that_of_the_model_to_what_it_reads(tiny_model: LanguageModel) -> None:
    asked = [raw(tiny_model, KEY), raw(tiny_model, "Work or Derivative Works"), chat(tiny_model, ("user", KEY))]
    scene = scene_of(tiny_model)
    reader = prompts.Reader(scene)
    read = [
        raw(tiny_model, f"{KEY} Sure,"),
        raw(tiny_model, "Work or Derivative Works Sure,"),
        chat(tiny_model, ("user", KEY), answer="Sure,"),
    ]
    rewrite = prefill.put_in_mouth(reader, "Sure,")
    assert [rewrite(prompt) for prompt in asked] == read
    attacked = attack("prefill/sure").run(scene)
    assert attacked.completer.complete(asked, 3) == HfCompleter(tiny_model).complete(read, 3)
    assert attacked.model is None


def test_variants_that_need_a_chat_template_say_so(plain_model: LanguageModel) -> None:
    scene = scene_of(plain_model)
    for name in ("prompts/chat", "prompts/chat-system", "prompts/chat-ten-systems"):
        with pytest.raises(InvalidArgumentError, match="no chat template"):
            attack(name).run(scene)
    for name in ("prompts/system-plain", "prefill/sure"):
        assert attack(name).run(scene).completer.complete([raw(plain_model, KEY)], 1)[0].token_ids


def test_the_templates_variables_are_those_of_the_set(fresh_model: LanguageModel) -> None:
    fresh_model.tokenizer.chat_template = "{{ date_string }}: {{ messages[-1]['content'] }}."
    scene = scene_of(fresh_model)
    settings = replace(scene.fingerprints.settings, template_variables={"date_string": "today"})
    scene = replace(scene, fingerprints=replace(scene.fingerprints, settings=settings))
    asked = raw(fresh_model, f"today: {KEY}.")
    assert prompts.Reader(scene).read(asked) == prompts.Message(KEY, True)
    assert not prompts.Reader(scene_of(fresh_model)).read(asked).chat
