"""oml-fast commit make, stamp, open, check: one line of work from a set to a third party's check, and its refusals."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from authority import Authority, send, served
from sets import OTHER_SECRET, SECRET, small_set

from oml_fast.cli import commit_check, commit_make, commit_open, commit_stamp, common
from oml_fast.commit import OWN_EVIDENCE, Commitment, CommitmentError, asking_order, read_tokens
from oml_fast.errors import InvalidArgumentError, OmlError
from oml_fast.secret import write_secret

COMMANDS: dict[str, Any] = {
    "commit make": commit_make,
    "commit stamp": commit_stamp,
    "commit open": commit_open,
    "commit check": commit_check,
}
SET = small_set(9)
MODEL = "ef" * 32
Run = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command of two words in a folder with `set.json`, `secret` and `other-secret`; its JSON."""
    monkeypatch.chdir(tmp_path)
    SET.save("set.json")
    write_secret("secret", SECRET)
    write_secret("other-secret", OTHER_SECRET)

    def run(*words: Any) -> dict[str, Any]:
        arguments = [str(word) for word in words]
        options = common.parse(COMMANDS, ["commit", *arguments])
        COMMANDS[options.command_name].run(options)
        text = capsys.readouterr().out
        assert SECRET.hex() not in text
        return json.loads(text) if "--json" in arguments else {"text": text}

    return run


MAKE = ["make", "--fingerprints", "set.json", "--secret", "secret", "--model-digest", MODEL, "--out", "c.json"]
OPEN = ["open", "--commitment", "c.json", "--fingerprints", "set.json", "--secret", "secret", "--out", "o.json"]
STAMP = ["stamp", "--commitment", "c.json"]
CHECK = ["check", "--commitment", "c.json"]


@pytest.fixture
def made(run: Run) -> Run:
    run(*MAKE)
    return run


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command here")
    return Authority(tmp_path_factory.mktemp("authority") / "one")


@pytest.fixture
def url(authority: Authority) -> Iterator[str]:
    with served(lambda handler, body: send(handler, authority.reply(body))) as address:
        yield address


def refused(run: Run, *words: Any, kind: type[OmlError] = OmlError) -> str:
    with pytest.raises(kind) as caught:
        run(*words)
    assert SECRET.hex() not in str(caught.value)
    return str(caught.value)


def test_make_writes_what_it_tells(run: Run) -> None:
    told = run(*MAKE, "--rule", "within-8", "--test", "window", "--num-keys", "7", "--json")
    commitment = Commitment.load("c.json")
    assert told["digest"] == commitment.digest()
    assert (told["timestamps"], told["timestamps_file"]) == (0, None)
    terms = commitment.terms
    assert (terms.match_rule, terms.test, terms.mode, terms.num_keys) == ("within-8", "window", "sequential", 7)
    assert {path.name for path in Path().iterdir()} == {"set.json", "secret", "other-secret", "c.json"}


def test_make_without_a_timestamp_says_so(run: Run) -> None:
    assert OWN_EVIDENCE in run(*MAKE)["text"]


def test_a_model_s_folder_gives_its_digest(run: Run, tiny_folder: Path) -> None:
    from oml_fast.models.digests import model_digest

    words = [*MAKE[:5], "--model", tiny_folder, "--out", "c.json"]
    assert run(*words, "--json")["model_digest"] == model_digest(tiny_folder)
    assert run(*CHECK, "--model", tiny_folder, "--json")["model_checked"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model", "none"], "--model-digest are both"),
        (["--model-digest", "cd" * 32], "base model"),
        (["--model-digest", "zz"], "model digest"),
        (["--rule", "nearly"], "match rule"),
        (["--false-positive-rate", "0"], "false positive rate"),
        (["--num-keys", "0"], "number of keys"),
        (["--secret", "other-secret"], "secret"),
        (["--secret", "none"], "no secret"),
        (["--fingerprints", "none"], "no fingerprints"),
        (["--out", "set.json"], "never overwritten"),
        (["--out", "set.json/c.json"], "cannot write"),
    ],
)
def test_make_refuses(run: Run, words: list[str], reason: str) -> None:
    assert reason in refused(run, *MAKE, *words)
    assert not Path("c.json").exists()


def test_make_needs_a_model(run: Run) -> None:
    assert "--model-digest" in refused(run, *MAKE[:5], "--out", "c.json")
    assert "no safetensors" in refused(run, *MAKE[:5], "--model", ".", "--out", "c.json")


def test_make_repeats_the_draws_first(run: Run) -> None:
    first = SET.fingerprints[0]
    asking = first.askings["raw"]
    index = (asking.responses[0].index + 1) % 16
    ids, text = (asking.window.token_ids[index],), asking.window.texts[index]
    response = replace(asking.responses[0], index=index, token_ids=ids, text=text)
    edited = replace(first, askings={"raw": replace(asking, responses=(response,))})
    replace(SET, fingerprints=(edited, *SET.fingerprints[1:])).save("set.json")
    assert "not the one that the secret draws" in refused(run, *MAKE)


def test_a_third_party_checks_an_opening_with_the_commitment_alone(made: Run) -> None:
    assert made(*OPEN, "--first", 3, "--json")["opened"] == 3
    assert stat.S_IMODE(Path("o.json").stat().st_mode) == 0o600
    for name in ("set.json", "secret", "other-secret"):
        Path(name).unlink()
    told = made(*CHECK, "--opening", "o.json", "--json")
    assert told["opened"] == {"places": [0, 1, 2], "numbers": list(asking_order(SET, SECRET)[:3])}
    assert (told["set_checked"], told["model_checked"], told["evidence"]) == (False, False, OWN_EVIDENCE)


def test_a_key_left_out_is_told(made: Run) -> None:
    order = asking_order(SET, SECRET)
    made(*OPEN, "--numbers", f"{order[4]}, {order[0]}")
    assert (
        "2 leaves as committed; 3 places before the last one not opened" in made(*CHECK, "--opening", "o.json")["text"]
    )


@pytest.mark.parametrize(
    "words",
    [[], ["--first", "1", "--numbers", "1"], ["--first", "0"], ["--first", "10"], ["--numbers", "1,x"],
     ["--numbers", "9"], ["--numbers", ""]],
)  # fmt: skip
def test_open_refuses(made: Run, words: list[str]) -> None:
    refused(made, *OPEN, *words, kind=InvalidArgumentError)
    assert not Path("o.json").exists()


def test_check_against_set_and_secret(made: Run) -> None:
    both = ["--fingerprints", "set.json", "--secret", "secret"]
    assert made(*CHECK, *both, "--model-digest", MODEL, "--json")["set_checked"]
    assert "belong together" in refused(made, *CHECK, "--secret", "secret")
    assert "another secret" in refused(made, *CHECK, "--fingerprints", "set.json", "--secret", "other-secret")
    assert "to the model" in refused(made, *CHECK, "--model-digest", "00" * 32, kind=CommitmentError)
    small_set(9, seed=1).save("set.json")
    assert "merkle_root" in refused(made, *CHECK, *both)


def test_a_commitment_edited_by_hand_is_refused(made: Run) -> None:
    made(*OPEN, "--first", 1)
    edited = json.loads(Path("c.json").read_text())
    edited["terms"]["match_rule"] = "prefix"
    Path("c.json").write_text(json.dumps(edited))
    assert "was changed" in refused(made, *CHECK, "--opening", "o.json")


def test_timestamps_over_the_network(run: Run, authority: Authority, url: str) -> None:
    run(*MAKE, "--timestamp", url)
    assert run(*STAMP, "--timestamp", url, "--json")["timestamps"] == 2
    told = run(*CHECK, "--json")
    assert (told["timestamps"], told["timestamps_unchecked"]) == ([], 2)
    tomorrow = (datetime.now(UTC) + timedelta(days=2)).date()
    told = run(*CHECK, "--timestamp-root", authority.root_file, "--suspect-since", tomorrow, "--json")
    assert [stamp["authority"] for stamp in told["timestamps"]] == ["CN=Test authority"] * 2
    assert "CN=Test authority" in told["evidence"]
    yesterday = run(*CHECK, "--timestamp-root", authority.root_file, "--suspect-since", "2026-01-31T12:00Z", "--json")
    assert yesterday["evidence"] == OWN_EVIDENCE


def test_timestamps_through_files(made: Run, authority: Authority) -> None:
    made(*STAMP, "--timestamp-request", "query")
    Path("answer").write_bytes(authority.reply(Path("query").read_bytes()))
    assert made(*STAMP, "--timestamp-response", "answer", "--json")["timestamps"] == 1
    assert "by CN=Test authority" in made(*CHECK, "--timestamp-root", authority.root_file)["text"]
    assert read_tokens("c.timestamps.json") == [Path("answer").read_bytes()]


def test_an_authority_that_fails_leaves_the_commitment(run: Run) -> None:
    with served(lambda handler, _: send(handler, b"", 500)) as address:
        message = refused(run, *MAKE, "--timestamp", address)
    assert "HTTP 500" in message
    assert "oml-fast commit stamp" in message
    Commitment.load("c.json")


def test_stamp_refuses(made: Run, authority: Authority, url: str) -> None:
    assert "nothing to do" in refused(made, *STAMP)
    assert "cannot read" in refused(made, *STAMP, "--timestamp-response", "none")
    assert "no timestamp response" in refused(made, *STAMP, "--timestamp-response", "set.json")
    made(*STAMP, "--timestamp-request", "query")
    Path("answer").write_bytes(authority.reply(Path("query").read_bytes()))
    other = [*MAKE[:-1], "d.json", "--rule", "prefix"]
    made(*other)
    assert "another digest" in refused(made, "stamp", "--commitment", "d.json", "--timestamp-response", "answer")
    assert not Path("d.timestamps.json").exists()


def test_check_refuses_timestamps_that_do_not_hold(made: Run, authority: Authority, url: str, tmp_path: Path) -> None:
    made(*STAMP, "--timestamp", url)
    other = Authority(tmp_path / "other")
    assert "root certificate" in refused(made, *CHECK, "--timestamp-root", other.root_file)
    assert "no timestamps at" in refused(made, *CHECK, "--timestamps", "none")
    assert "PEM" in refused(made, *CHECK, "--timestamp-root", "set.json")
    for time in ("yesterday", "2026-13-01", "31.1.2026"):
        assert "--suspect-since" in refused(made, *CHECK, "--suspect-since", time)
    Path("c.timestamps.json").write_text("[")
    assert "damaged" in refused(made, *CHECK)
