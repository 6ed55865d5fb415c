"""Tokens: what is accepted, and forgeries. Whatever comes, it is accepted or PermissionDenied."""

from __future__ import annotations

import json
import logging
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from granting import (
    ATTACKER,
    BODY,
    ISSUER,
    KEY,
    MODEL,
    NOW,
    OTHER_MODEL,
    b64,
    checker,
    hs256,
    parts,
    signed,
    token,
    unb64,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oml_fast import Permission, check, issue
from oml_fast.errors import BadSignature, InvalidArgumentError, MalformedToken, OmlError, PermissionDenied
from oml_fast.permission import LIFETIMES, MAX_LIFETIME, Limits, Request
from oml_fast.permission.token import MOST_CHARACTERS, TYPE, read_token

TOKEN = token()
HEADER, CLAIMS, SIGNATURE = parts(TOKEN)
FULL = Limits(5, 100, ("/v1/completions",), BODY)


def read(text: Any) -> Permission:
    return read_token(text, lambda kid: KEY.verification_key if kid == KEY.verification_key.kid else None)


def refused(text: Any, error: type[PermissionDenied]) -> None:
    with pytest.raises(error) as caught:
        read(text)
    assert type(caught.value) is error
    with pytest.raises(error):
        checker().admit(text, now=NOW)
    assert len(str(caught.value)) < 200


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


def test_pyjwt_alone_agrees() -> None:
    claims = jwt.decode(
        TOKEN,
        KEY.verification_key.pem(),
        algorithms=["EdDSA"],
        audience=MODEL,
        issuer=ISSUER,
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
    )
    assert claims == CLAIMS


def test_nonces_are_drawn() -> None:
    assert len({parts(token())[1]["jti"] for _ in range(100)}) == 100


def test_the_package_offers_it() -> None:
    assert callable(issue)
    assert callable(check)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "...",
        None,
        7,
        TOKEN.encode(),
        [TOKEN],
        TOKEN + "\n",
        " " + TOKEN,
        TOKEN + "=",
        TOKEN + ".",
        "Bearer " + TOKEN,
        TOKEN.replace(".", ".."),
        TOKEN.replace(".", " "),
        TOKEN.rpartition(".")[0],
        TOKEN.rpartition(".")[0] + ".",
        TOKEN[:-1],
        TOKEN[:-20],
        TOKEN[1:],
        TOKEN + "A",
        TOKEN.replace(TOKEN[-5], "é"),
        "\ud800" + TOKEN,
        "a" * MOST_CHARACTERS * 100,
        TOKEN.partition(".")[0] + "." + "A" * MOST_CHARACTERS + "." + TOKEN.rpartition(".")[2],
    ],
    ids=lambda text: type(text).__name__,
)
def test_what_is_no_token_is_refused(text: Any) -> None:
    refused(text, MalformedToken)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"alg": "none"}, BadSignature),
        ({"alg": "None"}, BadSignature),
        ({"alg": "HS256"}, BadSignature),
        ({"alg": "RS256"}, BadSignature),
        ({"alg": "Ed25519"}, BadSignature),
        ({"alg": "eddsa"}, BadSignature),
        ({"alg": None}, BadSignature),
        ({"alg": ["EdDSA"]}, BadSignature),
        ({"typ": "JWT"}, MalformedToken),
        ({"typ": "oml-permission-keys+jwt"}, MalformedToken),
        ({"typ": TYPE.upper()}, MalformedToken),
        ({"typ": None}, MalformedToken),
        ({"kid": "0" * 16}, BadSignature),
        ({"kid": ATTACKER.verification_key.kid}, BadSignature),
        ({"kid": 7}, MalformedToken),
        ({"kid": "../../etc/passwd"}, BadSignature),
        ({"crit": ["exp"]}, MalformedToken),
        ({"crit": []}, MalformedToken),
        ({"b64": False, "crit": ["b64"]}, MalformedToken),
        ({"jwk": {"kty": "OKP"}}, MalformedToken),
        ({"jku": "https://example.org"}, MalformedToken),
        ({"zip": "DEF"}, MalformedToken),
        ({"cty": "JWT"}, MalformedToken),
    ],
)
def test_headers_even_well_signed(change: dict[str, Any], error: type[PermissionDenied]) -> None:
    refused(signed(HEADER | change, CLAIMS), error)
    assert read(signed(HEADER, CLAIMS)).nonce == CLAIMS["jti"]


@pytest.mark.parametrize("name", ["alg", "kid", "typ"])
def test_a_header_that_lacks_something(name: str) -> None:
    refused(signed({each: value for each, value in HEADER.items() if each != name}, CLAIMS), MalformedToken)


def test_other_algorithms() -> None:
    """None, HS256 with what an attacker knows as its secret, and RS256, each with and without saying so."""
    public = KEY.verification_key
    for secret in (public.raw, public.hex().encode(), public.pem().encode(), b""):
        text = hs256(HEADER, CLAIMS, secret)
        refused(text, MalformedToken)  # its signature has another length
        refused(text + "A" * (86 - len(text.rpartition(".")[2])), BadSignature)
    unsigned = f"{b64(json.dumps(HEADER | {'alg': 'none'}).encode())}.{TOKEN.split('.')[1]}."
    refused(unsigned, MalformedToken)
    refused(unsigned + "A" * 86, BadSignature)
    rs256 = jwt.encode(
        CLAIMS, rsa.generate_private_key(65537, 2048), algorithm="RS256", headers=HEADER | {"alg": "RS256"}
    )
    refused(rs256, MalformedToken)
    refused(rs256[: rs256.rindex(".") + 86] + "A", BadSignature)


def test_signatures_of_others() -> None:
    refused(signed(HEADER, CLAIMS, ATTACKER), BadSignature)
    refused(signed(HEADER | {"kid": ATTACKER.verification_key.kid}, CLAIMS, ATTACKER), BadSignature)
    other = token(nonce="m" * 22)
    head, payload, _ = TOKEN.split(".")
    refused(f"{head}.{payload}.{other.rpartition('.')[2]}", BadSignature)
    refused(f"{head}.{other.split('.')[1]}.{TOKEN.rpartition('.')[2]}", BadSignature)


def test_a_signature_has_one_form() -> None:
    """S + L verifies with careless code; other trailing bits in base64url decode to the same bytes."""
    head, _, tail = TOKEN.rpartition(".")
    signature = unb64(tail)
    order = 2**252 + 27742317777372353535851937790883648493
    more = int.from_bytes(signature[32:], "little") + order
    refused(f"{head}.{b64(signature[:32] + more.to_bytes(32, 'little'))}", BadSignature)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = tail[:-1] + letters[letters.index(tail[-1]) ^ 1]
    assert unb64(twin) == signature
    refused(f"{head}.{twin}", MalformedToken)
    refused(f"{TOKEN.split('.')[0]}A{TOKEN[TOKEN.index('.') :]}", MalformedToken)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"{}",
        json.dumps(CLAIMS).encode() + b"x",
        json.dumps(CLAIMS).encode().replace(b"{", b'{"sub": "Mallory", ', 1),
        json.dumps(CLAIMS).encode().replace(b'"sub"', b'"s\\u0075b": "Mallory", "sub"', 1),
        json.dumps(CLAIMS).encode("utf-16"),
        json.dumps(CLAIMS).encode("utf-32"),
        b"\xef\xbb\xbf" + json.dumps(CLAIMS).encode(),
        json.dumps(CLAIMS).encode() + b"\xff",
        json.dumps(CLAIMS).encode().replace(b"Bolt", b"Bo\\ud800lt"),
        json.dumps(CLAIMS).encode().replace(str(NOW).encode(), b"NaN"),
        json.dumps(CLAIMS).encode().replace(str(NOW).encode(), b"Infinity"),
        json.dumps(CLAIMS).encode().replace(str(NOW).encode(), b"1e999"),
        json.dumps(CLAIMS).encode().replace(str(NOW).encode(), b"1" * 900),
        b"[" * 2900,
        b'{"a":' * 500,
    ],
    ids=lambda content: repr(content[:24]),
)
def test_payloads_even_well_signed(payload: bytes) -> None:
    text = signed(HEADER, payload)
    assert len(text) <= MOST_CHARACTERS
    refused(text, MalformedToken)


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_a_claim_that_lacks(name: str) -> None:
    refused(signed(HEADER, {each: value for each, value in CLAIMS.items() if each != name}), MalformedToken)


WRONG: dict[str, list[Any]] = {
    "iss": ["", " ", "a" * 201, "a\nb", "a\x00", "‮evil", "e\u0301", " Acme", 7, None, ["Acme"], {}],
    "sub": ["", "\t", "a" * 201, "zero\u200bwidth", "\udfff", True, 1.5, ["a"]],
    "aud": [
        "",
        "ab",
        "AB" * 32,
        MODEL + "\n",
        [],
        [MODEL, MODEL],
        [MODEL, 7],
        None,
        {MODEL: 1},
        [f"{i:064x}" for i in range(17)],
    ],
    "iat": [-1, 1.5, "1800000000", True, None, 2**40, 10**30, float(NOW), NOW + 86_400, NOW - MAX_LIFETIME],
    "nbf": [-1, 1.0, "now", False, None, 2**63, NOW + 86_400],
    "exp": [0, NOW, NOW - 1, 1.5, None, 2**64, NOW + MAX_LIFETIME + 1],
    "jti": ["", "short", "n" * 21, "n" * 65, "n" * 22 + "\n", "é" * 22, "n" * 22 + "=", 7, None, ["n" * 22]],
    "use": ["", "twice", "Session", None, 1, ["once"], True],
    "limits": [
        None,
        [],
        "none",
        {"request": 1},
        {"requests": 0},
        {"requests": -1},
        {"requests": True},
        {"requests": 1.0},
        {"requests": "5"},
        {"requests": 2**53},
        {"requests": None},
        {"output_tokens": 0},
        {"output_tokens": 2**64},
        {"body_sha256": "ab"},
        {"body_sha256": BODY.upper()},
        {"body_sha256": None},
        {"paths": []},
        {"paths": "/v1"},
        {"paths": ["v1"]},
        {"paths": ["/"]},
        {"paths": ["/v1/../admin"]},
        {"paths": ["/v1//a"]},
        {"paths": ["/v1/%2e"]},
        {"paths": ["/v1?a"]},
        {"paths": ["/v1/\n"]},
        {"paths": ["/" + "a" * 300]},
        {"paths": ["/a"] * 33},
        {"paths": [7]},
        {"paths": None},
    ],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values], ids=repr
)
def test_claims_even_well_signed(name: str, value: Any) -> None:
    refused(signed(HEADER, CLAIMS | {name: value}), MalformedToken)


@pytest.mark.parametrize("name", ["role", "scope", "azp", "", "ISS"])
def test_unknown_claims(name: str) -> None:
    refused(signed(HEADER, CLAIMS | {name: "x"}), MalformedToken)


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


def test_every_change_of_one_character_is_refused() -> None:
    accepted = []
    for place, old in enumerate(TOKEN):
        for new in {"A", "_", ".", "=", chr(ord(old) ^ 1)} - {old}:
            try:
                accepted.append(read(TOKEN[:place] + new + TOKEN[place + 1 :]))
            except PermissionDenied:
                continue
    assert accepted == []


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_tokens_are_refused_and_nothing_else(data: st.DataObject) -> None:
    """Cut, repeated, swapped, or replaced somewhere: never accepted, never another exception."""
    start = data.draw(st.integers(0, len(TOKEN)))
    end = data.draw(st.integers(start, len(TOKEN)))
    middle = data.draw(st.one_of(st.text(max_size=8), st.just(TOKEN), st.just(TOKEN[start:end] * 2)))
    text = TOKEN[:start] + middle + TOKEN[end:]
    if text != TOKEN:
        with pytest.raises(PermissionDenied):
            read(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*sorted(CLAIMS), "limits"]), JSON, st.booleans())
def test_any_claim_well_signed_is_read_or_refused(name: str, value: Any, in_limits: bool) -> None:
    claims = CLAIMS | ({"limits": {name: value}} if in_limits else {name: value})
    try:
        found = read(signed(HEADER, claims))
    except MalformedToken:
        return
    assert found.to_json()


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=400), st.binary(max_size=400)))
def test_noise_is_refused(noise: str | bytes) -> None:
    with pytest.raises(PermissionDenied):
        read(noise)


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
