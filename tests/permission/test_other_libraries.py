"""What others say of the same tokens: PyJWT, joserfc, and the vectors of Wycheproof on the way that tokens take."""

from __future__ import annotations

import json
import random
import warnings
from collections import Counter
from pathlib import Path

import jwt
import pytest
import structures
from granting import (
    ATTACKER,
    CLAIMS,
    HEADER,
    ISSUER,
    KEY,
    KID,
    KINDS,
    MODEL,
    TEST_ALL,
    TOKEN,
    b64,
    key_list,
    signed,
)
from joserfc import jws as joserfc_jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import KeySet, OKPKey
from spoiling import spoil

from oml_fast import settings
from oml_fast.errors import PermissionDenied, SignatureError
from oml_fast.permission import jws
from oml_fast.permission.token import MOST_CHARACTERS, TYPE
from oml_fast.signing import VerificationKey

MUTATED = 20_000 if TEST_ALL else 1_000
KEYS = KeySet.import_key_set(key_list().jwks())
# Headers with a signature that holds, which joserfc accepts and we do not, and why we do not.
STRICTER = {
    "crit of nothing": "RFC 7515, 4.1.11: crit must not be empty",
    "crit of itself": "RFC 7515, 4.1.11: crit names no parameter of the RFC itself",
    "b64 false": "a permission is never signed as it stands (RFC 7797); nothing but alg, kid and typ may stand there",
    "b64 true": "nothing but alg, kid and typ may stand there",
    "cty": "nothing but alg, kid and typ may stand there",
    "jwk": "a key that a token brings along is nobody's",
    "jku": "no key is fetched",
    "x5u": "no key is fetched",
    "x5c": "a key that a token brings along is nobody's",
    "x5t": "nothing but alg, kid and typ may stand there",
    "x5t#S256": "nothing but alg, kid and typ may stand there",
    "no kid": "the list of keys says by its kid whether a key may sign",
    "no typ": "a token says that it is a permission (RFC 8725, 3.11)",
    "typ JWT": "another kind of token is no permission (RFC 8725, 3.11)",
    "typ of a list of keys": "another kind of signed text is no permission (RFC 8725, 3.11)",
    "alg twice": "RFC 7515, 4: names in a header are unique",
    "kid twice": "RFC 7515, 4: names in a header are unique",
    "alg twice, once escaped": "RFC 7515, 4: names in a header are unique",
    "UTF-16": "RFC 7515, 5.2: a header is UTF-8",
    "UTF-32": "RFC 7515, 5.2: a header is UTF-8",
    "a byte order mark": "RFC 8259, 8.1: no byte order mark",
    **dict.fromkeys(
        (f"typ is {what}" for what in ("no text", "a text", "a zero byte")),
        "another kind of signed text is no permission (RFC 8725, 3.11)",
    ),
}


def ours(text: str) -> bool:
    """Whether we say that the signature holds."""
    try:
        jws.read(text, TYPE, MOST_CHARACTERS, lambda kid: KEY.verification_key if kid == KID else None)
    except PermissionDenied:
        return False
    return True


def theirs(text: str) -> bool:
    """Whether joserfc says so, with the same keys and the one algorithm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # RFC 9864 prefers the name Ed25519; RFC 8037's is in use
        try:
            joserfc_jws.deserialize_compact(text, KEYS, algorithms=["EdDSA"])
        except Exception:  # not its own errors alone: of a kid that it has not, or of what is no text
            return False
    return True


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


@pytest.mark.parametrize("name", KINDS)
def test_joserfc_reads_what_is_issued(name: str) -> None:
    text = KINDS[name].token()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)
        read = joserfc_jws.deserialize_compact(text, KEYS, algorithms=["EdDSA"])
    assert (read.headers(), json.loads(read.payload)["use"]) == (HEADER, KINDS[name].use)
    assert ours(text)


def test_joserfc_agrees_on_mutated_tokens() -> None:
    """On what was issued, and on what was changed at random: of each of these there is no exception."""
    rng, issued = random.Random(7), [kind.token() for kind in KINDS.values()]  # noqa: S311
    verdicts = Counter[bool]()
    for _ in range(MUTATED):
        text = rng.choice(issued) if rng.random() < 0.1 else spoil(rng, rng.choice(issued), rng.choice(issued))
        assert ours(text) == theirs(text), text
        verdicts[ours(text)] += 1
    assert min(verdicts.values()) > 0.05 * MUTATED


def test_joserfc_agrees_on_every_structure_that_somebody_else_signed() -> None:
    texts = [text for kid in (KID, ATTACKER.verification_key.kid) for _, text in structures.tokens(ATTACKER, kid)]
    for text in [*texts, *structures.other_signatures()]:
        assert not ours(text)
        assert not theirs(text), text[:200]


def test_joserfc_agrees_on_every_payload_or_we_are_stricter() -> None:
    """The signature holds, whatever it is of; but an empty payload, or one that is too long, is not looked at."""
    payloads = structures.payloads() | structures.spelled_otherwise() | {"good": CLAIMS}
    texts = {name: signed(HEADER, payload) for name, payload in payloads.items()}
    disagreed = {name for name, text in texts.items() if theirs(text) and not ours(text)}
    assert {name for name in disagreed if len(texts[name]) <= MOST_CHARACTERS} == {"nothing"}
    assert all(theirs(text) for text in texts.values() if ours(text))
    assert all(len(text) > MOST_CHARACTERS for text in texts.values() if not theirs(text))  # joserfc has a limit, too
    assert sum(ours(text) for text in texts.values()) > 200


def test_joserfc_agrees_on_headers_or_we_are_stricter() -> None:
    disagreed = set()
    for name, header in structures.headers(KID).items():
        text = signed(header, CLAIMS)
        assert not ours(text), name
        if theirs(text):
            disagreed.add(name)
    assert disagreed == set(STRICTER)


def wycheproof() -> list[tuple[VerificationKey, bytes, bytes, bool]]:
    """Key, message, signature, and whether it holds."""
    folder = settings.data_dir() or Path(__file__).resolve().parents[3] / "shared" / "data"
    path = folder / "wycheproof_ed25519_test.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not in {folder}: name its folder with OML_FAST_DATA")
    return [
        (
            VerificationKey(bytes.fromhex(group["publicKey"]["pk"])),
            *(bytes.fromhex(case[name]) for name in ("msg", "sig")),
            case["result"] == "valid",
        )
        for group in json.loads(path.read_text())["testGroups"]
        for case in group["tests"]
    ]


class OfAnotherMessage(VerificationKey):
    """A key that is asked for a token's signature, and looks at the message of a vector: the rest is as ever."""

    message = b""

    def check(self, message: bytes, signature: bytes) -> None:
        super().check(self.message, signature)


def test_the_vectors_of_wycheproof_in_tokens() -> None:
    """Each signature on its way through a token: base64url, PyJWT, our algorithm, the key."""
    head, payload = b64(json.dumps(HEADER).encode()), b64(json.dumps(CLAIMS).encode())
    verdicts = Counter[bool]()
    for key, message, signature, valid in wycheproof():
        asked = type("Vector", (OfAnotherMessage,), {"message": message, "__slots__": ()})(key.raw)
        text = f"{head}.{payload}.{b64(signature)}"
        try:
            jws.read(text, TYPE, MOST_CHARACTERS, lambda _, asked=asked: asked)  # type: ignore[misc]
            accepted = True
        except PermissionDenied:
            accepted = False
        assert accepted == valid, (message, signature)
        verdicts[valid] += 1
    assert min(verdicts.values()) > 50


def test_all_agree_on_the_vectors_of_wycheproof() -> None:
    pyjwt = jwt.algorithms.OKPAlgorithm()
    for key, message, signature, valid in wycheproof():
        raw = {"kty": "OKP", "crv": "Ed25519", "x": b64(key.raw)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)
            algorithm = joserfc_jws.JWSRegistry(algorithms=["EdDSA"]).get_alg("EdDSA")
        assert algorithm.verify(message, signature, OKPKey.import_key(raw)) == valid
        assert pyjwt.verify(message, pyjwt.prepare_key(key.pem()), signature) == valid
        try:
            key.check(message, signature)
            assert valid
        except SignatureError:
            assert not valid
