"""The settings of a gate: what is read, and that what is wrong is named with the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from gating import MODEL, NAME

from oml_fast.errors import InvalidArgumentError
from oml_fast.permission import MAX_LIFETIME
from oml_fast.serving.gate_settings import GateSettings, read_gate_settings
from oml_fast.serving.routes import LICENSED
from oml_fast.settings import permissions_file

LEAST = {"owner_key": "owner.pub", "keys": "keys.jws", "store": "store.sqlite", "models": {NAME: MODEL}}


def written(folder: Path, **values: Any) -> Path:
    path = folder / "gate.yaml"
    path.write_text(yaml.safe_dump(LEAST | values))
    return path


def test_paths_are_relative_to_the_file_and_the_rest_has_defaults(tmp_path: Path) -> None:
    assert read_gate_settings(written(tmp_path)) == GateSettings(
        tmp_path / "owner.pub", tmp_path / "keys.jws", str(tmp_path / "store.sqlite"), {NAME: MODEL}
    )


def test_every_setting_is_read(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "owner_key": "/etc/owner.pub",
        "store": "postgresql://host/registry",
        "registry": "registry.sqlite",
        "metrics": "[::1]:9464",
        "routes": ["/v1/completions"],
        "tell_engine": False,
        "max_body_bytes": 4096,
        "body_seconds": 2,
        "max_lifetime": 3600,
    }
    found = read_gate_settings(written(tmp_path, **given))
    assert found == GateSettings(
        Path("/etc/owner.pub"),
        tmp_path / "keys.jws",
        "postgresql://host/registry",
        {NAME: MODEL},
        registry=str(tmp_path / "registry.sqlite"),
        metrics=("::1", 9464),
        routes=("/v1/completions",),
        tell_engine=False,
        max_body_bytes=4096,
        body_seconds=2.0,
        max_lifetime=3600,
    )


@pytest.mark.parametrize(
    ("setting", "value", "wanted"),
    [
        ("owner_key", 5, "no file: name one"),
        ("store", "", "no file: name one"),
        ("models", {}, "64 hex digits each"),
        ("models", {NAME: "AB" * 32}, "64 hex digits each"),
        ("models", {5: MODEL}, "64 hex digits each"),
        ("models", [MODEL], "64 hex digits each"),
        ("metrics", "9464", "127.0.0.1:9464"),
        ("metrics", "host:0", "127.0.0.1:9464"),
        ("metrics", "host:65536", "127.0.0.1:9464"),
        ("routes", [], "no list of some of"),
        ("routes", ["/v1/completions", "/pause"], "no list of some of"),
        ("routes", "/v1/completions", "no list of some of"),
        ("tell_engine", "no way", "neither true nor false"),
        ("max_body_bytes", 1023, "no whole number from 1,024"),
        ("max_body_bytes", True, "no whole number"),
        ("max_lifetime", MAX_LIFETIME + 1, "no whole number from 1 to"),
        ("body_seconds", 0, "no number of seconds"),
        ("body_seconds", float("nan"), "no number of seconds"),
        ("body_seconds", True, "no number of seconds"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, setting: str, value: Any, wanted: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"gate.yaml: {setting} is .*{wanted}"):
        read_gate_settings(written(tmp_path, **{setting: value}))


@pytest.mark.parametrize("name", ["enabled", "disable", "open", "Keys"])
def test_there_is_no_other_setting_and_none_that_switches_it_off(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{name} is unknown: the settings are owner_key, keys"):
        read_gate_settings(written(tmp_path, **{name: False}))


@pytest.mark.parametrize("missing", sorted(LEAST))
def test_a_setting_that_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in LEAST.items() if name != missing}))
    with pytest.raises(InvalidArgumentError, match=f"has no {missing}"):
        read_gate_settings(path)


def test_a_file_that_is_missing_or_no_mapping_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="OML_FAST_PERMISSIONS names no file"):
        read_gate_settings(None)
    with pytest.raises(InvalidArgumentError, match=r"cannot read the configuration .*gate\.yaml"):
        read_gate_settings(tmp_path / "gate.yaml")
    (tmp_path / "gate.yaml").write_text("- a\n")
    with pytest.raises(InvalidArgumentError, match="must be a mapping"):
        read_gate_settings(tmp_path / "gate.yaml")


def test_one_variable_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OML_FAST_PERMISSIONS", "/etc/gate.yaml")
    assert permissions_file() == Path("/etc/gate.yaml")


def test_the_licensed_routes_are_these() -> None:
    assert list(LICENSED) == ["/v1/completions", "/v1/chat/completions", "/v1/models"]
