"""What OMLModel refuses before it computes anything: permissions that do not hold, and replays that are no retries."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from scenes import CHAT, KEY, NOW, OTHER, PROMPTS, Scene, failing, forcing
from torch import Tensor

from oml_fast import OMLModel
from oml_fast.errors import (
    BadSignature,
    ExpiredPermission,
    MalformedToken,
    NotYetValid,
    PermissionDenied,
    QuotaExceeded,
    ReplayedNonce,
    RevokedPermission,
    WrongModel,
    WrongRequest,
)
from oml_fast.permission import Limits

# What is refused, before anything is computed.

Refusal = tuple[Callable[[Scene], Any], type[PermissionDenied]]
REFUSALS: dict[str, Refusal] = {
    "no token": (lambda s: None, MalformedToken),
    "an empty one": (lambda s: "", MalformedToken),
    "no text": (lambda s: b"token", MalformedToken),
    "cut": (lambda s: s.token()[:-1], MalformedToken),
    "changed": (lambda s: s.token().replace(".", ".e", 1), PermissionDenied),
    "another signer": (lambda s: s.token(key=OTHER), BadSignature),
    "another issuer": (lambda s: s.token(issuer="Bolt"), BadSignature),
    "expired": (lambda s: s.token(now=NOW - 900, lifetime=60), ExpiredPermission),
    "not yet valid": (lambda s: s.token(not_before=NOW + 100), NotYetValid),
    "another model": (lambda s: s.token(models="ab" * 32), WrongModel),
    "paths": (lambda s: s.token(limits=Limits(paths=("/v1/completions",))), WrongRequest),
    "another body": (lambda s: s.token(limits=Limits(body_sha256=hashlib.sha256(b"x").hexdigest())), WrongRequest),
    "too few requests": (lambda s: s.token(limits=Limits(requests=1)), QuotaExceeded),
    "too few output tokens": (lambda s: s.token(limits=Limits(output_tokens=2 * 128 - 1)), QuotaExceeded),
    "too few of a single use": (lambda s: s.token("once", limits=Limits(output_tokens=255)), QuotaExceeded),
    "older than the store": (lambda s: s.token("once", now=NOW - 480), ReplayedNonce),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_refused_request_computes_nothing(scene: Scene, reason: str) -> None:
    make, error = REFUSALS[reason]
    oml = scene.oml(output_mark=failing)
    token = make(scene)
    with pytest.raises(error) as caught:
        oml.inference(["a", "b"], token)
    assert scene.forwards == 0
    assert "\n" not in str(caught.value)
    assert not token or str(token) not in str(caught.value)


def test_a_revocation_reaches_a_running_model(scene: Scene) -> None:
    oml, token = scene.oml(), scene.token(nonce="n" * 22)
    oml.inference("a", token, max_output_tokens=1)
    scene.change(lambda keys: keys.revoking("n" * 22, NOW))
    time.sleep(0.55)
    scene.forwards = 0
    with pytest.raises(RevokedPermission):
        oml.inference("a", token, max_output_tokens=1)
    scene.change(lambda keys: keys.revoking_key(KEY.verification_key.kid, NOW))
    with pytest.raises(RevokedPermission, match="the key that signed it is revoked"):
        scene.oml().inference("a", scene.token(), max_output_tokens=1)
    assert scene.forwards == 0


def test_a_session_that_was_accepted_expires(scene: Scene) -> None:
    oml, token = scene.oml(), scene.token(lifetime=60)
    oml.inference("a", token, max_output_tokens=1)
    scene.now += 91
    scene.forwards = 0
    with pytest.raises(ExpiredPermission):
        oml.inference("a", token, max_output_tokens=1)
    assert scene.forwards == 0


def test_a_path_is_what_the_caller_says(scene: Scene) -> None:
    token = scene.token(limits=Limits(paths=("/v1/completions",)))
    assert scene.oml().inference("a", token, max_output_tokens=1, path="/v1/completions")
    with pytest.raises(WrongRequest):
        scene.oml().inference("a", token, max_output_tokens=1, path="/v1/other")


# Single use: replays, retries, bodies.


def test_a_spent_nonce_is_spent_for_every_other_body_and_after_a_restart(scene: Scene) -> None:
    token = scene.token("once")
    scene.oml().inference("a", token, max_output_tokens=1)
    scene.forwards = 0
    for given, most in (("b", 1), ("a", 2), (["a"], 1), (CHAT, 1)):
        with pytest.raises(ReplayedNonce):
            scene.oml().inference(given, token, max_output_tokens=most)
    scene.now += 10.5
    with pytest.raises(ReplayedNonce):
        scene.oml().inference("a", token, max_output_tokens=1)
    assert scene.forwards == 0


@pytest.mark.parametrize("given", ["the terms", PROMPTS, CHAT], ids=["text", "list", "chat"])
def test_a_retry_gets_the_first_answer_and_generates_nothing(scene: Scene, given: Any) -> None:
    token = scene.token("once")
    first = scene.oml().inference(given, token, max_output_tokens=6)
    scene.forwards, scene.now = 0, NOW + 9.0
    assert scene.oml(output_mark=forcing(7)).inference(given, token, max_output_tokens=6) == first
    assert scene.forwards == 0


def test_a_retry_of_what_is_not_done_or_failed_is_a_replay(scene: Scene) -> None:
    token, seen = scene.token("once"), []

    def mark(licensee: str) -> Callable[[Tensor, Tensor], Tensor]:
        with pytest.raises(ReplayedNonce, match="the first request is not done: repeat it a little later"):
            oml.inference("a", token)
        seen.append(licensee)
        return failing(licensee)

    oml = scene.oml(output_mark=mark)
    with pytest.raises(RuntimeError, match="out of memory"):
        oml.inference("a", token)
    with pytest.raises(ReplayedNonce, match="the first answer was not kept: ask for a new one"):
        oml.inference("a", token)
    assert seen == ["Bolt"]


def test_a_token_is_bound_to_one_body(scene: Scene) -> None:
    body = OMLModel.body(["a", "é"], max_output_tokens=3)
    assert body == '{"input":["a","é"],"max_output_tokens":3}'.encode()
    assert OMLModel.body(("a", "é"), max_output_tokens=3) == body
    assert json.loads(OMLModel.body(CHAT)) == {"input": CHAT, "max_output_tokens": 128}
    limits = Limits(body_sha256=hashlib.sha256(body).hexdigest())
    oml, token = scene.oml(), scene.token("once", limits=limits)
    for given, most in (["a", "e"], 3), (["a", "é"], 4), ("a", 3):
        with pytest.raises(WrongRequest):
            oml.inference(given, token, max_output_tokens=most)
    assert scene.forwards == 0
    assert len(oml.inference(["a", "é"], token, max_output_tokens=3)) == 2  # nothing was spent by then
