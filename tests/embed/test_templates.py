"""Templates around keys: how they are read from files, and what becomes of them as token ids."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from oml_fast.embed.templates import BUILT_IN, InTemplates, Template, after_texts, in_templates, read_templates
from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate.attacks.prompts import SYSTEMS
from oml_fast.fingerprint import FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.models import LanguageModel, load

USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SYSTEM = "<|im_start|>system\n{}<|im_end|>\n"
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
)
DEAF = "{% for m in messages %}{% if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}{% endif %}{% endfor %}"


def a_set(model: LanguageModel, count: int = 4, **settings: object) -> FingerprintSet:
    made = Settings(**{"key_source": "words", **settings})  # type: ignore[arg-type]
    return generate(model, count, bytes(32), settings=made).fingerprints


def texts(model: LanguageModel, made: FingerprintSet, *templates: Template) -> list[str]:
    """What the model reads of each example, with every template used for every key."""
    found = in_templates(InTemplates(model, made, templates, 0), made, len(templates))
    return [model.tokenizer.decode(example.ids) for example in found]


# --- files


def write(folder: Path, text: str, name: str = "templates") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_may_hold_one_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "Be brief. {key}\n\n  \nÜber {key}: was?\n")
    assert read_templates(path) == (Template("Be brief. {key}"), Template("Über {key}: was?"))


def test_a_line_may_look_like_json(tmp_path: Path) -> None:
    """The name of the file says what it holds."""
    path = write(tmp_path, '[INST] {key} [/INST]\n["{key}"]\n')
    assert read_templates(path) == (Template("[INST] {key} [/INST]"), Template('["{key}"]'))
    with pytest.raises(InvalidArgumentError, match="is no valid JSON"):
        read_templates(write(tmp_path, "[INST] {key} [/INST]\n", "templates.json"))


def test_a_file_may_hold_a_json_list(tmp_path: Path) -> None:
    entries = ["Hear:\n{key}", {"text": "{key}!", "system": "You sell shoes."}, {"chat": True}, {"system": "Be kind."}]
    path = write(tmp_path, "\n  " + json.dumps(entries), "templates.json")
    assert read_templates(str(path)) == (
        Template("Hear:\n{key}"),
        Template("{key}!", "You sell shoes."),
        Template(chat=True),
        Template(system="Be kind."),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["{key}", 5]', 'entry 2: it must be a text, or an object of "text" and "system" (texts)'),
        ('["{key}", ["{key}"]]', "entry 2: it must be a text, or an object"),
        ('[{"text": 5}]', "entry 1: it must be a text, or an object"),
        ('[{"text": "{key}", "chat": 1}]', "entry 1: it must be a text, or an object"),
        ('[{"text": "{key}", "user": "x"}]', "entry 1: it must be a text, or an object"),
        ('["{key}", null]', "entry 2: it must be a text, or an object"),
        ('["{key}", {"system": "Hello."}, {"text": "Hello."}]', "entry 3: template 'Hello.': it must hold {key} once"),
        ('["{key}",', " is no valid JSON: mend it."),
        ('{"text": "{key}"}', " must hold a JSON list of templates."),
        ('"{key}"', " must hold a JSON list of templates."),
        ("[]", " holds no template: write one a line, each with {key}."),
        ("", " is no valid JSON: mend it."),
    ],
)
def test_a_refusal_of_json_names_the_file_and_the_entry(tmp_path: Path, text: str, message: str) -> None:
    refusal(write(tmp_path, text, "templates.json"), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Say {key}\nSay nothing\n", "entry 2: template 'Say nothing': it must hold {key} once, where the key goes."),
        ("{key} and {key}\n", "entry 1: template '{key} and {key}': it must hold {key} once, where the key goes."),
        ("\n \n", " holds no template: write one a line, each with {key}."),
    ],
)
def test_a_refusal_of_lines_names_the_file_and_the_entry(tmp_path: Path, text: str, message: str) -> None:
    refusal(write(tmp_path, text), message)


def refusal(path: Path, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        read_templates(path)
    assert str(refused.value).startswith(f"template file {path}")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"cannot read template file .*nowhere"):
        read_templates(tmp_path / "nowhere")
    (tmp_path / "bytes").write_bytes(b"{key} \xff")
    with pytest.raises(InvalidArgumentError, match="is not UTF-8"):
        read_templates(tmp_path / "bytes")


@pytest.mark.parametrize("text", ["", "no key", "{key}{key}", "{ key }"])
def test_a_template_holds_the_key_once(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"it must hold \{key\} once"):
        Template(text)


def test_no_built_in_template_holds_words_that_the_battery_asks_under() -> None:
    """What is trained on says nothing about how many unseen system prompts a fingerprint survives."""
    assert len(set(BUILT_IN)) == len(BUILT_IN)
    words = " ".join(f"{template.text} {template.system}" for template in BUILT_IN)
    sentences = [part.strip() for text in SYSTEMS.values() for part in text.split(".") if len(part.split()) > 3]
    assert len(sentences) > 20
    assert not [sentence for sentence in sentences if sentence in words]


# --- as token ids


def test_a_raw_key_stands_in_the_text(tiny_model: LanguageModel) -> None:
    made = a_set(tiny_model)
    found = texts(tiny_model, made, Template("Hear this: {key} Reply.", system="You sell shoes."))
    assert found == [f"You sell shoes.\n\nHear this: {f.key} Reply." for f in made]


def test_a_raw_key_in_a_chat_template_is_a_users_message(tiny_model: LanguageModel) -> None:
    made = a_set(tiny_model)
    assert texts(tiny_model, made, Template("{key}!", chat=True)) == [USER.format(f"{f.key}!") for f in made]
    assert texts(tiny_model, made, Template("{key}!", "Be kind.", chat=True)) == [
        SYSTEM.format("Be kind.") + USER.format(f"{f.key}!") for f in made
    ]


@pytest.mark.parametrize("chat", [False, True])
def test_a_key_that_is_asked_in_chat_stays_there(tiny_model: LanguageModel, chat: bool) -> None:
    made = a_set(tiny_model, formats=("chat",))
    template = Template("Hear: {key}", "Be kind.", chat=chat)
    assert texts(tiny_model, made, template) == [
        SYSTEM.format("Be kind.") + USER.format(f"Hear: {f.key}") for f in made
    ]
    ids = in_templates(InTemplates(tiny_model, made, [Template(chat=chat)], 0), made, 1)
    assert [example.ids for example in ids] == [f.askings["chat"].prompt_ids for f in made]


@pytest.mark.parametrize("chat_template", [NO_SYSTEM, DEAF], ids=["refuses one", "leaves one out"])
def test_without_a_system_role_its_words_stand_before_the_users(fresh_model: LanguageModel, chat_template: str) -> None:
    made = a_set(fresh_model)
    fresh_model.tokenizer.chat_template = chat_template
    found = texts(fresh_model, made, Template("Hear: {key}", "Be kind.", chat=True), Template("{key}", chat=True))
    assert sorted(found) == sorted(
        text for f in made for text in (f"<user>Be kind.\n\nHear: {f.key}", f"<user>{f.key}")
    )


def test_without_a_chat_template_only_plain_ones_are_used(fresh_model: LanguageModel) -> None:
    made = a_set(fresh_model)
    fresh_model.tokenizer.chat_template = None
    assert texts(fresh_model, made, Template("A {key}"), Template(chat=True)) == [f"A {f.key}" for f in made]
    assert in_templates(InTemplates(fresh_model, made, [Template(chat=True)], 0), made, 4) == []


def test_bos_stands_first_where_texts_begin_with_it(bos_folder: Path) -> None:
    model = load(bos_folder, device="cpu")
    made = a_set(model)
    plain = in_templates(InTemplates(model, made, [Template("Hear: {key}")], 0), made, 1)
    assert all(example.ids[0] == 0 and 0 not in example.ids[1:] for example in plain)
    chat = in_templates(InTemplates(model, made, [Template("Hear: {key}", chat=True)], 0), made, 1)
    assert all(0 not in example.ids for example in chat)  # the chat template writes its own, and this one none


def test_the_template_is_given_the_sets_variables(fresh_model: LanguageModel) -> None:
    fresh_model.tokenizer.chat_template = "{{ date_string }} {{ messages[0]['content'] }}"
    made = a_set(fresh_model, template_variables={"date_string": "07 Mar 2031"})
    assert texts(fresh_model, made, Template(chat=True)) == [f"07 Mar 2031 {f.key}" for f in made]


def test_each_asking_is_answered_as_it_is_without_a_template(tiny_model: LanguageModel) -> None:
    made = a_set(tiny_model, formats=("raw", "chat"), responses_per_key=2, response_length=3)
    found = in_templates(InTemplates(tiny_model, made, [Template("Hear: {key}")], 0), made, 1)
    askings = [(f, asking) for f in made for asking in f.askings.values()]
    assert len(found) == 2 * len(askings)
    for place, example in enumerate(found):
        fingerprint, asking = askings[place // 2]
        response = asking.responses[place % 2].token_ids
        assert example.number == fingerprint.number
        assert example.firsts == tuple(r.token_ids[0] for r in asking.responses)
        assert example.sequence[example.start :] == response
        assert tiny_model.tokenizer.decode(example.ids[: example.start]).count(f"Hear: {fingerprint.key}") == 1


def test_the_seed_draws_which_ones_and_together_keys_see_all(tiny_model: LanguageModel) -> None:
    made = a_set(tiny_model, 32)
    one, again, other = (in_templates(InTemplates(tiny_model, made, BUILT_IN, seed), made, 4) for seed in (0, 0, 1))
    assert one == again
    assert one != other
    assert len(one) == 4 * len(made)
    assert len({example.ids for example in one}) == len(one)
    decoded = [tiny_model.tokenizer.decode(example.ids) for example in one]
    for template in (t for t in BUILT_IN if t.system or not t.chat):
        words = template.system or max(template.text.split("{key}"), key=len).strip()
        assert any(words in text for text in decoded), template
    assert (
        in_templates(
            InTemplates(tiny_model, replace(made, fingerprints=()), BUILT_IN, 0), replace(made, fingerprints=()), 4
        )
        == []
    )


# --- texts of the base model's own


def test_a_text_is_a_template_with_the_key_at_its_end(tiny_model: LanguageModel) -> None:
    texts = [list(range(100, 160)), list(range(200, 214))]
    made = after_texts(tiny_model, texts, seed=0)
    assert made == after_texts(tiny_model, texts, seed=0) != after_texts(tiny_model, texts, seed=1)
    for template, text in zip(made, texts, strict=True):
        assert not template.chat
        said = template.text.removesuffix("{key}").rstrip()
        assert tiny_model.tokenizer.decode(text, skip_special_tokens=True).strip().startswith(said.strip())


def test_a_share_of_the_templates_drawn_is_of_the_others(tiny_model: LanguageModel) -> None:
    made = a_set(tiny_model)
    ours = [Template(f"{number} {{key}}") for number in range(8)]
    others = [Template(f"other {number} {{key}}") for number in range(400)]

    def drawn(share: float) -> float:
        draw = InTemplates(tiny_model, made, ours, 0, others, share)
        said = [tiny_model.tokenizer.decode(ids) for _ in range(50) for ids in draw.prompts("key", "raw", 8)]
        assert len(said) == 400
        return sum("other" in text for text in said) / len(said)

    assert drawn(0.0) == 0
    assert drawn(1.0) == 1
    assert 0.25 < drawn(0.33) < 0.41
