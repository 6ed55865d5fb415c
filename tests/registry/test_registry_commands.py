"""The registry's commands: what they print, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from sets import OTHER_SECRET, SECRET, small_set

from oml_fast import settings
from oml_fast.cli import (
    common,
    registry_add_licensee,
    registry_add_model,
    registry_add_set,
    registry_keys,
    registry_licensees,
    registry_sets,
    registry_spend,
    registry_upgrade,
    registry_usage,
    registry_verifications,
)
from oml_fast.commit import asking_order
from oml_fast.errors import InvalidArgumentError, OmlError
from oml_fast.registry import Registry, UsageLog, Used
from oml_fast.registry.records import json_digest
from oml_fast.secret import write_secret

Run = Callable[..., str]
NOON = 1_795_348_800  # 2026-11-22T12:00:00Z
USED = [Used("Acme", "ab" * 32, 3, 6, 100, 50, 1), Used("Bolt & Co", "cd" * 32, 1, 1, 7, 5)]
COMMANDS: dict[str, Any] = {
    "registry add-licensee": registry_add_licensee,
    "registry licensees": registry_licensees,
    "registry add-set": registry_add_set,
    "registry sets": registry_sets,
    "registry add-model": registry_add_model,
    "registry keys": registry_keys,
    "registry verifications": registry_verifications,
    "registry spend": registry_spend,
    "registry usage": registry_usage,
    "registry upgrade": registry_upgrade,
}


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `registry COMMAND` on one registry; returns what it printed."""

    def run(name: str, *arguments: object) -> str:
        words = ["registry", name, *map(str, arguments), "--registry", str(tmp_path / "registry.sqlite")]
        options = common.parse(COMMANDS, words)
        COMMANDS[options.command_name].run(options)
        return capsys.readouterr().out

    return run


@pytest.fixture
def digest(run: Run, tmp_path: Path) -> str:
    """A set of eight for Acme, recorded; its file is `set.json`."""
    small_set(8).save(tmp_path / "set.json")
    run("add-licensee", "--name", "Acme", "--note", "by contract 7")
    run("add-set", "--fingerprints", tmp_path / "set.json", "--licensee", "Acme")
    return small_set(8).digest()


def test_what_is_recorded_is_listed(run: Run, digest: str, tmp_path: Path) -> None:
    assert "Acme" in run("licensees")
    assert json.loads(run("licensees", "--json"))["licensees"][0]["note"] == "by contract 7"
    listed = json.loads(run("sets", "--json"))
    assert [(each["digest"], each["licensee"]) for each in listed["sets"]] == [(digest, "Acme")]
    assert digest[:16] in run("sets")
    assert run("sets", "--licensee", "Nobody") == "No sets.\n"
    assert run("verifications") == "No verifications.\n"


def test_a_set_comes_before_its_keys_are_marked(run: Run) -> None:
    with pytest.raises(InvalidArgumentError, match=r"there is no registry at .*make it with oml-fast registry add-set"):
        run("spend", "--set", "3fa9", "--numbers", "0")
    run("add-licensee", "--name", "Acme")
    with pytest.raises(InvalidArgumentError, match=r"begins with '3fa9': add it first, with oml-fast registry add-set"):
        run("spend", "--set", "3fa9", "--numbers", "0")


def test_a_model_is_recorded_by_its_weights(run: Run, digest: str, tiny_folder: Path) -> None:
    from oml_fast.models.digests import model_digest

    said = json.loads(run("add-model", "--model", tiny_folder, "--set", digest[:8], "--name", "one", "--json"))
    assert (said["digest"], said["set_digest"], said["path"]) == (model_digest(tiny_folder), digest, "one")
    assert json.loads(run("sets", "--json"))["models"][0]["path"] == "one"
    assert "one" in run("sets")


def test_a_folder_without_weights_is_no_model(run: Run, digest: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="holds no weights in safetensors"):
        run("add-model", "--model", tmp_path, "--set", digest)


def test_how_many_keys_are_left(run: Run, digest: str) -> None:
    assert run("spend", "--set", digest[:8], "--numbers", "0,2-3", "--suspect", "court").startswith("3 keys of the set")
    assert json.loads(run("spend", "--set", digest, "--numbers", "3,4", "--json"))["newly_spent"] == 1
    (count,) = json.loads(run("keys", "--suspect", "court", "--json"))["sets"]
    assert (count["num_fingerprints"], count["left"], count["spent"], count["seen"]) == (8, 4, 4, 4)
    head, row = run("keys").splitlines()
    assert head.split() == ["set", "licensee", "keys", "left", "spent"]
    assert row.split() == [digest[:16], "Acme", "8", "4", "4"]
    assert run("keys", "--suspect", "others").splitlines()[1].split()[-1] == "2"


@pytest.mark.parametrize("numbers", ["", "a", "1-", "-1", "3-2", "0,", "0-8", "0-99999999999", "0.5", "8"])
def test_numbers_that_are_no_keys(run: Run, digest: str, numbers: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"--numbers: |has no key 8"):
        run("spend", "--set", digest, f"--numbers={numbers}")
    assert json.loads(run("keys", "--json"))["sets"][0]["left"] == 8


@pytest.mark.parametrize("wrap", [list, lambda order: {"order": order, "more": 1}])
def test_an_order_comes_from_a_file(run: Run, digest: str, tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    order = [7, 6, 5, 4, 3, 2, 1, 0]
    (tmp_path / "order.json").write_text(json.dumps(wrap(order)))
    run("add-set", "--fingerprints", tmp_path / "set.json", "--order", tmp_path / "order.json")
    with Registry(tmp_path / "registry.sqlite") as registry:
        assert registry.attempt(small_set(8), suspect="them").take(2) == (7, 6)


@pytest.mark.parametrize("text", ["", "{}", "[0, 1.0]", "[true]", '"01"', "[" * 100_000])
def test_files_that_hold_no_order(run: Run, digest: str, tmp_path: Path, text: str) -> None:
    (tmp_path / "order.json").write_text(text)
    with pytest.raises(InvalidArgumentError, match="holds no order of asking"):
        run("add-set", "--fingerprints", tmp_path / "set.json", "--order", tmp_path / "order.json")


def test_secrets_that_give_no_order(run: Run, digest: str, tmp_path: Path) -> None:
    (tmp_path / "order.json").write_text(json.dumps([*range(8)]))
    write_secret(tmp_path / "secret.key", SECRET)
    write_secret(tmp_path / "other.key", OTHER_SECRET)
    replace(small_set(8), secret_commitment="").save(tmp_path / "imported.json")
    before = run("sets", "--json")
    also = ["--order", tmp_path / "order.json"]
    for name, secret, more, why in (
        ("set", "other", [], "not the one the fingerprints were drawn with"),
        ("set", "none", [], "no secret at"),
        ("set", "secret", also, "--secret and --order both"),
        ("imported", "secret", [], "this set was imported"),
    ):
        words = ["--fingerprints", tmp_path / f"{name}.json", "--secret", tmp_path / f"{secret}.key", *more]
        with pytest.raises(OmlError, match=why):
            run("add-set", *words)
    assert run("sets", "--json") == before


@pytest.mark.parametrize("spent", [False, True])
def test_the_order_of_a_commitment_comes_from_the_secret(run: Run, digest: str, tmp_path: Path, spent: bool) -> None:
    write_secret(tmp_path / "secret.key", SECRET)
    order = asking_order(small_set(8), SECRET)
    assert order != tuple(range(8))
    if spent:
        run("spend", "--set", digest, "--numbers", "0")
        with (
            Registry(tmp_path / "registry.sqlite") as registry,
            pytest.raises(InvalidArgumentError, match="another order"),
        ):
            registry.attempt(small_set(8), suspect="them", order=order)
    words = ["--fingerprints", tmp_path / "set.json", "--secret", tmp_path / "secret.key", "--json"]
    said = json.loads(run("add-set", *words))
    assert said["order_digest"] == json_digest(list(order))
    with Registry(tmp_path / "registry.sqlite") as registry:
        left = [number for number in order if not (spent and number == 0)]
        assert registry.attempt(small_set(8), suspect="them", order=order).take(8) == tuple(left)


def test_verifications_are_listed_and_shown(run: Run, digest: str, tmp_path: Path) -> None:
    with Registry(tmp_path / "registry.sqlite") as registry:
        attempt = registry.attempt(small_set(8), suspect="them")
        attempt.take(2)
        assert "not ended" in run("verifications", "--set", digest[:8], "--suspect", "them")
        attempt.ended("match", {"p_value": 0.5})
    (listed,) = json.loads(run("verifications", "--json"))["verifications"]
    assert (listed["id"], listed["verdict"], listed["keys"]) == (attempt.id, "match", 2)
    shown = json.loads(run("verifications", "--attempt", attempt.id, "--json"))
    assert (shown["numbers"], shown["report"], shown["suspect"]) == ([0, 1], {"p_value": 0.5}, "them")
    assert "0, 1" in run("verifications", "--attempt", attempt.id)
    with pytest.raises(InvalidArgumentError, match="leave out --set and --suspect"):
        run("verifications", "--attempt", attempt.id, "--suspect", "them")


@pytest.fixture
def metered(tmp_path: Path) -> None:
    """Both of USED at noon, the second again an hour later."""
    with closing(UsageLog(tmp_path / "registry.sqlite")) as log:
        log.add(USED, NOON)
        log.add(USED[1:], NOON + 3600)


def test_what_licensees_used_is_told(run: Run, metered: None) -> None:
    head, acme, bolt = run("usage").splitlines()
    assert " ".join(head.split()) == "licensee model requests generations prompt tokens output tokens aborted"
    assert acme.split() == ["Acme", "ab" * 8, "3", "6", "100", "50", "1"]
    assert bolt.split() == ["Bolt", "&", "Co", "cd" * 8, "2", "2", "14", "10", "0"]
    said = json.loads(run("usage", "--licensee", "Acme", "--json"))
    assert said["usage"] == [asdict(USED[0])]
    assert run("usage", "--licensee", "Nobody") == "No usage.\n"


def test_what_was_used_in_each_hour_is_told(run: Run, metered: None) -> None:
    head, first, _, third = run("usage", "--by-hour").splitlines()
    assert (head.split()[0], first.split()[:2]) == ("hour", ["2026-11-22T12:00:00+00:00", "Acme"])
    assert third.split() == ["2026-11-22T13:00:00+00:00", "Bolt", "&", "Co", "cd" * 8, "1", "1", "7", "5", "0"]
    said = json.loads(run("usage", "--by-hour", "--since", "2026-11-22T13:00Z", "--json"))
    assert said["usage"] == [{"hour": "2026-11-22T13:00:00+00:00", **asdict(USED[1])}]
    assert (said["since"], said["until"]) == ("2026-11-22T13:00Z", None)


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (["--since", "2026-11-22"], 2),
        (["--until", "2026-11-22"], 0),
        (["--since", "2026-11-22", "--until", "2026-11-23"], 2),
        (["--since", "2026-11-22T12:00:01Z"], 1),
        (["--since", "2026-11-22T13:00+01:00", "--until", "2026-11-22T13:00"], 2),
    ],
)
def test_usage_between_two_times(run: Run, metered: None, words: list[str], rows: int) -> None:
    assert len(json.loads(run("usage", *words, "--json"))["usage"]) == rows


def test_usage_of_one_model(run: Run, metered: None, tmp_path: Path, tiny_folder: Path) -> None:
    from oml_fast.models.digests import model_digest

    assert json.loads(run("usage", "--model-digest", "cd" * 32, "--json"))["usage"][0]["licensee"] == "Bolt & Co"
    assert run("usage", "--model", tiny_folder) == "No usage.\n"
    with closing(UsageLog(tmp_path / "registry.sqlite")) as log:
        log.add([replace(USED[0], model_digest=model_digest(tiny_folder))], NOON)
    assert len(json.loads(run("usage", "--model", tiny_folder, "--json"))["usage"]) == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--since", "yesterday"], "--since 'yesterday': write it as 2026-01-31"),
        (["--until", ""], "--until '': write it as"),
        (["--since", "2026-02-30"], "--since '2026-02-30'"),
        (["--since", "1969-12-31"], "since cannot be"),
        (["--until", "9999-12-31T23:59-12:00"], "until cannot be"),
        (["--since", "2026-11-22", "--until", "2026-11-22"], "give a later until"),
        (["--model-digest", "abab"], "a model's digest cannot be 'abab'"),
        (["--model-digest", "ab" * 32, "--model", "folder"], "--model and --model-digest are both given"),
    ],
)
def test_questions_about_usage_that_are_refused(run: Run, metered: None, words: list[str], why: str) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        run("usage", *words)


def test_dates_of_a_configuration_are_read(run: Run, metered: None, tmp_path: Path) -> None:
    """YAML has dates and times of its own."""
    for since, rows in (("2026-11-22", 2), ("2026-11-22T13:00:00Z", 1), ('"2026-11-23"', 0)):
        (tmp_path / "config.yaml").write_text(f"since: {since}\nby-hour: false\n")
        assert len(json.loads(run("usage", "--config", tmp_path / "config.yaml", "--json"))["usage"]) == rows


def test_usage_of_no_registry_makes_none(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="there is no registry at"):
        run("usage")
    assert list(tmp_path.iterdir()) == []


def test_upgrade_makes_a_registry(run: Run) -> None:
    said = json.loads(run("upgrade", "--json"))
    assert (said["before"], said["version"]) == (None, "0003")
    assert "it was of version 0003 before" in run("upgrade")


def test_the_registry_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = common.parse(COMMANDS, ["registry", "keys"])
    monkeypatch.delenv("OML_FAST_REGISTRY", raising=False)
    with pytest.raises(InvalidArgumentError, match="give --registry PATH, or set OML_FAST_REGISTRY"):
        registry_keys.run(options)
    monkeypatch.setenv("OML_FAST_REGISTRY", str(tmp_path / "r"))
    assert settings.registry_url() == str(tmp_path / "r")
    with pytest.raises(InvalidArgumentError, match="r"):  # a misspelt path makes no registry
        registry_keys.run(options)
    assert not (tmp_path / "r").exists()
    Registry(tmp_path / "r").close()
    registry_keys.run(options)
    assert capsys.readouterr().out == "No sets.\n"
