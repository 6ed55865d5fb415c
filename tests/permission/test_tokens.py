"""Tokens: what is issued and what is accepted."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import fields
from typing import Any

import pytest
from granting import (
    BODY,
    CLAIMS,
    HEADER,
    ISSUER,
    KEY,
    MODEL,
    NOW,
    OTHER_MODEL,
    checker,
    parts,
    read,
    refused,
    signed,
    token,
)

from oml_fast import Permission, check, issue
from oml_fast.errors import InvalidArgumentError, MalformedToken, OmlError
from oml_fast.permission import LIFETIMES, MAX_LIFETIME, Limits, Request, jws
from oml_fast.permission.token import MOST_CHARACTERS, TYPE

FULL = Limits(5, 100, ("/v1/completions",), BODY)


def test_a_token_carries_what_was_granted() -> None:
    found = read(token(use="once", limits=FULL, not_before=NOW + 5, nonce="n" * 22, models=[MODEL, OTHER_MODEL]))
    assert found == Permission(
        ISSUER,
        "Bolt",
        (MODEL, OTHER_MODEL),
        NOW,
        NOW + 5,
        NOW + 5 + LIFETIMES["once"],
        "n" * 22,
        "once",
        FULL,
        KEY.verification_key.kid,
    )
    assert set(found.to_json()) == {field.name for field in fields(Permission)}
    assert found.to_json()["models"] == [MODEL, OTHER_MODEL]
    assert found.to_json()["limits"] == {
        "requests": 5,
        "output_tokens": 100,
        "paths": ["/v1/completions"],
        "body_sha256": BODY,
    }
    assert {"alg": "EdDSA", "kid": KEY.verification_key.kid, "typ": TYPE} == HEADER
    assert {
        "iss": ISSUER,
        "sub": "Bolt",
        "aud": MODEL,
        "iat": NOW,
        "nbf": NOW,
        "exp": NOW + 86_400,
        "jti": CLAIMS["jti"],
        "use": "session",
    } == CLAIMS


def test_nonces_are_drawn() -> None:
    drawn = {parts(token())[1]["jti"] for _ in range(100)}
    assert len(drawn) == 100
    assert all(len(nonce) == 32 and int(nonce, 16) >= 0 for nonce in drawn)  # none looks like an option of a command


def test_the_package_offers_it() -> None:
    assert callable(issue)
    assert callable(check)


def test_names_of_every_script() -> None:
    for name in ("Åke & Søn", "株式会社", "Κώστας", "a" * 200, "🦊"):
        assert read(token(licensee=name)).licensee == name


@pytest.mark.parametrize(
    "given",
    [
        {"licensee": ""},
        {"issuer": "a\nb"},
        {"models": []},
        {"models": ["ab"]},
        {"use": "twice"},
        {"lifetime": 0},
        {"lifetime": -5},
        {"lifetime": MAX_LIFETIME + 1},
        {"not_before": NOW + MAX_LIFETIME},
        {"nonce": "short"},
        {"limits": Limits(requests=0)},
        {"limits": Limits(paths=("v1",))},
        {"limits": Limits(paths=tuple(f"/{i}" + "a" * 190 for i in range(32)))},
        {"limits": Limits(body_sha256="ab")},
    ],
    ids=str,
)
def test_what_would_be_refused_is_never_issued(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        token(**given)


def test_nothing_of_a_token_stands_in_an_error_or_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    hidden = "Sesame-Sesame-Sesame-Sesame"
    for change in ({"sub": hidden + "\n"}, {"jti": hidden + "!"}, {"iss": [hidden]}, {hidden: 1}, {"aud": hidden}):
        with pytest.raises(OmlError) as caught:
            checker().admit(signed(HEADER, CLAIMS | change), request=Request(), now=NOW)
        assert hidden not in str(caught.value)
    twice = json.dumps(CLAIMS).encode().replace(b"{", f'{{"{hidden}": 1, "{hidden}": 2, '.encode(), 1)
    with pytest.raises(MalformedToken) as caught:
        read(signed(HEADER, twice))
    assert hidden not in str(caught.value)
    assert hidden not in caplog.text


@pytest.mark.parametrize(
    ("claims", "limits"),
    [
        ({"iss": "a" * 200, "sub": "b"}, {}),
        ({"aud": [f"{number:064x}" for number in range(16)]}, {}),
        ({"aud": [MODEL]}, {}),
        ({"iat": 0, "nbf": 0, "exp": 1}, {}),
        ({"nbf": 0}, {}),
        ({"exp": NOW + MAX_LIFETIME}, {}),
        ({"nbf": CLAIMS["exp"] - 1}, {}),
        ({"iat": 2**40 - 2, "nbf": 2**40 - 2, "exp": 2**40 - 1}, {}),
        ({"jti": "n" * 22}, {}),
        ({"jti": "-_" * 32}, {}),
        ({"use": "once"}, {}),
        ({}, {"requests": 1, "output_tokens": 1}),
        ({}, {"requests": 2**53 - 1, "output_tokens": 2**53 - 1}),
        ({}, {"paths": ["/" + "a" * 199]}),
        ({}, {"paths": [f"/{number}" for number in range(32)]}),
        ({}, {"paths": ["/v1/a.b~c:@!$&'()*+,;=-d", "/.a", "/..a/b"]}),
        ({}, {"body_sha256": BODY}),
    ],
    ids=str,
)
def test_claims_at_their_edges_are_read_as_they_are(claims: dict[str, Any], limits: dict[str, Any]) -> None:
    wanted = CLAIMS | claims | ({"limits": limits} if limits else {})
    found = read(signed(HEADER, wanted))
    assert (found.issuer, found.licensee) == (wanted["iss"], wanted["sub"])
    assert (found.issued_at, found.not_before, found.expires_at) == (wanted["iat"], wanted["nbf"], wanted["exp"])
    assert (found.nonce, found.use) == (wanted["jti"], wanted["use"])
    assert found.models == tuple([wanted["aud"]] if isinstance(wanted["aud"], str) else wanted["aud"])
    assert found.limits.claims() == limits
    assert found.limits.counted == bool({"requests", "output_tokens"} & set(limits))
    assert found.to_json()["limits"] == limits


@pytest.mark.parametrize(
    ("claims", "limits"),
    [
        ({"iat": 2**40 - 1, "nbf": 2**40 - 1, "exp": 2**40}, {}),
        ({"nbf": CLAIMS["exp"]}, {}),
        ({"iat": CLAIMS["exp"], "nbf": NOW}, {}),
        ({"exp": NOW, "nbf": NOW - 1}, {}),
        ({}, {"paths": ["/" + "a" * 200]}),
        ({}, {"paths": ["/a/."]}),
        ({}, {"paths": ["/a/.."]}),
        ({}, {"paths": ["/a/"]}),
        ({}, {"paths": ["/a", 7]}),
    ],
    ids=str,
)
def test_claims_beyond_their_edges_are_refused(claims: dict[str, Any], limits: dict[str, Any]) -> None:
    refused(signed(HEADER, CLAIMS | claims | ({"limits": limits} if limits else {})), MalformedToken)


def test_a_token_has_at_most_so_many_characters() -> None:
    raw = json.dumps(CLAIMS).encode()
    texts = {len(text): text for text in (signed(HEADER, raw + b" " * more) for more in range(2500, 3200))}
    assert read(texts[MOST_CHARACTERS]).nonce == CLAIMS["jti"]
    refused(texts[min(length for length in texts if length > MOST_CHARACTERS)], MalformedToken)


def test_what_is_just_short_enough_is_issued() -> None:
    """As many paths as fit: then what `issue` gives can be read."""
    for length in range(60, 200):
        paths = tuple(f"/{number:02}" + "a" * (length - 3) for number in range(32))
        try:
            text = token(limits=Limits(paths=paths))
        except InvalidArgumentError as error:
            assert "characters" in str(error)  # noqa: PT017
            break
        assert read(text).limits.paths == paths
    assert length > 70


def test_what_is_not_given_when_a_token_is_issued() -> None:
    before = int(time.time())
    found = read(issue(KEY, issuer=ISSUER, licensee="Bolt", models=[MODEL]))
    assert before <= found.issued_at <= time.time()
    assert (found.not_before, found.expires_at) == (found.issued_at, found.issued_at + LIFETIMES["session"])
    assert (found.models, found.use, found.limits) == ((MODEL,), "session", Limits())
    assert parts(token(models=[MODEL]))[1]["aud"] == MODEL
    assert "limits" not in parts(token(limits=Limits()))[1]
    early = read(token(not_before=NOW - 50, lifetime=600))
    assert (early.not_before, early.expires_at) == (NOW - 50, NOW + 600)
    late = read(token(not_before=NOW + 50, lifetime=600))
    assert (late.not_before, late.expires_at) == (NOW + 50, NOW + 650)


def test_no_key_is_made_of_what_a_token_brings() -> None:
    """PyJWT asks an algorithm for keys as JWKs, too; this one gives and takes none."""
    algorithm = jws._JWS.get_algorithm_by_name("EdDSA")
    with pytest.raises(NotImplementedError):
        algorithm.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": "AA"})
    with pytest.raises(NotImplementedError):
        algorithm.to_jwk(KEY)
    assert jws._JWS.get_algorithms() == ["EdDSA"]
