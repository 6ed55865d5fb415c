"""Headers and payloads of every wrong structure, to be signed by anybody, and signatures of other kinds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, padding, rsa
from granting import ATTACKER, CLAIMS, HEADER, MODEL, NOW, b64, hs256, signed

from oml_fast.signing import SigningKey

VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "minus one": -1,
    "a fraction": 1.5,
    "a huge number": 10**400,
    "no text": "",
    "a text": "x",
    "a huge text": "x" * 2000,
    "a zero byte": "a\x00b",
    "no list": [],
    "a list of it": "LIST",
    "a long list": [MODEL] * 40,
    "an object": {"a": 1},
    "a deep list": json.loads("[" * 200 + "]" * 200),
}
_JWK = {"kty": "OKP", "crv": "Ed25519", "x": b64(ATTACKER.verification_key.raw)}
_ALGORITHMS = (
    *("none", "None", "NONE", "nOnE", "", "HS256", "HS384", "HS512", "RS256", "PS256", "ES256", "ES256K", "ES512"),
    *("Ed25519", "Ed448", "eddsa", "EDDSA", "EdDSA ", "EdDSA\x00", "Ed25519ph", "dir", "A128KW", "ECDH-ES"),
)
_GOOD = {("aud", "a list of it"), ("iss", "a text"), ("sub", "a text"), ("nbf", "zero")}  # may stand there
_MORE: dict[str, Any] = {
    "crit of exp": {"crit": ["exp"]},
    "crit of nothing": {"crit": []},
    "crit as text": {"crit": "exp"},
    "crit of itself": {"crit": ["crit"]},
    "b64 false": {"b64": False, "crit": ["b64"]},
    "b64 true": {"b64": True},
    "zip": {"zip": "DEF"},
    "cty": {"cty": "JWT"},
    "jwk": {"jwk": _JWK},
    "jku": {"jku": "https://example.org/keys"},
    "x5u": {"x5u": "https://example.org/chain"},
    "x5c": {"x5c": ["MIIB"]},
    "x5t": {"x5t": "abc"},
    "x5t#S256": {"x5t#S256": "abc"},
    "exp": {"exp": NOW + 10**9},
    "an empty name": {"": 1},
    "alg in capitals, too": {"ALG": "EdDSA"},
    "a nested header": {"header": HEADER},
}
_NEW_CLAIMS = ("role", "scope", "azp", "act", "cnf", "nonce", "ISS", "", "limit", "__proto__", "kid", "alg", "jwk")


def headers(kid: str) -> dict[str, dict[str, Any] | bytes]:
    """Wrong headers that name the key `kid`, where they name any."""
    good = HEADER | {"kid": kid}
    raw = json.dumps(good).encode()
    found: dict[str, dict[str, Any] | bytes] = {f"alg {value!r}": good | {"alg": value} for value in _ALGORITHMS}
    found |= {name: good | more for name, more in _MORE.items()}
    found |= {f"no {name}": {each: good[each] for each in good if each != name} for name in good}
    found |= {f"{name} is {what}": good | {name: _filled(value, good[name])} for name, what, value in _each(good)}
    found |= {
        "typ of a list of keys": good | {"typ": "oml-permission-keys+jwt"},
        "typ JWT": good | {"typ": "JWT"},
        "kid of a file": good | {"kid": f"../{kid}"},
        "kid with a space": good | {"kid": f"{kid} "},
        "kid in capitals": good | {"kid": kid.upper() + "X"},
        "alg twice": raw.replace(b"{", b'{"alg": "none", ', 1),
        "kid twice": raw.replace(b"{", b'{"kid": "x", ', 1),
        "alg twice, once escaped": raw.replace(b"{", b'{"\\u0061lg": "none", ', 1),
        **_no_objects(raw),
    }
    return found


def payloads() -> dict[str, dict[str, Any] | bytes]:
    """Wrong claims: each one missing, of other types, too large, twice, or new; and what is no JSON object."""
    raw = json.dumps(CLAIMS).encode()
    found: dict[str, dict[str, Any] | bytes] = {
        f"no {name}": {each: CLAIMS[each] for each in CLAIMS if each != name} for name in CLAIMS
    }
    found |= {
        f"{name} is {what}": CLAIMS | {name: _filled(value, CLAIMS[name])}
        for name, what, value in _each(CLAIMS)
        if (name, what) not in _GOOD
    }
    found |= {f"a claim {name!r}": CLAIMS | {name: "x"} for name in _NEW_CLAIMS}
    found |= {f"limits are {what}": CLAIMS | {"limits": value} for what, value in VALUES.items()}
    limits = ("requests", "output_tokens", "paths", "body_sha256", "new")
    found |= {
        f"limits of {name} are {what}": CLAIMS | {"limits": {name: value}}
        for name in limits
        for what, value in VALUES.items()
    }
    twice = (f'{{"{name}": {json.dumps(value)}, '.encode() for name, value in CLAIMS.items())
    found |= {f"{name} twice": raw.replace(b"{", more, 1) for name, more in zip(CLAIMS, twice, strict=True)}
    now = str(NOW).encode()
    odd = (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0", b"0x10", b"01", b"1_8", b"1" * 900, b"1.8e9", b"+1", b"")
    found |= {f"a time {number[:9]!r}": raw.replace(now, number, 1) for number in odd}
    found |= {
        "half a character": raw.replace(b"Bolt", b"Bo\\ud800lt"),
        "a zero byte in a name": raw.replace(b'"sub"', b'"sub\\u0000"'),
        "a huge claim": CLAIMS | {"sub": "x" * 10**6},
        "ten thousand claims": CLAIMS | {f"c{number}": number for number in range(10_000)},
        "objects in objects": b'{"a":' * 900 + b"1" + b"}" * 900,
        "objects in objects, too many": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
        "two objects": raw + raw,
        "a token in a token": signed(HEADER, CLAIMS, ATTACKER).encode(),
        **_no_objects(raw),
    }
    return found


def spelled_otherwise() -> dict[str, bytes]:
    """The same claims in other letters: good where the owner signed them."""
    raw = json.dumps(CLAIMS)
    return {
        "with spaces": json.dumps(CLAIMS, indent=4).encode(),
        "in another order": json.dumps(dict(reversed(CLAIMS.items()))).encode(),
        "escaped": raw.replace("Bolt", "\\u0042olt").encode(),
        "with line ends around": f"\r\n\t {raw} \n".encode(),
    }


def other_signatures() -> Iterator[str]:
    """Signed by other algorithms, by whoever knows the verification key, with what the header says of them."""
    public = ATTACKER.verification_key
    for secret in (public.raw, public.hex().encode(), public.pem().encode(), b""):
        yield hs256(HEADER, CLAIMS, secret)
    rsa_key, es_key, other_curve = (
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP256R1()),
        (ed448.Ed448PrivateKey.generate()),
    )
    for algorithm in ("none", "EdDSA", "RS256", "ES256", "Ed448"):
        head = b64(json.dumps(HEADER | {"alg": algorithm}).encode())
        message = f"{head}.{b64(json.dumps(CLAIMS).encode())}"
        made = (
            b"",
            bytes(64),
            b"\x01" + bytes(63),
            rsa_key.sign(message.encode(), padding.PKCS1v15(), hashes.SHA256()),
            es_key.sign(message.encode(), ec.ECDSA(hashes.SHA256())),
            other_curve.sign(message.encode()),
        )
        for signature in made:
            yield f"{message}.{b64(signature)}"
            yield f"{message}.{b64(signature[:64])}"


def tokens(key: SigningKey, kid: str) -> Iterator[tuple[str, str]]:
    """Every wrong structure in a token signed by `key`, under the name `kid`: what is wrong, and the token."""
    good = HEADER | {"kid": kid}
    for name, header in headers(kid).items():
        yield f"header: {name}", signed(header, CLAIMS, key)
    for name, payload in (payloads() | spelled_otherwise()).items():
        yield f"payload: {name}", signed(good, payload, key)
    yield "nothing but the key", signed(good, CLAIMS, key)


def _each(good: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every value for every name."""
    for name in good:
        for what, value in VALUES.items():
            yield name, what, value


def _filled(value: Any, own: Any) -> Any:
    return [own] if value == "LIST" else value


def _no_objects(raw: bytes) -> dict[str, bytes]:
    return {
        "nothing": b"",
        "null": b"null",
        "a number": b"7",
        "a text": b'"text"',
        "a list": b"[" + raw + b"]",
        "cut short": raw[:-1],
        "more behind": raw + b"}",
        "a comment": b"/**/" + raw,
        "a comma too many": raw[:-1] + b",}",
        "single quotes": raw.replace(b'"', b"'"),
        "a byte order mark": b"\xef\xbb\xbf" + raw,
        "UTF-16": raw.decode().encode("utf-16"),
        "UTF-32": raw.decode().encode("utf-32"),
        "no UTF-8": raw[:-2] + b'\xff"}',
        "lists in lists": b"[" * 2900,
    }
