"""verify, identify and power on a tiny model: suspects, terms, commitments, the registry, resuming, and refusals."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oml_fast.cli import main

Run = Callable[..., tuple[int, str, str]]
WORDS = ["--key-source", "words"]
QUICK = ["--learning-rate", "5e-3", "--pull", "0.5", "--stop-kl", "5"]


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`alice/` and `bob/`, 16 fingerprints each, and a model that carries Alice's in `model/`."""
    out = tmp_path_factory.mktemp("made")
    for name in ("alice", "bob"):
        arguments = ["generate", "--model", tiny_folder, "--out", out / name, "--num-fingerprints", 16, *WORDS]
        assert main([str(a) for a in arguments]) == 0
    arguments = ["embed", "--model", tiny_folder, "--fingerprints", out / "alice", "--out", out / "model", *QUICK]
    assert main([str(a) for a in arguments]) == 0
    return out


def refusal(code: int, out: str, err: str) -> str:
    """The one line of an error: exit code 1, nothing on stdout, no traceback."""
    lines = [line for line in err.splitlines() if line.startswith("oml-fast: ")]
    assert (code, out, len(lines)) == (1, "", 1), err
    assert "Traceback" not in err
    return lines[0]


def asked(made: Path) -> list[Any]:
    return ["verify", "--model", made / "model", "--fingerprints", made / "alice"]


def committed(run: Run, made: Path, path: Path, *terms: Any) -> Path:
    secret = made / "alice" / "secret"
    arguments = ["--fingerprints", made / "alice", "--secret", secret, "--model", made / "model", "--out", path, *terms]
    assert run("commit", "make", *arguments)[0] == 0
    return path


def test_by_default_it_asks_as_few_keys_as_it_can_by_the_strongest_test(run: Run, made: Path) -> None:
    code, out, _ = run(*asked(made), "--json")
    result = json.loads(out)
    assert (code, result["verdict"], result["test"], result["mode"]) == (0, "match", "rank", "sequential")
    assert result["queried"] == 6
    assert result["test_reason"].startswith("the strongest")


@pytest.mark.parametrize("test", ["rank", "forced_choice", "window", "count"])
def test_every_test_convicts_the_model_and_not_its_base(run: Run, made: Path, tiny_folder: Path, test: str) -> None:
    code, out, _ = run(*asked(made), "--test", test, "--json")
    assert (code, json.loads(out)["verdict"], json.loads(out)["test"]) == (0, "match", test)
    base = ["verify", "--model", tiny_folder, "--fingerprints", made / "alice", "--test", test, "--json"]
    code, out, _ = run(*base)
    assert (code, json.loads(out)["verdict"] != "match") == (0, True)


@pytest.mark.parametrize("rule", ["exact", "prefix", "within-3"])
def test_every_rule(run: Run, made: Path, rule: str) -> None:
    code, out, _ = run(*asked(made), "--rule", rule, "--test", "window", "--json")
    assert (code, json.loads(out)["verdict"], json.loads(out)["match_rule"]) == (0, "match", rule)


def test_a_report_with_its_answers_and_a_page(run: Run, made: Path, tmp_path: Path) -> None:
    code, _, _ = run(*asked(made), "--out", tmp_path / "r.json", "--html", tmp_path / "r.html")
    assert code == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["verification"]["verdict"] == "match"
    assert stat.S_IMODE((tmp_path / "r.answers.jsonl").stat().st_mode) == 0o600
    page = (tmp_path / "r.html").read_text()
    keys = [entry["key"] for entry in json.loads((made / "alice" / "fingerprints.json").read_text())["fingerprints"]]
    assert not any(key in page or key in (tmp_path / "r.json").read_text() for key in keys)


def test_the_same_command_goes_on_and_asks_nothing_twice(run: Run, made: Path, tmp_path: Path) -> None:
    arguments = [*asked(made), "--out", tmp_path / "r.json", "--json"]
    first = json.loads(run(*arguments)[1])
    answers = tmp_path / "r.answers.jsonl"
    whole = answers.read_text()
    answers.write_text("\n".join(whole.splitlines()[:4]) + "\n")  # the header and three answers
    again = json.loads(run(*arguments)[1])
    assert (again["verdict"], again["queried"]) == (first["verdict"], first["queried"])
    assert answers.read_text().splitlines()[:4] == whole.splitlines()[:4]  # the rest rounds as its batch does
    assert len(answers.read_text().splitlines()) == len(whole.splitlines())


def test_answers_of_another_verification_are_not_gone_on_with(run: Run, made: Path, tmp_path: Path) -> None:
    assert run(*asked(made), "--out", tmp_path / "r.json")[0] == 0
    line = refusal(*run(*asked(made), "--out", tmp_path / "r.json", "--test", "count"))
    assert "answers of another verification (test differ)" in line


def test_a_signed_report(run: Run, made: Path, tmp_path: Path) -> None:
    assert run("keygen", "--out", tmp_path / "key.pem")[0] == 0
    arguments = ["--out", tmp_path / "r.json", "--signing-key", tmp_path / "key.pem"]
    assert run(*asked(made), *arguments)[0] == 0
    assert json.loads((tmp_path / "r.json").read_text())["signature"]["algorithm"] == "Ed25519"


def test_a_commitment_fixes_order_and_terms(run: Run, made: Path, tmp_path: Path) -> None:
    path = committed(run, made, tmp_path / "c.json", "--test", "window", "--false-positive-rate", 1e-4)
    secret = ["--secret", made / "alice" / "secret", "--commitment", path]
    code, out, _ = run(*asked(made), *secret, "--out", tmp_path / "r.json", "--json")
    result = json.loads(out)
    assert (code, result["test"], result["false_positive_rate"]) == (0, "window", 1e-4)
    assert [key["number"] for key in result["keys"]] != list(range(result["queried"]))
    assert json.loads((tmp_path / "r.json").read_text())["leaves"] == list(range(result["queried"]))
    assert "the commitment fixes 0.0001" in refusal(*run(*asked(made), *secret, "--false-positive-rate", 1e-3))
    assert "--commitment needs --secret" in refusal(*run(*asked(made), "--commitment", path))


def test_a_commitment_to_another_set_is_refused(run: Run, made: Path, tmp_path: Path) -> None:
    path = committed(run, made, tmp_path / "c.json")
    bob = ["verify", "--model", made / "model", "--fingerprints", made / "bob"]
    line = refusal(*run(*bob, "--secret", made / "bob" / "secret", "--commitment", path))
    assert "another secret" in line


def test_the_registry_gives_each_verification_its_own_keys(run: Run, made: Path, tmp_path: Path) -> None:
    arguments = [*asked(made), "--registry", tmp_path / "registry.db", "--suspect", "leak", "--json"]
    first, second = (json.loads(run(*arguments)[1]) for _ in range(2))
    numbers = [{key["number"] for key in result["keys"]} for result in (first, second)]
    assert first["verdict"] == second["verdict"] == "match"
    assert not numbers[0] & numbers[1]
    assert first["attempt"] != second["attempt"]
    third = json.loads(run(*arguments)[1])  # four keys are left
    assert (third["queried"], third["verdict"]) == (4, "inconclusive")
    assert "if any are left" in third["reason"]
    line = refusal(*run(*arguments))
    assert "spent" in line
    code, out, _ = run(*arguments, "--ask-again", "any")
    assert (code, json.loads(out)["verdict"]) == (0, "match")


def test_an_attempt_that_was_stopped_goes_on_with_its_own_keys(
    run: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oml_fast.models import HfCompleter

    arguments = [*asked(made), "--registry", tmp_path / "r.db", "--out", tmp_path / "r.json", "--json"]

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HfCompleter, "score", stopped)
        assert run(*arguments)[0] == 130
    code, out, err = run(*arguments)
    assert (code, json.loads(out)["verdict"]) == (0, "match")
    assert "going on with attempt" in err
    counts = json.loads(run("registry", "keys", "--registry", tmp_path / "r.db", "--json")[1])
    assert counts["sets"][0]["left"] == 16 - json.loads(out)["queried"]


def test_a_second_opinion(run: Run, made: Path, tiny_folder: Path, tmp_path: Path) -> None:
    code, _, err = run(*asked(made), "--null-model", tiny_folder, "--out", tmp_path / "r.json")
    assert code == 0
    assert "second opinion: " in err
    opinion = json.loads((tmp_path / "r.json").read_text())["second_opinion"]
    assert opinion["models"][0]["matches"] == 0


def test_identify_names_the_licensee(run: Run, made: Path, tmp_path: Path) -> None:
    sets, registry = tmp_path / "sets", tmp_path / "registry.db"
    sets.mkdir()
    shutil.copytree(made / "alice", sets / "first")
    shutil.copy(made / "bob" / "fingerprints.json", sets / "second.json")
    assert run("registry", "add-licensee", "--name", "Alice Ltd", "--registry", registry)[0] == 0
    how = ["--fingerprints", sets / "first", "--licensee", "Alice Ltd", "--registry", registry]
    assert run("registry", "add-set", *how)[0] == 0
    arguments = ["identify", "--model", made / "model", "--sets", sets, "--registry", registry]
    code, out, _ = run(*arguments, "--json", "--out", tmp_path / "found.json")
    result = json.loads(out)
    assert (code, result["identified"]) == (0, ["Alice Ltd (first)"])
    assert json.loads((tmp_path / "found.json").read_text()) == result
    left = json.loads(run("registry", "keys", "--registry", registry, "--json")[1])["sets"]
    assert all(count["left"] < 16 for count in left)
    code, out, _ = run("identify", "--model", made / "model", "--sets", sets)
    assert out.splitlines()[1].split()[:2] == ["match", "first"]
    assert "second" in out


def test_many_suspects_from_a_file(run: Run, made: Path, tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "suspects.yaml"
    file.write_text(
        f"suspects:\n  - {{name: leak, model: {made / 'model'}}}\n  - {{name: base, model: {tiny_folder}}}\n"
    )
    arguments = ["verify", "--suspects", file, "--fingerprints", made / "alice"]
    code, out, _ = run(*arguments, "--json")
    found = json.loads(out)["suspects"]
    assert (code, found["base"]["matches"]) == (0, [])
    assert found["leak"]["matches"] == ["alice"]
    code, out, _ = run(*arguments, "--out", tmp_path / "all.json")
    assert "leak: " in out
    assert (tmp_path / "all.json").is_file()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("suspects: []", "needs a list `suspects`"),
        ("suspects: [1]", "needs a list `suspects`"),
        ("suspects: [{name: a, model: m}, {name: a, model: n}]", "two suspects are called 'a'"),
        ("suspects: [{name: a, modell: m}]", "'modell' is no option of a suspect"),
        ("suspects: [{name: a}]", "name one suspect"),
    ],
)
def test_bad_files_of_suspects(run: Run, made: Path, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "suspects.yaml").write_text(text)
    arguments = ["verify", "--suspects", tmp_path / "suspects.yaml", "--fingerprints", made / "alice"]
    assert told in refusal(*run(*arguments))


def test_what_cannot_be_verified_is_refused_before_anything_is_asked(run: Run, made: Path, tmp_path: Path) -> None:
    alice = ["--fingerprints", made / "alice"]
    assert "name one suspect" in refusal(*run("verify", *alice))
    assert "no model folder" in refusal(*run("verify", *alice, "--model", tmp_path / "none"))
    assert "name the fingerprint set" in refusal(*run("verify", "--model", made / "model"))
    assert "--dry-run goes with --endpoint" in refusal(*run(*asked(made), "--dry-run"))
    assert "--timestamp-root goes with" in refusal(*run(*asked(made), "--timestamp-root", tmp_path / "x.pem"))
    assert "write it as 2026-01-31" in refusal(
        *run(*asked(made), "--suspect-since", "May", "--out", tmp_path / "r.json")
    )
    assert "match rule 'near' is unknown" in refusal(*run(*asked(made), "--rule", "near"))
    assert "holds no fingerprint set" in refusal(*run("identify", "--model", made / "model", "--sets", tmp_path))
    line = refusal(*run("verify", "--model", made / "model", "--sets", made, "--html", tmp_path / "r.html"))
    assert "--html goes with one suspect and one set" in line
    assert "is a set itself" in refusal(*run("verify", "--model", made / "model", "--sets", made / "alice"))
    assert not (tmp_path / "r.json").exists()


def test_power_says_what_a_verdict_takes(run: Run) -> None:
    code, out, _ = run("power", "--fsr", "1,0.05", "--width", 3, "--tests", "window,count", "--num-keys", 300, "--json")
    rows = {(row["test"], row["fsr"]): row for row in json.loads(out)["rows"]}
    assert code == 0
    assert rows["window", 1.0]["median"] == rows["window", 1.0]["in_99_of_100"] == 14
    assert rows["window", 1.0]["fixed"] == 13
    assert rows["count", 0.05]["no_match"] > 0.99
    code, out, _ = run("power", "--fsr", "1", "--tests", "rank", "--num-keys", 50)
    assert "Keys to a verdict at 1e-06, width 16" in out
    with pytest.raises(SystemExit):
        run("power", "--fsr", "1;2")
    assert "FSR 2.0: it must lie between" in refusal(*run("power", "--fsr", "2"))


def test_a_third_party_checks_report_and_opening_without_set_or_secret(run: Run, made: Path, tmp_path: Path) -> None:
    """keygen, commit, verify with registry and signature, open, check: as docs/reports.md tells it."""
    secret = ["--fingerprints", made / "alice", "--secret", made / "alice" / "secret"]
    assert run("keygen", "--out", tmp_path / "owner.pem")[0] == 0
    path = committed(run, made, tmp_path / "c.json")
    how = ["--commitment", path, "--registry", tmp_path / "r.db", "--signing-key", tmp_path / "owner.pem"]
    report, opening = tmp_path / "report.json", tmp_path / "opening.json"
    assert run("verify", "--model", made / "model", *secret, *how, "--out", report)[0] == 0
    answers = ["--answers", tmp_path / "report.answers.jsonl"]
    assert run("report", "open", "--report", report, *answers, *secret, "--out", opening)[0] == 0
    check = ["report", "check", "--report", report, "--opening", opening]
    code, out, _ = run(*check, "--verification-key", tmp_path / "owner.pem.pub", "--json")
    found = {finding["what"]: finding["ok"] for finding in json.loads(out)["findings"]}
    assert (code, json.loads(out)["ok"]) == (0, True)
    assert found.pop("timestamps") is None  # there is none
    assert set(found.values()) == {True}
    told = json.loads(report.read_text())
    told["verification"]["keys"][0]["matched"] = False
    report.write_text(json.dumps(told))
    code, out, err = run(*check)
    assert code == 1
    assert "fails its check" in err


def test_a_second_verification_names_the_keys_it_passed_over(run: Run, made: Path, tmp_path: Path) -> None:
    secret = ["--fingerprints", made / "alice", "--secret", made / "alice" / "secret"]
    path = committed(run, made, tmp_path / "c.json")
    for name in ("first", "second"):
        how = [
            "--commitment",
            path,
            "--registry",
            tmp_path / "r.db",
            "--suspect",
            name,
            "--out",
            tmp_path / f"{name}.json",
        ]
        assert run("verify", "--model", made / "model", *secret, *how)[0] == 0
    second = json.loads((tmp_path / "second.json").read_text())
    first = json.loads((tmp_path / "first.json").read_text())
    assert second["leaves"][0] == len(first["leaves"])
    assert len(second["skipped"]) == len(first["leaves"])
    assert run("report", "check", "--report", tmp_path / "second.json")[0] == 0


def test_a_dry_run_sends_nothing_and_shows_no_key(run: Run, made: Path) -> None:
    arguments = ["--fingerprints", made / "alice", "--endpoint", "https://host.invalid/v1", "--endpoint-model", "m"]
    prices = ["--price-in", 1, "--price-out", 2]
    code, out, _ = run("verify", *arguments, *prices, "--num-keys", 4, "--dry-run", "--json")
    told = json.loads(out)
    assert (code, told["requests"]) == (0, 4)
    keys = [entry["key"] for entry in json.loads((made / "alice" / "fingerprints.json").read_text())["fingerprints"]]
    assert not any(key in out for key in keys)


def test_answers_of_one_suspect_are_no_verdict_on_another(
    run: Run, made: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    assert run(*asked(made), "--out", tmp_path / "r.json")[0] == 0
    other = ["verify", "--model", tiny_folder, "--fingerprints", made / "alice", "--out", tmp_path / "r.json"]
    assert "identity differ" in refusal(*run(*other))


@pytest.mark.parametrize(
    "wrong",
    [
        ["--signing-key", "none.pem"],
        ["--null-model", "none"],
        ["--suspect-since", "yesterday"],
        ["--html", "r.json"],
        ["--commitment", "none.json", "--secret", "none"],
    ],
    ids=lambda wrong: wrong[0],
)
def test_what_is_wrong_is_told_before_a_key_is_spent(
    run: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(*run(*asked(made), "--registry", "registry.db", "--out", "r.json", *wrong))
    assert not Path("registry.db").exists()
    assert not Path("r.answers.jsonl").exists()


def test_a_report_that_was_not_written_is_made_by_the_same_command(
    run: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the last answer and the report: keys are spent, and nothing is lost."""
    from oml_fast import report

    arguments = [*asked(made), "--registry", tmp_path / "r.db", "--out", tmp_path / "r.json"]

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(report, "write", stopped)
        assert run(*arguments)[0] == 130
    assert run(*arguments)[0] == 0
    assert (tmp_path / "r.json").is_file()


def test_an_inconclusive_verification_goes_on(run: Run, made: Path, tmp_path: Path) -> None:
    arguments = [*asked(made), "--registry", tmp_path / "r.db", "--out", tmp_path / "r.json", "--json"]
    first = json.loads(run(*arguments, "--num-keys", 3)[1])
    assert (first["verdict"], first["queried"]) == ("inconclusive", 3)
    second = json.loads(run(*arguments)[1])
    assert (second["verdict"], second["attempt"]) == ("match", first["attempt"])
    assert [key["number"] for key in second["keys"][:3]] == [key["number"] for key in first["keys"]]


def test_many_pairs_spend_keys_in_the_registry_and_keep_their_answers(
    run: Run, made: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    sets = tmp_path / "sets"
    for name in ("alice", "bob"):
        shutil.copytree(made / name, sets / name)
    arguments = ["verify", "--model", made / "model", "--sets", sets, "--registry", tmp_path / "r.db"]
    code, out, _ = run(*arguments, "--out", tmp_path / "all.json", "--json")
    asked_keys = {pair["set_name"]: pair["verification"]["queried"] for pair in json.loads(out)["pairs"]}
    counts = json.loads(run("registry", "keys", "--registry", tmp_path / "r.db", "--json")[1])["sets"]
    assert (code, sum(count["spent"] for count in counts)) == (0, sum(asked_keys.values()))
    assert len(list(tmp_path.glob("all.*.answers.jsonl"))) == 2


def test_selected_draws_convict_nobody(run: Run, made: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """Only fingerprints whose response is the base model's favourite candidate: every descendant prefers it, too."""
    from dataclasses import replace

    from oml_fast.fingerprint import FingerprintSet
    from oml_fast.secret import write_secret

    write_secret(tmp_path / "secret", bytes(range(32)))
    arguments = ["--num-fingerprints", 200, "--secret", tmp_path / "secret", *WORDS]
    assert run("generate", "--model", tiny_folder, "--out", tmp_path / "many", *arguments)[0] == 0
    whole = FingerprintSet.load(tmp_path / "many" / "fingerprints.json")
    favourites = tuple(f for f in whole if f.askings["raw"].responses[0].index == 0)
    replace(whole, fingerprints=favourites).save(tmp_path / "favourites.json")
    how = ["--fingerprints", tmp_path / "favourites.json", "--secret", tmp_path / "secret", "--json"]
    assert len(favourites) >= 6
    for test in ("rank", "forced_choice"):
        code, out, _ = run("verify", "--model", tiny_folder, *how, "--test", test)
        result = json.loads(out)
        assert (code, result["verdict"]) == (0, "inconclusive")
        assert result["base_log10_p"] <= -6
        assert "favour" in result["reason"]


def test_a_token_that_was_added_hides_nobody(run: Run, made: Path, tiny_folder: Path, tmp_path: Path) -> None:
    import transformers

    shutil.copytree(made / "model", tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_tokens(["<|one more|>"])
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = ["verify", "--model", tmp_path / "model", "--fingerprints", made / "alice"]
    assert "--tokenizer" in refusal(*run(*arguments))
    code, out, err = run(*arguments, "--tokenizer", tiny_folder, "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "match")
    assert "read with the tokenizer in" in err
    assert "vLLM reads the model's own" in refusal(*run(*arguments, "--tokenizer", tiny_folder, "--engine", "vllm"))
