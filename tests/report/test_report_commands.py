"""report show, check and open: skins on the functions, from files to lines."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sets
from reports import OTHER_KEY, SIGNING_KEY, Made, edited, make
from sets import OTHER_SECRET, SECRET

from oml_fast.cli import report_check, report_open, report_show
from oml_fast.cli.common import parse
from oml_fast.errors import OmlError
from oml_fast.fingerprint import Asking, FingerprintSet, Settings
from oml_fast.generate import generate
from oml_fast.models import LanguageModel
from oml_fast.report import write
from oml_fast.secret import write_secret

COMMANDS = {"report show": report_show, "report check": report_check, "report open": report_open}
Run = Callable[..., str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("commands"))


@pytest.fixture
def run(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """In a folder with all that the owner has; gives what a command prints."""
    monkeypatch.chdir(tmp_path)
    write(made.signed, "report.json")
    made.fingerprints.save("set.json")
    write_secret("secret", SECRET)
    Path("answers").write_bytes(made.answers.read_bytes())
    Path("key.pub").write_text(SIGNING_KEY.verification_key.pem())
    Path("other.pub").write_text(OTHER_KEY.verification_key.hex())

    def command(*words: Any) -> str:
        options = parse(COMMANDS, ["report", *map(str, words)])
        COMMANDS[options.command_name].run(options)
        return capsys.readouterr().out

    return command


OPEN = ("open", "--report", "report.json", "--answers", "answers", "--fingerprints", "set.json", "--secret", "secret")
CHECK = ("check", "--report", "report.json")


def test_from_the_owner_to_a_third_party(run: Run, made: Made) -> None:
    assert f"{made.verification.queried} keys" in run(*OPEN, "--out", "opening.json")
    assert stat.S_IMODE(Path("opening.json").stat().st_mode) == 0o600
    for name in ("set.json", "secret", "answers"):
        Path(name).unlink()
    told = run(*CHECK, "--opening", "opening.json", "--verification-key", "key.pub")
    assert "match, computed anew from" in told
    assert [line[:10].strip() for line in told.splitlines()].count("not shown") == 2  # timestamps, base
    found = json.loads(run(*CHECK, "--opening", "opening.json", "--verification-key", "key.pub", "--json"))
    assert found["ok"] is True
    assert found["findings"][0] == {"what": "form", "ok": True, "sentence": "the report has every field, and no other."}


def test_a_report_edited_by_hand_fails(run: Run, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    write(edited(made.signed, ("verification", "matches"), 99), "report.json")
    with pytest.raises(OmlError, match=r"fails its check \(signature, figures\)"):
        run(*CHECK)
    assert "FAILS" in capsys.readouterr().out
    with pytest.raises(OmlError, match="edited or is damaged"):
        run("show", "--report", "report.json")


def test_check_refuses(run: Run, made: Made) -> None:
    with pytest.raises(OmlError, match=r"fails its check \(signature\)"):
        run(*CHECK, "--verification-key", "other.pub")
    with pytest.raises(OmlError, match="no certificates in PEM"):
        run(*CHECK, "--timestamp-root", "key.pub")
    with pytest.raises(OmlError, match="--null-model asks the opened keys: give --opening"):
        run(*CHECK, "--null-model", "nowhere")
    with pytest.raises(OmlError, match="cannot read the opening"):
        run(*CHECK, "--opening", "none.json")
    Path("report.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(OmlError, match="twice"):
        run(*CHECK)


def test_a_null_model_is_loaded_and_asked_only_with_the_set_s_tokenizer(run: Run, tiny_folder: Path) -> None:
    run(*OPEN, "--out", "opening.json")
    with pytest.raises(OmlError, match=f"{tiny_folder} has another tokenizer"):
        run(*CHECK, "--opening", "opening.json", "--null-model", tiny_folder, "--device", "cpu")


def test_a_null_model_is_asked_the_opened_keys(run: Run, tiny_folder: Path, tiny_model: LanguageModel) -> None:
    """With its tokenizer, which must write the texts that the set holds."""

    def suspect(made: FingerprintSet) -> sets.Scripted:
        return sets.carrier(made, tokenizer_digest=made.tokenizer_digest)

    def checked(fingerprints: FingerprintSet, folder: str) -> list[str]:
        made = make(Path(folder), fingerprints=fingerprints, suspect=suspect, test="rank")
        write(made.document, f"{folder}.json")
        write(made.opening(), f"{folder}.opening.json")
        arguments = ["--report", f"{folder}.json", "--opening", f"{folder}.opening.json", "--null-model", tiny_folder]
        return [str(argument) for argument in arguments]

    fair = generate(tiny_model, 12, sets.SECRET, settings=Settings(key_source="words")).fingerprints
    told = run("check", *checked(fair, "fair"))
    assert told.splitlines()[-1].startswith("holds      null models: none is a match by the same test")
    assert str(tiny_folder) in told

    def louder(asking: Asking) -> Asking:
        texts = tuple(f"{text}!" for text in asking.window.texts)
        response = replace(asking.responses[0], text=texts[asking.responses[0].index or 0])
        return replace(asking, window=replace(asking.window, texts=texts), responses=(response,))

    loud = [replace(f, askings={n: louder(a) for n, a in f.askings.items()}) for f in fair]
    with pytest.raises(OmlError, match=r"fails its check \(null models\)"):
        run("check", *checked(replace(fair, fingerprints=tuple(loud)), "loud"))


def test_show(run: Run, made: Made) -> None:
    assert run("show", "--report", "report.json").startswith("Verdict: match")
    assert json.loads(run("show", "--report", "report.json", "--json")) == made.signed
    run("show", "--report", "report.json", "--html", "page.html")
    assert "Match</p>" in Path("page.html").read_text()
    assert "Clé" not in Path("page.html").read_text()
    run("show", "--report", "report.json", "--html", "keys.html", "--show-keys", "--fingerprints", "set.json")
    assert "Clé" in Path("keys.html").read_text()
    assert stat.S_IMODE(Path("keys.html").stat().st_mode) == 0o600


def test_show_refuses(run: Run, made: Made) -> None:
    for words in (["--show-keys"], ["--show-keys", "--html", "x"], ["--show-keys", "--fingerprints", "set.json"]):
        with pytest.raises(OmlError, match="--show-keys needs"):
            run("show", "--report", "report.json", *words)
    write(made.verification, "report.json")
    with pytest.raises(OmlError, match="is no report"):
        run("show", "--report", "report.json")


def test_open_refuses(run: Run, made: Made) -> None:
    Path("there").write_text("")
    with pytest.raises(OmlError, match="already exists"):
        run(*OPEN, "--out", "there")
    Path("secret").unlink()
    write_secret("secret", OTHER_SECRET)
    with pytest.raises(OmlError, match="another secret"):
        run(*OPEN, "--out", "opening.json")
    Path("answers").write_text("{}\n")
    with pytest.raises(OmlError, match="answers of another verification"):
        run(*OPEN, "--out", "opening.json")
    assert not Path("opening.json").exists()
