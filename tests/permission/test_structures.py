"""Tokens of every wrong structure, signed by those who may not sign, and by the one who may."""

from __future__ import annotations

import pytest
import structures
from granting import ATTACKER, CLAIMS, HEADER, KID, NOW, OWNER, checker, key_list, read, signed

from oml_fast.errors import BadSignature, MalformedToken, PermissionDenied, RevokedPermission
from oml_fast.permission import Checker, KeyList, read_key_list
from oml_fast.signing import SigningKey, new_signing_key

RETIRED, REVOKED = new_signing_key(), new_signing_key()
SIGNERS = {"attacker": ATTACKER, "retired": RETIRED, "revoked": REVOKED, "owner of the list": OWNER}


def keys() -> KeyList:
    """KEY signs; RETIRED signed until a minute ago; REVOKED counts for nothing."""
    made = key_list()
    for other in (RETIRED, REVOKED):
        made = made.with_key(other.verification_key, NOW - 900)
    made = made.retiring(RETIRED.verification_key.kid, NOW - 60).revoking_key(REVOKED.verification_key.kid, NOW)
    return read_key_list(made.signed(OWNER, NOW), OWNER.verification_key)


def outcome(text: str) -> type[PermissionDenied] | None:
    """How reading refuses it; None: it does not."""
    try:
        read(text)
    except PermissionDenied as error:
        return type(error)
    return None


def admitted_at_once(here: Checker, text: str) -> bool:
    try:
        return here.admit_at_once(text, now=NOW) is not None
    except PermissionDenied:
        return False


@pytest.mark.parametrize("name", SIGNERS)
@pytest.mark.parametrize("own_kid", [True, False], ids=["own kid", "kid of the key that signs"])
def test_no_structure_is_accepted_from_who_may_not_sign(name: str, own_kid: bool) -> None:
    key: SigningKey = SIGNERS[name]
    here, count = checker(keys=keys()), 0
    for what, text in structures.tokens(key, key.verification_key.kid if own_kid else KID):
        with pytest.raises(PermissionDenied) as caught:
            here.admit(text, now=NOW)
        assert len(str(caught.value)) < 250, what
        assert not admitted_at_once(here, text), what
        count += 1
    assert count > 350
    good = signed(HEADER | {"kid": key.verification_key.kid}, CLAIMS, key)
    with pytest.raises(RevokedPermission if name == "revoked" else PermissionDenied):
        here.admit(good, now=NOW)
    here.admit(signed(HEADER, CLAIMS), now=NOW)


def test_no_wrong_structure_is_accepted_from_who_may_sign() -> None:
    for what, header in structures.headers(KID).items():
        assert outcome(signed(header, CLAIMS)) in (MalformedToken, BadSignature), what
    for what, payload in structures.payloads().items():
        assert outcome(signed(HEADER, payload)) is MalformedToken, what
    for payload in structures.spelled_otherwise().values():
        assert read(signed(HEADER, payload)) == read(signed(HEADER, CLAIMS))


def test_no_signature_of_another_kind_is_accepted() -> None:
    here, texts = checker(), list(structures.other_signatures())
    assert len(set(texts)) > 40
    for text in texts:
        with pytest.raises(PermissionDenied):
            here.admit(text, now=NOW)


def test_a_retired_key_signs_nothing_more_and_what_it_signed_holds() -> None:
    here, header = checker(keys=keys()), HEADER | {"kid": RETIRED.verification_key.kid}
    before = CLAIMS | {"iat": NOW - 60, "nbf": NOW - 60}
    assert here.admit(signed(header, before, RETIRED), now=NOW).permission.kid == RETIRED.verification_key.kid
    with pytest.raises(PermissionDenied, match="not to sign at the time of issue"):
        here.admit(signed(header, before | {"iat": NOW - 59}, RETIRED), now=NOW)
