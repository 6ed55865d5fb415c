"""OMLModel settles quotas, also among threads and after errors, and keeps no answer for long."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from scenes import END, NOW, PROMPTS, Scene, forcing
from torch import Tensor

from oml_fast.errors import QuotaExceeded, ReplayedNonce, StoreUnavailableError
from oml_fast.permission import Amount, Limits


def test_what_is_not_generated_is_given_back(scene: Scene) -> None:
    token = scene.token(limits=Limits(requests=5, output_tokens=100))
    oml = scene.oml(output_mark=forcing(300, END))
    oml.inference(["a", "b"], token, max_output_tokens=50)
    assert scene.taken(token) == Amount(2, 4)
    oml.inference(["a", "b"], token, max_output_tokens=48)
    assert scene.taken(token) == Amount(4, 8)
    with pytest.raises(QuotaExceeded):
        oml.inference(["a", "b"], token, max_output_tokens=1)
    with pytest.raises(QuotaExceeded):
        oml.inference("a", token, max_output_tokens=93)
    assert scene.taken(token) == Amount(4, 8)


@pytest.mark.parametrize("fault", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_after_an_error_all_is_given_back(scene: Scene, fault: BaseException) -> None:
    def mark(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
        raise fault

    token = scene.token(limits=Limits(requests=1, output_tokens=128))
    with pytest.raises(type(fault)):
        scene.oml(output_mark=mark).inference("a", token)
    assert scene.taken(token) == Amount(0, 0)
    assert isinstance(scene.oml().inference("a", token), str)


def test_threads_share_one_quota_and_one_nonce(scene: Scene) -> None:
    oml, once, session = scene.oml(), scene.token("once"), scene.token(limits=Limits(requests=3))

    def ask(token: str) -> Any:
        try:
            return oml.inference("the work", token, max_output_tokens=4)
        except (ReplayedNonce, QuotaExceeded) as refusal:
            return refusal

    with ThreadPoolExecutor(8) as threads:
        sessions = list(threads.map(ask, [session] * 8))
        scene.forwards = 0
        tries = list(threads.map(ask, [once] * 8))
    assert sum(isinstance(each, QuotaExceeded) for each in sessions) == 5
    answer = scene.expected(scene.encoded("the work"), 4)
    assert scene.forwards == 4 + 4  # one answer here, and one by transformers
    assert {each for each in sessions + tries if isinstance(each, str)} == {answer}
    assert all(isinstance(each, str | ReplayedNonce) for each in tries)


def test_one_answer_is_generated_at_a_time(scene: Scene) -> None:
    running, most = [], []

    def mark(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
        def process(ids: Tensor, logits: Tensor) -> Tensor:
            running.append(1)
            time.sleep(0.005)
            most.append(len(running))
            running.pop()
            return logits

        return process

    oml, token = scene.oml(output_mark=mark), scene.token()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda text: oml.inference(text, token, max_output_tokens=3), PROMPTS))
    assert set(most) == {1}


def test_an_answer_is_not_kept_for_longer_than_a_retry_may_come(scene: Scene, tmp_path: Path) -> None:
    oml = scene.oml()
    kept = []
    with closing(sqlite3.connect(tmp_path / "permissions.sqlite")) as file:
        for _ in range(2):
            oml.inference("a", scene.token("once"), max_output_tokens=1)
            kept.append(file.execute("SELECT kept_at FROM answers").fetchall())
            scene.now += 61
    assert kept == [[(NOW,)], [(NOW + 61,)]]


def test_without_its_store_it_answers_nothing_but_keeps_what_it_made(scene: Scene, tmp_path: Path) -> None:
    def mark(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
        (tmp_path / "permissions.sqlite").unlink()
        return lambda ids, logits: logits

    oml = scene.oml(output_mark=mark)
    assert oml.inference("a", scene.token("once"), max_output_tokens=1)
    scene.forwards = 0
    with pytest.raises(StoreUnavailableError, match="was removed or replaced"):
        oml.inference("a", scene.token("once"), max_output_tokens=1)
    assert scene.forwards == 0
