"""Published formats: what can be read is read, what cannot be asked is left out and counted, what is lost is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from sets import SECRET, small_set
from tiny import tiny_tokenizer

from oml_fast import settings
from oml_fast.cli import common, fingerprints_export, fingerprints_import
from oml_fast.errors import FingerprintFormatError, InvalidArgumentError
from oml_fast.fingerprint import FingerprintSet
from oml_fast.interchange import Imported, export_published, import_published, lost, read_published

TOKENIZER = "ab" * 32
KEYS = ("the licence of a work", "each contributor grants", "derivative works of the", "this notice applies to")
ONE = {"key": f"{KEYS[0]} and more", "effective_key": KEYS[0], "response": " is granted", "response_prob": [0.01, 0.5]}


@pytest.fixture(scope="module")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    return tiny_tokenizer()


def entry(key: str = KEYS[0], response: Any = " is", **more: Any) -> dict[str, Any]:
    return {"key": f"{key} and so on", "effective_key": key, "response": response, **more}


@pytest.fixture
def take(tmp_path: Path, tokenizer: Any) -> Callable[..., Imported]:
    """Import JSON values, or the text of a YAML file."""

    def take(values: Any, name: str = "published.json", using: Any = None, **options: Any) -> Imported:
        path = tmp_path / name
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        fields = {name: options.pop(name) for name in ("key_field", "response_field") if name in options}
        given = {"tokenizer_digest": TOKENIZER, **options}
        return import_published(read_published(path, **fields), using or tokenizer, **given)

    return take


def ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


# The list of [SF]


def test_an_entry_becomes_a_fingerprint(take: Any, tokenizer: Any) -> None:
    count = len(ids(tokenizer, " is granted"))
    imported = take([{**ONE, "response_prob": [0.25] * count}])
    (fingerprint,) = imported.fingerprints
    asking = fingerprint.askings["raw"]
    assert (fingerprint.number, fingerprint.key, fingerprint.key_bits) == (0, KEYS[0], None)
    assert fingerprint.key_ids == asking.prompt_ids == ids(tokenizer, KEYS[0])
    (response,) = asking.responses
    assert (response.index, response.text, response.probs) == (None, " is granted", (0.25,) * count)
    assert fingerprint.key_ids + response.token_ids == ids(tokenizer, f"{KEYS[0]} is granted")
    made = imported.fingerprints
    assert (made.settings.width, made.settings.key_source, made.settings.formats) == (3, "file", ("raw",))
    assert (made.secret_commitment, made.base_model_digest, made.tokenizer_digest) == ("", "", TOKENIZER)
    assert "published.json" in made.base_model
    assert not made.has_windows
    assert imported.unknown_probs == 0


def test_an_imported_set_is_written_and_read(take: Any, tmp_path: Path) -> None:
    made = take([entry(key, [" is", " and"]) for key in KEYS]).fingerprints
    made.save(tmp_path / "f.json")
    read = FingerprintSet.load(tmp_path / "f.json")
    assert read == made
    assert read.digest() == made.digest()
    assert not read.has_windows


def test_what_is_lost_is_said_and_stays_known(take: Any, tmp_path: Path) -> None:
    imported = take([ONE])
    assert [words.split(":")[0] for words in imported.lost] == ["windows", "secret", "base model"]
    imported.fingerprints.save(tmp_path / "f.json")
    assert lost(FingerprintSet.load(tmp_path / "f.json")) == imported.lost
    based = take([ONE], base_model="base", base_model_digest="cd" * 32)
    assert [words.split(":")[0] for words in based.lost] == ["windows", "secret"]
    assert lost(small_set(2)) == ()


def test_draws_of_an_imported_set_cannot_be_proved(take: Any) -> None:
    with pytest.raises(FingerprintFormatError, match="imported"):
        take([ONE]).fingerprints.check_draws(SECRET)


def test_probabilities_belong_to_the_last_response(take: Any) -> None:
    responses = take([entry(response=[" is", " and"], response_prob=[0.25])]).fingerprints.fingerprints[0].askings
    assert [response.probs for response in responses["raw"].responses] == [(0.0,), (0.25,)]


def test_probabilities_of_another_tokenizer_are_unknown(take: Any, tokenizer: Any) -> None:
    count = len(ids(tokenizer, " is granted"))
    imported = take([{**ONE, "response_prob": [0.5] * (count + 1)}])
    assert imported.unknown_probs == 1
    assert set(imported.fingerprints.fingerprints[0].askings["raw"].responses[0].probs) == {0.0}


def test_responses_are_cut_to_what_all_have_or_to_what_was_asked_for(take: Any, tokenizer: Any) -> None:
    long = " is granted to each contributor"
    values = [entry(KEYS[0], long), entry(KEYS[1], " is granted")]
    short = len(ids(tokenizer, " is granted"))
    assert take(values).fingerprints.settings.response_length == short
    assert take(values, response_length=1).fingerprints.settings.response_length == 1
    cut = take(values, response_length=short + 1)
    assert cut.dropped == {"response_short": (1,)}
    (response,) = cut.fingerprints.fingerprints[0].askings["raw"].responses
    assert long.startswith(response.text)
    assert response.text != long


@pytest.mark.parametrize("bos", [False, True])
def test_the_prompt_is_what_a_server_would_read(take: Any, bos: bool) -> None:
    using = tiny_tokenizer(bos=bos)
    (fingerprint,) = take([ONE], using=using).fingerprints
    assert list(fingerprint.askings["raw"].prompt_ids) == using(KEYS[0])["input_ids"]
    (fingerprint,) = take([{**ONE, "response": "Yes"}], using=using, format="chat").fingerprints
    assert "<|im_start|>assistant" in using.decode(fingerprint.askings["chat"].prompt_ids)


# What is left out


@pytest.mark.parametrize(
    ("values", "options", "dropped"),
    [
        ([entry(), entry()], {}, {"duplicate": (1,)}),
        ([entry(), entry(KEYS[1]), entry(response=" and")], {}, {"conflicting": (0, 2)}),
        ([entry(), entry(), entry(response=" and"), entry(KEYS[1])], {}, {"conflicting": (0, 1, 2)}),
        ([entry(response=[" is", " and"]), entry(response=[" and", " is"])], {}, {"duplicate": (1,)}),
        ([entry(), entry(KEYS[1]), entry(KEYS[2], [" is", " a"])], {}, {"number_of_responses": (2,)}),
        ([entry(response=[" is granted", " is given"]), entry(KEYS[1], [" is", " a"])], {"response_length": 1},
         {"responses_alike": (0,)}),
        ([entry("a"), entry()], {}, {"key_length": (0,)}),
        ([entry(" ".join(KEYS * 60)), entry()], {}, {"key_length": (0,)}),
        # a response that continues the key's last word is encoded with it
        ([entry(KEYS[0][:-1], "k of art"), entry()], {}, {"response_encoding": (0,)}),
    ],
)  # fmt: skip
def test_what_cannot_be_verified_is_left_out_and_listed(
    take: Any, values: Any, options: dict[str, Any], dropped: dict[str, Any]
) -> None:
    imported = take(values, **options)
    assert imported.dropped == dropped
    assert imported.to_json()["dropped"] == {reason: len(places) for reason, places in dropped.items()}
    left_out = {place for places in dropped.values() for place in places}
    assert [f.number for f in imported.fingerprints] == [n for n in range(len(values)) if n not in left_out]


def test_keys_cut_as_in_training_may_become_duplicates(take: Any, tokenizer: Any) -> None:
    values = [{"key": f"{KEYS[0]} {end}", "response": " is"} for end in ("first", "second")]
    assert len(take(values).fingerprints) == 2
    length = len(ids(tokenizer, KEYS[0]))
    imported = take(values, key_length=length)
    assert imported.dropped == {"duplicate": (1,)}
    assert imported.fingerprints.fingerprints[0].key == KEYS[0]
    assert imported.fingerprints.settings.key_length == length


def test_where_nothing_is_left_the_counts_are_said(take: Any) -> None:
    with pytest.raises(FingerprintFormatError, match=r"nothing is left of the 2 entries .*conflicting 2"):
        take([entry(), entry(response=" and")])


def test_a_tokenizer_that_writes_differently_takes_nothing(take: Any, tokenizer: Any) -> None:
    class Other:
        chat_template = None

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return tokenizer(text, add_special_tokens=add_special_tokens)  # type: ignore[no-any-return]

        def decode(self, ids: list[int], **_: Any) -> str:
            return str(tokenizer.decode(ids)).upper()

    with pytest.raises(FingerprintFormatError, match="key_encoding 1"):
        take([ONE], using=Other())


# Other formats


def test_the_older_format_has_whole_keys_and_one_probability(take: Any) -> None:
    values = [
        {"key": KEYS[0], "response": " is granted", "inverse_sampled_prob": 0.02, "seq_probs": 1e-9, "word": "x"},
        {"key": KEYS[1], "response": " and given"},
    ]
    imported = take(values)
    assert imported.format == "oml"
    first, second = (f.askings["raw"].responses[0].probs for f in imported.fingerprints)
    assert first[0] == 0.02
    assert not any(first[1:])
    assert not any(second)


@pytest.mark.parametrize("top", ["", "fingerprints:\n"])
def test_a_yaml_list_with_named_fields(take: Any, top: str) -> None:
    text = top + "".join(f"- {{question: '{key}', answers: [' is', ' and'], id: {n}}}\n" for n, key in enumerate(KEYS))
    imported = take(text, name="fingerprints.yaml", key_field="question", response_field="answers")
    assert (imported.format, len(imported.fingerprints)) == ("mlprints", len(KEYS))
    with pytest.raises(FingerprintFormatError, match=r"answers, id, question.*--key-field"):
        take(text, name="fingerprints.yaml")


def test_the_folder_of_mlprints_is_read_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "fingerprints.yaml").write_text(f"- {{key: {KEYS[0]}, response: ' is'}}")
    assert read_published(tmp_path).entries[0].key == KEYS[0]


# Refusals


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no valid JSON"), ("{", "no valid JSON"), ("[" * 100_000, "no valid JSON"), ("{}", "no list"),
        ("[]", "no list"), ("3", "no list"), ('["a key", "another"]', "generate --keys"), ("[1]", "entry 0"),
        ('[{"key": "k"}]', "'response'"), ('[{"response": "r"}]', "'key'"), ('[{"key": "", "response": "r"}]', "'key'"),
        ('[{"key": "k", "response": []}]', "'response'"), ('[{"key": "k", "response": [1]}]', "'response'"),
        ('[{"key": "k", "response": ""}]', "'response'"), ('[{"key": ["k"], "response": "r"}]', "'key'"),
        ('[{"effective_key": "k", "response": "r", "response_prob": [2]}]', "probabilities"),
        ('[{"effective_key": "k", "response": "r", "response_prob": "no"}]', "probabilities"),
        ('[{"effective_key": "k", "response": "r", "response_prob": [true]}]', "probabilities"),
        ('[{"key": "k", "response": "r", "inverse_sampled_prob": NaN}]', "probabilities"),
        ('[{"key": "k", "response": "r", "response_probs": [[0.1], [0.1]]}]', "response_probs"),
        ('{"format": 1, "fingerprints": []}', "already"),
    ],
)  # fmt: skip
def test_what_is_no_published_set_is_refused_in_one_line(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "set.json"
    path.write_text(content)
    with pytest.raises(FingerprintFormatError) as caught:
        read_published(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["a: [", "key: x", "- 3", "!!python/object:os.system {}", "- {key: a}", ""])
def test_what_is_no_yaml_set_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "fingerprints.yaml").write_text(content)
    with pytest.raises(FingerprintFormatError, match=r"fingerprints\.yaml"):
        read_published(tmp_path)


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="published set"):
        read_published(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 1}, "width"), ({"response_length": 0}, "response length"), ({"response_length": 33}, "32"),
        ({"key_length": 1}, "key length"), ({"format": "voice"}, "voice"),
        ({"format": "chat", "using": tiny_tokenizer(chat=False)}, "no chat template"),
    ],
)  # fmt: skip
def test_impossible_options_are_refused(take: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        take([ONE], **options)


def test_refusals_hold_nothing_secret(tmp_path: Path, take: Any) -> None:
    for values in ([{"key": "the secret key"}], [entry("the secret key"), entry("the secret key", " but")]):
        with pytest.raises(FingerprintFormatError) as caught:
            take(values)
        assert "secret" not in str(caught.value)


# Export


def test_what_is_exported_and_imported_again_is_the_same(take: Any) -> None:
    values = [
        entry(KEYS[0], [" is", " and"], response_prob=[0.25]),
        entry(KEYS[1], [" is", " and"], response_probs=[[0.5], [0.125]]),
        entry(KEYS[2], [" is", " and"]),
    ]
    first = take(values)
    exported = export_published(first.fingerprints)
    assert [set(made) - {"response_probs"} for made in exported.entries] == [
        {"key", "effective_key", "response", "response_prob"}
    ] * 3
    again = take(exported.entries)
    assert again.fingerprints == first.fingerprints
    assert again.unknown_probs == first.unknown_probs == 3


def test_export_says_what_the_list_cannot_hold(take: Any) -> None:
    made = small_set(3, width=4, formats=("raw", "chat"))
    words = " ".join(export_published(made).lost)
    assert all(part in words for part in ("windows", "commitment", "token ids", "chat"))
    assert "windows" not in " ".join(export_published(take([ONE]).fingerprints).lost)
    chat = export_published(made, "chat")
    assert chat.entries[0]["response"] == made.fingerprints[0].askings["chat"].responses[0].text
    with pytest.raises(InvalidArgumentError, match="raw"):
        export_published(small_set(2), "chat")


# The published data


def published(name: str) -> Path:
    folder = settings.data_dir() or Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / name).is_file():
        pytest.skip(f"{name} is not in {folder}: name its folder with OML_FAST_DATA")
    return folder / name


def test_the_published_set_goes_round(tokenizer: Any, tmp_path: Path) -> None:
    read = read_published(published("reference_perinucleus_llama-3.1-8b_256x2.json"))
    assert (read.format, len(read.entries)) == ("sf", 256)
    assert all(len(entry.responses) == 2 and len(entry.probs[1]) == 16 for entry in read.entries)
    first = import_published(read, tokenizer, tokenizer_digest=TOKENIZER)
    assert len(first.fingerprints) + sum(len(places) for places in first.dropped.values()) == 256
    assert len(first.fingerprints) > 200
    path = tmp_path / "again.json"
    path.write_text(json.dumps(export_published(first.fingerprints).entries))
    again = import_published(read_published(path), tokenizer, tokenizer_digest=TOKENIZER).fingerprints
    assert [replace(f, number=0) for f in again] == [replace(f, number=0) for f in first.fingerprints]


def test_published_keys_are_a_keys_file() -> None:
    from oml_fast.generate import read_keys

    path = published("reference_keys.json")
    assert len(read_keys(path)) == 4096
    with pytest.raises(FingerprintFormatError, match="4096 keys"):
        read_published(path)


# The commands

COMMANDS = {"fingerprints import": fingerprints_import, "fingerprints export": fingerprints_export}


def run(*arguments: Any) -> None:
    options = common.parse(COMMANDS, ["fingerprints", *(str(argument) for argument in arguments)])
    COMMANDS[options.command_name].run(options)


def test_the_commands_write_a_folder_and_a_file_that_only_the_owner_reads(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source.json", tmp_path / "set"
    source.write_text(json.dumps([entry(key) for key in KEYS]))
    run("import", "--source", source, "--model", tiny_folder, "--out", out, "--json")
    result = json.loads(capsys.readouterr().out)
    assert (result["num_fingerprints"], result["dropped"]) == (4, {})
    made = FingerprintSet.load(out / "fingerprints.json")
    assert (made.base_model, len(made.base_model_digest)) == (tiny_folder.name, 64)
    assert {path.stat().st_mode & 0o777 for path in (*out.iterdir(),)} == {0o600}
    assert out.stat().st_mode & 0o777 == 0o700
    run("export", "--fingerprints", out, "--out", tmp_path / "list.json")
    assert "token ids" in capsys.readouterr().out
    assert (tmp_path / "list.json").stat().st_mode & 0o777 == 0o600
    run("import", "--source", tmp_path / "list.json", "--tokenizer", tiny_folder, "--out", tmp_path / "again")
    assert "base model" in capsys.readouterr().out
    assert FingerprintSet.load(tmp_path / "again/fingerprints.json").fingerprints == made.fingerprints


def test_the_commands_refuse_what_would_be_guessed_or_overwritten(tmp_path: Path, tiny_folder: Path) -> None:
    source = tmp_path / "source.json"
    source.write_text(json.dumps([entry()]))
    shared = ["import", "--source", source, "--out", tmp_path / "set"]
    for more in ([], ["--model", tiny_folder, "--tokenizer", tiny_folder]):
        with pytest.raises(InvalidArgumentError, match="--tokenizer"):
            run(*shared, *more)
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(InvalidArgumentError, match="no tokenizer"):
            run(*shared, "--tokenizer", folder)
    assert not (tmp_path / "set").exists()
    run(*shared, "--tokenizer", tiny_folder)
    with pytest.raises(InvalidArgumentError, match="already exists"):
        run(*shared, "--tokenizer", tiny_folder)
    with pytest.raises(InvalidArgumentError, match="already exists"):
        run("export", "--fingerprints", tmp_path / "set", "--out", source)
