"""Forgeries, each made by hand: of form, header, algorithm, signature and claims."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from granting import (
    ATTACKER,
    BODY,
    CLAIMS,
    HEADER,
    KEY,
    MODEL,
    NOW,
    TOKEN,
    b64,
    hs256,
    read,
    refused,
    signed,
    token,
    unb64,
)

from oml_fast.errors import BadSignature, MalformedToken, PermissionDenied
from oml_fast.permission import MAX_LIFETIME
from oml_fast.permission.token import MOST_CHARACTERS, TYPE


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
    text = signed(HEADER | change, CLAIMS)
    refused(text, error)
    if "alg" in change:
        with pytest.raises(BadSignature, match="its algorithm is not EdDSA"):
            read(text)
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
