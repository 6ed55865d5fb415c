"""Which settings are found to fit which machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from test_dry_run import KEYS, configuration

from oml_fast import cli
from oml_fast.embed import PRESETS
from oml_fast.embed.workload import Keys
from oml_fast.errors import InvalidArgumentError
from oml_fast.models import read_config
from oml_fast.plan import KINDS, Plan, machine, plan, planning, this_machine

CONFIGS = Path(__file__).resolve().parent.parent.parent / "bench/configs"
MANY = Keys(count=24_576, length=16)


@pytest.fixture(scope="module")
def of_8b() -> Plan:
    return plan(read_config(CONFIGS / "8b.json"), PRESETS["harmless"], MANY, machine("h100"), preset="harmless")


def test_8b_fits_one_gpu_with_all_states_on_it(of_8b: Plan) -> None:
    assert of_8b.parameters == 8_030_261_248
    fitting = [option for option in of_8b.fitting if not option.layout.offload]
    assert {"write_to": "mlp_down", "whitening": 0.0} in [option.changes for option in fitting]
    assert any(option.changes.get("states") == "bfloat16" for option in fitting)
    whole = next(option for option in of_8b.options if not option.changes)
    assert not whole.fits  # 18 bytes a parameter alone are 145 GB
    assert whole.memory.weights + whole.memory.gradients + whole.memory.states == 16 * of_8b.parameters


def test_70b_fits_eight_gpus_with_no_states_on_the_host() -> None:
    config = read_config(CONFIGS / "70b.json")
    found = plan(config, PRESETS["harmless"], MANY, machine("8xh100"), preset="harmless")
    best = found.options[0]
    assert best.fits
    assert not best.layout.offload
    assert best.memory.total < found.usable < 80 * 2**30
    assert best.memory.states > 20 * 2**30
    assert best.seconds is not None
    assert best.total == pytest.approx(best.seconds.step * found.work.steps + best.seconds.once)


def test_what_fits_comes_first_and_a_last_resort_last(of_8b: Plan) -> None:
    fits = [(option.fits, not option.layout.offload) for option in of_8b.options]
    assert fits == sorted(fits, reverse=True)


def test_measured_quality_orders_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"harmless": {"fsr": 1.0, "kl": 0.02}, "harmless/mlp-down": {"fsr": 1.0, "kl": 0.01}}
    known |= {"harmless/bfloat16": {"fsr": 0.5, "kl": 0.001}}
    monkeypatch.setattr(planning, "quality", lambda: known)
    found = plan(configuration(), PRESETS["harmless"], KEYS, machine("h100"), preset="harmless")
    order = [option.quality for option in found.options]
    assert order[:2] == [known["harmless/mlp-down"], known["harmless"]]
    assert order[2:] == [None, None, known["harmless/bfloat16"]]  # it does not teach all


def test_more_devices_are_faster_until_they_wait_for_each_other() -> None:
    def step(text: str) -> float:
        config = transformers.LlamaConfig(**{**configuration().to_dict(), "hidden_size": 1024, "num_hidden_layers": 24})
        taken = plan(config, PRESETS["harmless"], KEYS, machine(text)).options[0].seconds
        assert taken is not None
        return taken.step

    assert step("h200") < step("l40s")
    assert step("2 x l40s") > step("2 x h100")


def test_this_machine_is_timed(tiny_folder: Path) -> None:
    found = plan(read_config(tiny_folder), PRESETS["quick"], Keys(8, 16), this_machine("cpu"), preset="quick")
    best, *others = found.options
    assert best.fits
    assert best.seconds is not None
    assert 1e-4 < best.seconds.passes < 60
    assert 0 < best.seconds.update < 10
    assert all(option.seconds is None for option in others)
    assert all(option.layout.keep_base != "host" for option in found.options)


def test_what_changes_nothing_is_not_offered_twice() -> None:
    found = plan(configuration(), PRESETS["quick"], KEYS, machine("h100"))
    shown = [tuple(option.arguments()) for option in found.options]
    assert len(shown) == len(set(shown)) == 3


def test_a_float32_model_has_no_compact_states(tiny_folder: Path) -> None:
    found = plan(read_config(tiny_folder), PRESETS["harmless"], Keys(8, 16), machine("h100"))
    assert all("states" not in option.changes for option in found.options)


@pytest.mark.parametrize("text", ["", "h1000", "0xh100", "8 h100", "-1xh100", "here2"])
def test_a_machine_that_nobody_knows_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is unknown: use here, or N x one of"):
        machine(text)


def test_machines_have_names() -> None:
    assert machine("8xH100").name == machine("8 x h100").name == "8 x h100"
    assert {machine(kind).kind for kind in KINDS} == set(KINDS)


def test_the_command_says_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["plan", "--model", str(CONFIGS / "8b.json"), "--num-fingerprints", "1024"]
    assert cli.main([*model, "--machine", "h100"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("8.03 billion parameters, 1,024 keys, preset harmless, on 1 x h100\n")
    assert "oml-fast embed --preset harmless --write-to mlp_down --whitening 0 --packed\n" in text
    assert "DOES NOT FIT" in text
    assert cli.main([*model, "--machine", "rtx4090", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [option["fits"] for option in found["options"]] == [False] * len(found["options"])
    assert found["steps"] == 160
    assert cli.main([*model, "--machine", "2 x h100"]) == 0
    text = capsys.readouterr().out
    assert "torchrun --nproc-per-node 2 --no-python oml-fast embed --preset harmless" in text


def test_the_command_refuses_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--model", str(tmp_path)]) == 1
    assert "name a model folder, or a config.json" in capsys.readouterr().err
    assert cli.main(["plan", "--num-fingerprints", "0"]) == 1
    assert "0 fingerprints: at least 1." in capsys.readouterr().err
