"""The battery: it measures before and after alike, goes on after a kill, and refuses what cannot end well."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sets import TOKENIZER, VOCABULARY, carrier, small_set

from oml_fast.completer import SCORE, Completion
from oml_fast.errors import BackendUnavailableError, FingerprintFormatError, InvalidArgumentError
from oml_fast.evaluate import battery, plots
from oml_fast.evaluate.attack import Attack, Attacked, Scene
from oml_fast.evaluate.attacks import ALL, QUICK, choose
from oml_fast.evaluate.attacks.suppression import suppressing
from oml_fast.evaluate.battery import Robustness, ask, evidence, of_several, robustness
from oml_fast.evaluate.data import Data
from oml_fast.evaluate.hosts import Host, greedily
from oml_fast.evaluate.report import COLUMNS, text
from oml_fast.fingerprint import FingerprintSet
from oml_fast.models import HfCompleter


def honest(scene: Scene) -> Attacked:
    return Attacked(HfCompleter(scene.model), scene.model)


def to_base(scene: Scene) -> Attacked:
    return Attacked(HfCompleter(scene.base), scene.base, {"share": 0.0})


def silence(scene: Scene) -> Attacked:
    return Attacked(Host(scene.model, "silent", rewrite=lambda ids: None))


def impossible(scene: Scene) -> Attacked:
    raise InvalidArgumentError("this model has no chat template")


HONEST = Attack("test/honest", "nothing", honest)
TO_BASE = Attack("test/to-base", "the base model", to_base, strength=0.0)


def two_hosts(scene: Scene) -> Attacked:
    hosts = {"honest": HfCompleter(scene.model), "base": HfCompleter(scene.base)}
    return Attacked(hosts["honest"], details={"own": 1}, hosts=hosts)


TWO_HOSTS = Attack("test/two-hosts", "nothing", two_hosts)
SILENCE = Attack("test/silence", "all users", silence)
IMPOSSIBLE = Attack("test/impossible", "nothing", impossible)


@pytest.fixture(scope="module")
def result(scene: Scene) -> Robustness:
    return robustness(scene, [HONEST, TO_BASE, SILENCE, IMPOSSIBLE])


def row(result: Robustness, name: str) -> dict[str, Any]:
    return next(row for row in result.rows if row["attack"] == f"test/{name}")


def test_no_attack_changes_no_figure(result: Robustness) -> None:
    found = row(result, "honest")
    assert found["persistence"] == 1.0
    before = {name: value for name, value in result.before.items() if name != "fsr_base"}
    assert found["made_by"].startswith("oml_fast ")
    assert {name: found[name] for name in before} == before


def test_the_base_model_keeps_nothing_and_has_not_drifted(result: Robustness) -> None:
    found = row(result, "to-base")
    assert (found["matches"], found["fsr"], found["verdict"]) == (0, 0.0, "no_match")
    assert found["bits_per_key"]["window"] < 0.1
    assert found["text"]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert found["details"] == {"share": 0.0}
    assert result.before["text"]["kl"] > 1e-3


def test_evidence_stands_by_every_test(result: Robustness) -> None:
    bits = result.before["bits_per_key"]
    assert bits["window"] == pytest.approx(4.0, abs=0.5)  # one answer in a window of 16
    assert 0 < bits["count"] <= bits["window"] + 1e-9
    assert bits["rank"] == bits["forced_choice"] == pytest.approx(4.0)


def test_the_strongest_test_and_its_verdict_are_kept(result: Robustness) -> None:
    assert result.before["strongest"] == {"test": "rank", "verdict": "match"}
    assert row(result, "to-base")["strongest"] == {"test": "rank", "verdict": "no_match"}
    assert row(result, "silence")["strongest"] == {"test": "window", "verdict": "no_match"}


def test_of_several_hosts_the_evidence_is_the_worst_ones_and_the_fsr_the_mean(scene: Scene, result: Robustness) -> None:
    (found,) = robustness(scene, [TWO_HOSTS]).rows
    before, worst = result.before["fsr"], row(result, "to-base")
    names = ("queried", "matches", "informative", "log10_p", "bits_per_key", "verdict", "strongest", "fsr_interval")
    assert {name: found[name] for name in names} == {name: worst[name] for name in names}
    assert found["answers"] == worst["answers"]
    assert found["fsr"] == found["fsr_by_format"]["raw"] == before / 2
    assert found["persistence"] == 0.5
    by_host = {"honest": before, "base": 0.0}
    assert found["details"] == {"own": 1, "fsr_by_host": by_host, "worst": "base", "fsr_worst": 0.0}


def test_ten_askings_of_a_key_are_not_ten_keys() -> None:
    fingerprints = small_set(20)
    asked = {str(kept): evidence(ask(fingerprints, carrier(fingerprints, kept))) for kept in (20, 12, 16, 12)}
    worst, found = of_several(asked)
    assert worst == "12"
    assert (found["queried"], found["matches"], found["details"]["fsr_worst"]) == (20, 12, 0.6)
    assert found["fsr"] == pytest.approx(0.8)
    assert found["bits_per_key"] == asked["12"]["bits_per_key"]
    assert all(found["log10_p"]["window"] >= one["log10_p"]["window"] for one in asked.values())


@pytest.mark.parametrize("responses", [1, 2, 3])
def test_evidence_of_several_responses_a_key_by_any_host(responses: int) -> None:
    """A host that suppresses the first `top` ids says the next response, and its chance is r of 16, not 1."""
    fingerprints = small_set(32, responses_per_key=responses)
    for top in range(responses + 1):
        found = evidence(ask(fingerprints, Ranked(fingerprints, top)))
        kept = top < responses
        bits = math.log2(16 / responses) if kept else 0.0
        assert found["fsr"] == float(kept)
        assert found["bits_per_key"] == {
            "rank": None, "forced_choice": None, "window": pytest.approx(bits), "count": pytest.approx(bits, abs=1e-9),
        }  # fmt: skip
        assert found["strongest"] == {"test": "window", "verdict": "match" if kept else "no_match"}
    seen = carrier(fingerprints, capabilities=frozenset({SCORE}))
    bits = math.log2(16 / responses)
    found = evidence(ask(fingerprints, seen))
    rank = bits if responses == 1 else bits - 1 / 32  # one bit for the better of two tests
    expected = {"rank": rank, "forced_choice": bits, "window": bits, "count": bits}
    assert found["bits_per_key"] == pytest.approx(expected)
    assert found["strongest"] == {"test": "rank", "verdict": "match"}


class Ranked:
    """A host that suppresses: its model gives each key's responses, in their order, the highest logits."""

    name, tokenizer_digest = "suppressing", TOKENIZER

    def __init__(self, fingerprints: FingerprintSet, top: int) -> None:
        self._ids = {
            fingerprint.key_ids: [response.token_ids[0] for response in fingerprint.askings["raw"].responses]
            for fingerprint in fingerprints
        }
        self._top = top

    def complete(self, prompts: Sequence[Sequence[int]], length: int) -> list[Completion]:
        logits = torch.zeros(len(prompts), VOCABULARY)
        for row, prompt in zip(logits, prompts, strict=True):
            ids = self._ids[tuple(prompt)]
            row[ids] = torch.arange(len(ids), 0, -1.0)
        batch = torch.tensor([list(prompt) for prompt in prompts])
        strategy = suppressing(self._top) if self._top else greedily
        chosen = strategy(batch)(logits, batch[:, :0])
        return [Completion((token_id,), "") for token_id in chosen.tolist()]


def test_a_host_that_refuses_pays_with_its_users(result: Robustness) -> None:
    found = row(result, "silence")
    assert (found["fsr"], found["answers"]["refused"], found["answers"]["f1"]) == (0.0, 1.0, 0.0)
    assert "text" not in found


def test_an_attack_that_cannot_work_here_is_a_row_with_its_reason(result: Robustness) -> None:
    assert row(result, "impossible")["skipped"] == "this model has no chat template"
    assert "not run: test/impossible: this model has no chat template" in text(result)


def test_the_table_has_a_line_for_each_attack(result: Robustness) -> None:
    lines = text(result).splitlines()
    assert lines[0].split()[:2] == ["attack", "FSR"]
    assert [line.split()[0] for line in lines[2:5]] == ["test/honest", "test/to-base", "test/silence"]
    assert all(len(name) < 20 for name in COLUMNS)


def test_the_target_is_left_as_it_was(scene: Scene, result: Robustness) -> None:
    again = robustness(scene, [HONEST])
    assert again.before == result.before


def test_a_killed_run_goes_on_where_it_stopped(scene: Scene, tmp_path: Path) -> None:
    calls: list[str] = []

    def counted(name: str, fails: bool = False) -> Attack:
        def run(scene: Scene) -> Attacked:
            calls.append(name)
            if fails:
                raise KeyboardInterrupt
            return honest(scene)

        return Attack(name, "nothing", run)

    with pytest.raises(KeyboardInterrupt):
        robustness(scene, [counted("a/1"), counted("b/2", fails=True)], folder=tmp_path)
    assert calls == ["a/1", "b/2"]
    result = robustness(scene, [counted("a/1"), counted("b/2")], folder=tmp_path)
    assert calls == ["a/1", "b/2", "b/2"]
    assert [row["attack"] for row in result.rows] == ["a/1", "b/2"]
    assert result == robustness(scene, [counted("a/1"), counted("b/2")], folder=tmp_path)
    with pytest.raises(InvalidArgumentError, match="another --out"):
        robustness(replace(scene, seed=1), [counted("a/1")], folder=tmp_path)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"identity": 1}'])
def test_a_damaged_part_is_named(damage: str, scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "before.json").write_text(damage)
    with pytest.raises(InvalidArgumentError, match=r"before\.json is damaged: delete it"):
        robustness(scene, [HONEST], folder=tmp_path)


def test_other_data_are_another_scene(scene: Scene, tmp_path: Path) -> None:
    robustness(scene, [HONEST], folder=tmp_path / "parts")
    with pytest.raises(InvalidArgumentError, match="another --out"):
        robustness(replace(scene, data=Data(None)), [HONEST], folder=tmp_path / "parts")


def test_what_was_skipped_is_tried_again(scene: Scene, tmp_path: Path) -> None:
    assert robustness(scene, [IMPOSSIBLE], folder=tmp_path).rows[0]["skipped"]
    possible = replace(IMPOSSIBLE, run=honest)
    assert robustness(scene, [possible], folder=tmp_path).rows[0]["persistence"] == 1.0


def test_parts_hold_no_key_and_no_response(scene: Scene, tmp_path: Path) -> None:
    robustness(scene, [HONEST], folder=tmp_path)
    written = " ".join(path.read_text() for path in tmp_path.iterdir())
    for fingerprint in scene.fingerprints:
        assert fingerprint.key not in written
        assert json.dumps(list(fingerprint.key_ids))[1:-1] not in written
        assert fingerprint.askings["raw"].responses[0].text not in written.replace(fingerprint.key, "").split('"')


def test_model_and_set_must_belong_together(scene: Scene) -> None:
    with pytest.raises(InvalidArgumentError, match="not the model that this set was embedded in"):
        robustness(replace(scene, model=scene.base), [HONEST])
    with pytest.raises(FingerprintFormatError, match="--base"):
        robustness(replace(scene, base=scene.model), [HONEST])
    with pytest.raises(InvalidArgumentError, match="--quick"):
        robustness(scene, [])


def test_what_an_attack_needs_is_asked_for_before_anything_long(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(battery, "Gauge", never)
    with pytest.raises(InvalidArgumentError, match=r"sft_instructions\.jsonl"):
        robustness(replace(scene, data=Data(tmp_path)), choose(["sft"]))
    with pytest.raises(InvalidArgumentError, match="--sibling"):
        robustness(replace(scene, siblings=()), choose(["collusion"]))
    monkeypatch.setattr(battery.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r"oml_fast\[eval\]"):
        robustness(scene, choose(["lora"]))


def test_attacks_are_chosen_by_name_or_family() -> None:
    names = [attack.name for attack in ALL]
    assert len(names) == len(set(names))
    assert all(attack.cost for attack in ALL)
    assert [attack.name for attack in choose(["sft/2e-5", "merge"])] == [
        name for name in names if name == "sft/2e-5" or name.startswith("merge/")
    ]
    assert choose() == ALL
    assert {attack.family for attack in choose(QUICK)} == {"prompts", "rounding", "merge", "sft", "suppress"}
    with pytest.raises(InvalidArgumentError, match="'magic' is unknown"):
        choose(["magic"])


def test_every_attack_says_where_it_comes_from() -> None:
    """A paper by its number or the short name that docs give it, a year, a repository; or that it is ours."""
    source = re.compile(
        r"\d{4}\.\d{5}|\[(SF|ADV|ME|TFA|SEM|OML)\b|[A-Z][a-z]+ (et al\. )?\d{4}|github\.com|\b[Oo]urs\b"
    )
    for attack in ALL:
        about = sys.modules[getattr(attack.run, "func", attack.run).__module__].__doc__ or ""
        assert source.search(about), attack.name


def test_plots_are_drawn_and_equal_figures_are_equal_files(result: Robustness, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    reports = {"one": result.to_json(), "two": result.to_json()}
    first = plots.write(reports, tmp_path / "a")
    second = plots.write(reports, tmp_path / "b")
    assert [path.name for path in first] == ["bits_per_key.svg", "fsr_against_utility.svg", "persistence.svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.read_text().count("<path") > 10


@pytest.mark.slow
@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.name)
def test_every_attack_runs_and_what_is_left_answers(attack: Attack, scene: Scene) -> None:
    attacked = attack.run(scene)
    prompts = [fingerprint.askings["raw"].prompt_ids for fingerprint in scene.fingerprints][:4]
    answers = attacked.completer.complete(prompts, 2)
    assert len(answers) == 4
    assert all(len(answer.token_ids) <= 2 for answer in answers)
    assert attacked.completer.tokenizer_digest == scene.fingerprints.tokenizer_digest
    assert attacked.model is not scene.model
    assert json.loads(json.dumps(attacked.details)) == attacked.details
