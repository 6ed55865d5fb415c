"""Signing keys are kept, never overwritten, never told; a signed document shows any change."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oml_fast import settings
from oml_fast.errors import InvalidArgumentError, OmlError, SignatureError
from oml_fast.signing import (
    SigningKey,
    VerificationKey,
    canonical_json,
    check_document,
    is_encrypted,
    new_signing_key,
    parse_json,
    parse_verification_key,
    read_signing_key,
    read_verification_key,
    sign_document,
    write_signing_key,
)

KEY, OTHER = new_signing_key(), new_signing_key()
TRUSTED = KEY.verification_key
DOCUMENT = {"format": 1, "verdict": "match", "p": 1e-7, "rows": [{"key": "é", "match": True}, None], "empty": {}}
SIGNED = sign_document(DOCUMENT, KEY)
PASSPHRASE = "correct horse"  # noqa: S105 - a test's own
ROOT = Path(__file__).resolve().parent.parent

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "owner.pem"
    write_signing_key(path, KEY)
    return path


def refused(document: Any, trusted: VerificationKey | None = TRUSTED) -> str:
    with pytest.raises(SignatureError) as caught:
        check_document(document, trusted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unreadable(path: Path, passphrase: str | None = None) -> str:
    with pytest.raises(SignatureError) as caught:
        read_signing_key(path, passphrase)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert PASSPHRASE not in message
    return message


def test_what_is_written_is_read_by_its_owner_alone(file: Path) -> None:
    assert read_signing_key(file).verification_key == TRUSTED
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().startswith("-----BEGIN PRIVATE KEY-----")


def test_kid_is_the_beginning_of_the_digest() -> None:
    assert hashlib.sha256(TRUSTED.raw).hexdigest()[:16] == TRUSTED.kid
    assert KEY.verification_key.kid != OTHER.verification_key.kid


def test_a_signing_key_prints_as_its_kid(file: Path) -> None:
    private = KEY._private.private_bytes_raw().hex()
    assert repr(KEY) == str(KEY) == f"SigningKey(kid='{TRUSTED.kid}')"
    assert private not in repr(KEY)


def test_an_existing_file_is_never_overwritten(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(InvalidArgumentError, match=r"already exists.*--out"):
        write_signing_key(file, OTHER)
    assert file.read_bytes() == before


def test_a_link_that_leads_nowhere_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidArgumentError):
        write_signing_key(tmp_path / "link", KEY)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OmlError, match="cannot write"):
        write_signing_key(tmp_path / "file" / "key", KEY)


def test_an_encrypted_key_opens_with_its_passphrase_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_signing_key(path, KEY, PASSPHRASE)
    assert is_encrypted(path)
    assert read_signing_key(path, PASSPHRASE).verification_key == TRUSTED
    assert "its passphrase" in unreadable(path)
    assert "its passphrase" in unreadable(path, "")
    assert "its passphrase is another" in unreadable(path, PASSPHRASE + " ")


def test_an_empty_passphrase_encrypts_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="empty"):
        write_signing_key(tmp_path / "key", KEY, "")
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o666, 0o777, 0o610, 0o601])
def test_a_key_that_others_can_reach_is_refused(file: Path, mode: int) -> None:
    os.chmod(file, mode)
    assert f"chmod 600 {file}" in unreadable(file)


def test_a_key_cut_short_anywhere_is_refused(file: Path) -> None:
    whole = file.read_bytes().rstrip()
    for place in range(0, len(whole), 5):
        file.write_bytes(whole[:place])
        unreadable(file)


NO_KEYS = [b"", b"\xff" * 40, bytes(32), TRUSTED.pem().encode(), TRUSTED.hex().encode()]


@pytest.mark.parametrize("content", NO_KEYS, ids=["empty", "bytes", "zeros", "public PEM", "public hex"])
def test_what_is_no_signing_key_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    unreadable(file)


def test_a_missing_key_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "oml-fast keygen" in unreadable(tmp_path / "none")
    unreadable(tmp_path)


@pytest.mark.parametrize("kind", ["rsa", "x25519", "ed448"])
def test_keys_of_other_kinds_are_refused(tmp_path: Path, kind: str) -> None:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ed448, rsa, x25519

    private = {
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "x25519": x25519.X25519PrivateKey.generate,
        "ed448": ed448.Ed448PrivateKey.generate,
    }[kind]()
    path = tmp_path / "key"
    path.write_bytes(private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    path.chmod(0o600)
    assert "another kind" in unreadable(path)
    public = private.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo).decode()
    with pytest.raises(SignatureError, match="another kind"):
        parse_verification_key(public)


def test_a_verification_key_is_read_as_pem_and_as_hex(tmp_path: Path) -> None:
    for text in (TRUSTED.pem(), TRUSTED.hex(), TRUSTED.hex() + "\n"):
        (tmp_path / "key.pub").write_text(text)
        assert read_verification_key(tmp_path / "key.pub") == TRUSTED


BAD_KEYS = ["", "00" * 31, "00" * 33, "zz" * 32, TRUSTED.hex().upper(), "-----BEGIN", "é" * 32]


@pytest.mark.parametrize("text", BAD_KEYS, ids=["empty", "short", "long", "no hex", "capitals", "PEM cut", "accents"])
def test_what_is_no_verification_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "key.pub").write_text(text)
    with pytest.raises(SignatureError, match=r"key\.pub"):
        read_verification_key(tmp_path / "key.pub")


def test_a_signing_key_in_the_place_of_a_verification_key_is_told(file: Path) -> None:
    with pytest.raises(SignatureError, match="keep it to yourself"):
        read_verification_key(file)


def test_raw_bytes_of_another_length_are_no_key() -> None:
    for count in (0, 31, 33, 64):
        with pytest.raises(SignatureError, match="32 bytes"):
            VerificationKey(bytes(count))


def test_the_ed25519_vectors_of_wycheproof() -> None:
    path = (settings.data_dir() or ROOT.parent / "shared" / "data") / "wycheproof_ed25519_test.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not here: name its folder with OML_FAST_DATA")
    checked = 0
    for group in json.loads(path.read_text())["testGroups"]:
        key = VerificationKey(bytes.fromhex(group["publicKey"]["pk"]))
        for case in group["tests"]:
            message, signature = bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"])
            if case["result"] == "valid":
                key.check(message, signature)
            else:
                with pytest.raises(SignatureError):
                    key.check(message, signature)
            checked += 1
    assert checked > 100


def test_a_signed_document_is_checked_after_its_way_through_a_file() -> None:
    read = parse_json(json.dumps(SIGNED, indent=2), "the report")
    assert check_document(read, TRUSTED) == check_document(read, None) == TRUSTED.kid
    assert {name: value for name, value in read.items() if name != "signature"} == DOCUMENT


def test_signing_changes_nothing_of_the_document_and_repeats() -> None:
    before = deepcopy(DOCUMENT)
    assert sign_document(DOCUMENT, KEY) == SIGNED
    assert before == DOCUMENT


@given(document=st.dictionaries(st.text().filter("signature".__ne__), json_values, max_size=4))
def test_any_json_object_can_be_signed(document: dict[str, Any]) -> None:
    try:
        canonical_json(document)
    except InvalidArgumentError:  # half a character
        with pytest.raises(InvalidArgumentError):
            sign_document(document, KEY)
        return
    signed = json.loads(json.dumps(sign_document(document, KEY)))
    assert check_document(signed, TRUSTED) == TRUSTED.kid


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "no_match"}, {"p": 1e-8}, {"p": "1e-07"}, {"format": 1.0}, {"format": True}, {"rows": []},
        {"rows": DOCUMENT["rows"][::-1]}, {"empty": []}, {"empty": None}, {"new": None}, {"": ""},
    ],
    ids=str,
)  # fmt: skip
def test_a_changed_or_added_field_is_refused(change: dict[str, Any]) -> None:
    assert "was changed" in refused({**SIGNED, **change})
    refused({**SIGNED, **change}, None)


@pytest.mark.parametrize("name", DOCUMENT)
def test_a_removed_or_renamed_field_is_refused(name: str) -> None:
    changed = dict(SIGNED)
    value = changed.pop(name)
    refused(changed)
    refused({**changed, name + " ": value})


def test_a_change_deep_inside_is_refused() -> None:
    changed = deepcopy(SIGNED)
    changed["rows"][0]["match"] = False
    refused(changed)


def test_another_key_is_refused() -> None:
    message = refused(sign_document(DOCUMENT, OTHER))
    assert OTHER.verification_key.kid in message
    assert TRUSTED.kid in message


def changed_signature(**values: Any) -> dict[str, Any]:
    return {**SIGNED, "signature": {**SIGNED["signature"], **values}}


def test_another_key_s_name_under_our_value_is_refused() -> None:
    other = OTHER.verification_key
    document = changed_signature(kid=other.kid, verification_key=other.hex())
    assert "was changed" in refused(document, other)
    refused(document, None)
    assert "kid" in refused(changed_signature(kid=other.kid))
    assert "kid" in refused(changed_signature(verification_key=other.hex()))


VALUE = SIGNED["signature"]["value"]


@pytest.mark.parametrize(
    "value", ["", VALUE[:-1], VALUE[:-2], VALUE + "00", VALUE.upper(), " " + VALUE, "z" * 128, "0" * 128, VALUE[::-1]]
)
def test_a_cut_or_changed_signature_is_refused(value: str) -> None:
    refused(changed_signature(value=value))


@pytest.mark.parametrize("place", range(0, 128, 9))
def test_a_digit_of_the_signature_changed_is_refused(place: int) -> None:
    digit = "0" if VALUE[place] != "0" else "1"
    refused(changed_signature(value=VALUE[:place] + digit + VALUE[place + 1 :]))


@pytest.mark.parametrize("algorithm", ["", "none", "None", "ed25519", "EdDSA", "HS256"])
def test_there_is_no_other_algorithm(algorithm: str) -> None:
    assert "algorithm" in refused(changed_signature(algorithm=algorithm))


@pytest.mark.parametrize("name", ["algorithm", "kid", "verification_key", "value"])
def test_a_signature_with_a_field_missing_or_of_another_type_is_refused(name: str) -> None:
    signature = dict(SIGNED["signature"])
    del signature[name]
    refused({**SIGNED, "signature": signature})
    for value in (None, 1, [], {}, True):
        refused(changed_signature(**{name: value}))


@pytest.mark.parametrize("document", [None, [], "", 1, {}, DOCUMENT, {"signature": None}, {"signature": []}])
def test_what_is_not_signed_is_refused(document: Any) -> None:
    assert "not signed" in refused(document)


def test_a_signature_with_more_fields_is_refused() -> None:
    refused(changed_signature(extra="1"))


def test_a_signature_over_the_document_without_its_prefix_is_refused() -> None:
    signature = {name: value for name, value in SIGNED["signature"].items() if name != "value"}
    bare = KEY.sign(canonical_json({**DOCUMENT, "signature": signature}))
    refused(changed_signature(value=bare.hex()))


NO_JSON = {
    "nan": float("nan"),
    "infinity": float("inf"),
    "number as name": {1: 2},
    "set": {1, 2},
    "bytes": b"",
    "surrogate": "\ud800",
    "object": object(),
}


@pytest.mark.parametrize("value", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_is_neither_signed_nor_checked(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="JSON"):
        sign_document({"value": value}, KEY)
    refused({**SIGNED, "value": value})


def test_a_document_is_signed_once() -> None:
    with pytest.raises(InvalidArgumentError, match="signed already"):
        sign_document(SIGNED, KEY)


def test_canonical_json_is_one_text() -> None:
    assert canonical_json({"b": [1, 2.5, None, True], "a": "é\n", "": {}}) == (
        b'{"":{},"a":"\xc3\xa9\\n","b":[1,2.5,null,true]}'
    )


@given(value=json_values)
def test_canonical_json_is_read_back(value: Any) -> None:
    try:
        text = canonical_json(value)
    except InvalidArgumentError:  # half a character
        return
    assert canonical_json(parse_json(text.decode(), "it")) == text


def test_a_value_that_holds_itself_is_no_json() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(InvalidArgumentError):
        canonical_json(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 1}', "twice"), ('{"b": {"a": 1, "c": 2, "a": 3}}', "twice"),
        (r'{"a": 1, "\u0061": 2}', "twice"), ("NaN", "NaN"),
        ("[Infinity]", "Infinity"), ("-Infinity", "Infinity"), ("1e999", "too large"),
        ("", "cut short"), ('{"a": 1', "cut short"), ("{'a': 1}", "cut short"), ("[1,]", "cut short"),
        ("1 2", "cut short"), ("9" * 5000, "damaged"), ("[" * 100_000, "damaged"),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_json_is_read_strictly(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"the report.*{reason}"):
        parse_json(text, "the report")


def test_signing_is_light_to_import() -> None:
    heavy = "('cryptography', 'rfc3161_client', 'torch')"
    code = f"import oml_fast.signing, oml_fast.commit, sys; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_signatures_are_64_bytes_and_repeat() -> None:
    assert len(KEY.sign(b"")) == 64
    assert KEY.sign(b"a") == KEY.sign(b"a") != KEY.sign(b"b")
    assert isinstance(KEY, SigningKey)
