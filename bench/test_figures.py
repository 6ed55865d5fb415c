"""figures.py: tables from result files, of a CPU and of a GPU, and README.md without what no GPU measured."""

from __future__ import annotations

from typing import Any

import pytest
from figures import HEADLINES, ON_A_GPU, conditions, full_tables, results, short_table

CPU_RUN = {"cpu": "A CPU", "cores": 2, "threads": 1, "torch": "2.9", "load_average": [0.5, 0, 0], "commit": "abc"}
GPU_RUN = CPU_RUN | {"device": "NVIDIA H100 80GB HBM3", "driver": "580.1", "cuda": "13.0"}


def result(run: dict[str, Any], name: str, met: bool | None) -> dict[str, Any]:
    row = {"figure": name, "setting": "here", "value": "2x", "bar": ">= 1x", "met": met, "command": "a | b"}
    return {"run": run, "figures": [row]}


def test_every_result_has_rows_and_conditions() -> None:
    for name, found in results().items():
        assert found["figures"], name
        assert conditions(found["run"])


def test_conditions_name_the_gpu() -> None:
    assert conditions(CPU_RUN).startswith("A CPU, 2 cores, 1 thread;")
    assert conditions(CPU_RUN | {"device": "cpu"}) == conditions(CPU_RUN)
    assert conditions(GPU_RUN).startswith("NVIDIA H100 80GB HBM3, driver 580.1, CUDA 13.0; A CPU, 2 cores")


def test_rows_of_a_gpu_are_shown_where_there_are_any() -> None:
    found = results()
    for name in ON_A_GPU:
        found.pop(name, None)
    without = short_table(found)
    part = HEADLINES["perinucleus_cuda"][0]
    measured = short_table(found | {"perinucleus_cuda": result(GPU_RUN, f"bytes {part}", True)})
    assert set(measured.splitlines()) - set(without.splitlines()) == {f"| bytes {part} | here | 2x | >= 1x |"}


def test_what_a_cpu_measures_must_be_there() -> None:
    found = results()
    del found["perinucleus"]
    with pytest.raises(KeyError, match="perinucleus"):
        short_table(found)


def test_a_missed_bar_is_told() -> None:
    table = full_tables({"one": result(CPU_RUN, "speed", False)})
    assert "| speed | here | 2x | >= 1x (not met) | `a \\| b` | abc |" in table
