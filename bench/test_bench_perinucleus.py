"""bench_perinucleus: its baselines do what they are measured for, its rows hold the bars, and it runs when small."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import bench_perinucleus
import pytest
import torch
from baselines_sampling import batched_sort, published_perinucleus_rows
from bench_perinucleus import assert_agrees, assert_sort_agrees, bytes_a_row, figures, main, rows_timed, vocabulary
from shapes import LOGITS, VOCABULARIES, make_batch, make_logits

from oml_fast.ops import Perinucleus, perinucleus


def test_vocabularies_are_those_of_the_named_models() -> None:
    assert sorted(VOCABULARIES.values()) == [32_000, 49_152, 128_256, 151_936, 262_144]
    assert vocabulary("Llama-3.1-8B") == vocabulary("128,256") == ("Llama-3.1-8B", 128_256)
    assert vocabulary("777") == ("777", 777)
    with pytest.raises(ValueError, match="invalid literal"):
        vocabulary("no-such-model")


@pytest.mark.parametrize("rows", [1, 16, 21])
def test_batches_repeat_their_first_rows(rows: int) -> None:
    batch = make_batch("realistic", rows, 500, torch.bfloat16, "cpu")
    assert batch.shape == (rows, 500)
    assert batch.dtype == torch.bfloat16
    few = make_logits("realistic", min(rows, 16), 500, torch.bfloat16)
    assert all(torch.equal(batch[row], few[row % 16]) for row in range(rows))


@pytest.mark.parametrize("kind", LOGITS)
def test_the_sort_finds_the_perinucleus(kind: str) -> None:
    logits = make_logits(kind, 8, 3001)
    token_ids, probs, size = batched_sort(logits, 0.8, 5)
    right = perinucleus(logits, 0.8, 5, backend="reference")
    assert torch.equal(size, right.nucleus_size)
    assert torch.equal(token_ids, right.token_ids)
    torch.testing.assert_close(probs.double(), right.probs, rtol=1e-5, atol=0)
    for row, (ids, _) in enumerate(published_perinucleus_rows(logits, 0.8, 5)):
        assert torch.equal(ids, right.token_ids[row])


def test_what_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = make_batch("realistic", 20, 2000, torch.float32, "cpu")
    assert_agrees(logits, "torch")
    assert_sort_agrees(logits)

    def with_a_wrong_id(row: int, place: int) -> Any:
        def wrong(given: torch.Tensor, *arguments: Any, **keywords: Any) -> Perinucleus:
            right = perinucleus(given, *arguments, **keywords)
            if keywords["backend"] != "reference":
                right.token_ids[row, place] = 0
            return right

        return wrong

    for place in ((3, 2), (19, 0)):  # in a row that is compared with the reference, and in one with its twin
        monkeypatch.setattr(bench_perinucleus, "perinucleus", with_a_wrong_id(*place))
        with pytest.raises(AssertionError):
            assert_agrees(logits, "torch")


def test_long_sides_are_timed_on_fewer_rows() -> None:
    assert [rows_timed(name, 1024, "cpu") for name in ("native", "batched sort", "published loop")] == [1024, 128, 16]
    assert [rows_timed(name, 1024, "cuda") for name in ("cuda", "batched sort", "published loop")] == [1024, 1024, 16]
    assert rows_timed("published loop", 1, "cpu") == 1


def case(rows: int, seconds: dict[str, float], **more: Any) -> dict[str, Any]:
    times = {name: {"median": each, "minimum": each, "rows": rows} for name, each in seconds.items()}
    return {"vocab": 128_256, "rows": rows, "logits": "flat", "dtype": "float32", "seconds_per_row": times, **more}


def test_rows_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_perinucleus, "available", lambda _: ["native", "torch"])
    seconds = {"native": 1e-4, "torch": 1e-3, "published loop": 19e-4, "batched sort": 3e-4, "torch.topk": 5e-5}
    found = figures([case(16, seconds), case(128, {**seconds, "batched sort": 2e-4})], "cpu")
    shown = [(row.figure.removeprefix("perinucleus, times faster than "), row.value, row.met) for row in found]
    assert shown == [
        ("the published loop over rows", "19.00x", False),
        ("a batched sort", "2.00x", None),
        ("torch.topk (nearest operation)", "0.50x", None),
    ]
    assert found[1].setting.endswith("batches of 16, 128; least at 128")


def test_rows_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_perinucleus, "available", lambda _: ["cuda", "triton"])
    seconds = {"cuda": 1e-6, "triton": 2e-6, "published loop": 1e-3, "batched sort": 9e-7}
    found = figures([case(16, seconds), case(128, seconds, share_of_copy={"cuda": 0.61, "triton": 0.3})], "cuda")
    assert [(row.value, row.bar, row.met) for row in found] == [
        ("1000.00x", "", None),
        ("61%", ">= 60%", True),
        ("0.90x", ">= 1x", False),
    ]


def test_bytes_are_the_logits_and_the_results() -> None:
    columns = perinucleus(torch.randn(1, 1000), 0.8, bench_perinucleus.WIDTH)
    results = sum(column.nbytes for column in columns)
    assert bytes_a_row(1000, torch.float32) == 4000 + results
    assert bytes_a_row(1000, torch.bfloat16) == 2000 + results


def test_it_runs_and_writes_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "result.json"
    sizes = ["--rounds", "1", "--batch-sizes", "1", "17", "--vocabularies", "1500", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench_perinucleus.py", *sizes])
    main()
    found = json.loads(out.read_text())
    assert found["run"]["device"] == "cpu"
    assert found["run"]["threads"] == 1
    assert len(found["cases"]) == 2 * 2 * 2
    for one in found["cases"]:
        assert {"published loop", "batched sort", "torch.topk"} < one["seconds_per_row"].keys()
    for row in found["figures"]:
        assert row["command"].startswith("python bench/bench_perinucleus.py --rounds 1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_perinucleus.py", "--device", "cuda"])
    with pytest.raises(SystemExit, match="no CUDA device"):
        main()
