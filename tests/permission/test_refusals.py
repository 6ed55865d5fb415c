"""For each kind of token that is accepted: every kind of forgery is refused, for its reason, and costs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from granting import (
    ATTACKER,
    BODY,
    KEY,
    KID,
    KINDS,
    NOW,
    OTHER_MODEL,
    Kind,
    b64,
    checker,
    hs256,
    key_list,
    parts,
    signed,
    token,
    unb64,
)

from oml_fast.errors import PermissionDenied
from oml_fast.permission import (
    MAX_LIFETIME,
    SKEW,
    Amount,
    Checker,
    KeyList,
    Limits,
    MemoryStore,
    Nonce,
    Request,
    read_token,
)
from oml_fast.permission.token import LIFETIMES, MOST_CHARACTERS
from oml_fast.signing import new_signing_key


class Case:
    """A token that is accepted, and the server that accepts it."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.text, self.store = kind, kind.token(), MemoryStore(now=NOW - 500)
        self.header, self.claims, self.signature = parts(self.text)
        self.here = checker(self.store)

    def changed(self, **claims: object) -> str:
        """As it is signed, but for some claims, by the key that may."""
        return signed(self.header, self.claims | claims)

    def say(
        self,
        text: str | None = None,
        request: Request | None = None,
        *,
        now: float = NOW,
        keys: KeyList | None = None,
        here: Checker | None = None,
    ) -> str:
        """The code with which it is refused; "" where it is not."""
        server = here or (self.here if keys is None else checker(self.store, keys))
        try:
            server.admit(self.text if text is None else text, request=request or self.kind.request, now=now)
        except PermissionDenied as error:
            return error.code
        return ""


Forgery = Callable[[Case], Iterator[str]]  # what the server says to each form of it


def algorithm_none(case: Case) -> Iterator[str]:
    payload = case.text.split(".")[1]
    for name in ("none", "None", "NONE"):
        head = b64(json.dumps(case.header | {"alg": name}).encode())
        for signature in ("", "A" * 86, case.text.rpartition(".")[2]):
            yield case.say(f"{head}.{payload}.{signature}")


def hs256_with_the_public_key(case: Case) -> Iterator[str]:
    public = KEY.verification_key
    for secret in (public.raw, public.hex().encode(), public.pem().encode(), public.kid.encode()):
        text = hs256(case.header, case.claims, secret)
        yield case.say(text)
        yield case.say(text + "A" * 43)


def changed_part(case: Case) -> Iterator[str]:
    own = case.text.split(".")
    for place, part in enumerate(own):
        content = unb64(part)
        for at in range(0, len(content), 7):
            changed = b64(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            yield case.say(".".join([*own[:place], changed, *own[place + 1 :]]))


def part_of_another(case: Case) -> Iterator[str]:
    own = case.text.split(".")
    for kind in KINDS.values():
        other = kind.token(licensee="Other").split(".")
        yield case.say(f"{own[0]}.{other[1]}.{own[2]}")
        yield case.say(f"{own[0]}.{own[1]}.{other[2]}")


def cut(case: Case) -> Iterator[str]:
    for length in range(0, len(case.text), 9):
        yield case.say(case.text[:length])
        yield case.say(case.text[length + 1 :])


def expired(case: Case) -> Iterator[str]:
    end = NOW + LIFETIMES[case.kind.use] + SKEW
    yield from (case.say(now=now) for now in (end, end + 1, end + 86_400))


def not_yet_valid(case: Case) -> Iterator[str]:
    yield case.say(now=NOW - SKEW - 1)
    yield case.say(case.kind.token(not_before=NOW + SKEW + 1))
    yield case.say(case.kind.token(now=NOW + SKEW + 1))


def other_audience(case: Case) -> Iterator[str]:
    yield case.say(case.kind.token(models=OTHER_MODEL))
    yield case.say(request=Request(OTHER_MODEL, case.kind.request.path, case.kind.request.body_sha256, 1, 20))


def other_issuer(case: Case) -> Iterator[str]:
    for issuer in ("Acme", "acme models", "Acme Models Ltd", "Mallory"):
        yield case.say(case.kind.token(issuer=issuer))


def replayed(case: Case) -> Iterator[str]:
    assert case.say(case.kind.token(nonce="r" * 22)) == ""
    other = Request(body_sha256="ef" * 32, output_tokens=20)
    request = case.kind.request if case.kind.limits.body_sha256 else other
    yield case.say(case.kind.token(nonce="r" * 22), request, now=NOW + 11)
    yield case.say(case.kind.token(nonce="r" * 22, licensee="Other"), request, now=NOW + 11)


def from_before_the_store(case: Case) -> Iterator[str]:
    yield case.say(case.kind.token(now=NOW - 500 + SKEW, lifetime=3600))


def revoked(case: Case) -> Iterator[str]:
    yield case.say(keys=key_list().revoking(case.claims["jti"], NOW))


def revoked_key(case: Case) -> Iterator[str]:
    yield case.say(keys=key_list().revoking_key(KID, NOW))


def retired_key(case: Case) -> Iterator[str]:
    yield case.say(keys=key_list().retiring(KID, NOW - 1))


def unknown_key(case: Case) -> Iterator[str]:
    stranger = new_signing_key()
    yield case.say(case.kind.token(stranger))
    yield case.say(keys=key_list(key=ATTACKER))
    yield case.say(signed(case.header | {"kid": stranger.verification_key.kid}, case.claims))
    yield case.say(signed(case.header, case.claims, stranger))  # under the name of the key that signs


def over_quota(case: Case) -> Iterator[str]:
    limits = case.kind.limits
    assert limits.requests is not None
    assert limits.output_tokens is not None
    yield case.say(request=Request(requests=limits.requests + 1, output_tokens=1))
    yield case.say(request=Request(output_tokens=limits.output_tokens + 1))
    yield case.say(request=Request())  # nothing bounds it


def over_quota_in_all(case: Case) -> Iterator[str]:
    text, request = case.kind.token(), Request(output_tokens=1)
    assert [case.say(text, request) for _ in range(3)] == ["", "", ""]
    yield case.say(text, request)
    text = case.kind.token()
    assert [case.say(text), case.say(text)] == ["", ""]
    yield case.say(text)


def changed_body(case: Case) -> Iterator[str]:
    for body in ("ef" * 32, None, "", BODY.upper()):
        yield case.say(request=Request(body_sha256=body))


def other_path(case: Case) -> Iterator[str]:
    for path in ("/v1/embeddings", "/v1/completions/", "/V1/completions", "", None):
        yield case.say(request=Request(path=path))


def duplicate_claims(case: Case) -> Iterator[str]:
    raw = json.dumps(case.claims).encode()
    for name, value in case.claims.items():
        more = f'"{name}": {json.dumps(value)}'.encode()
        yield case.say(signed(case.header, raw.replace(b"{", b"{" + more + b", ", 1)))
        yield case.say(signed(case.header, raw[:-1] + b", " + more + b"}"))


def oversize(case: Case) -> Iterator[str]:
    yield case.say(case.changed(sub="x" * MOST_CHARACTERS))
    yield case.say(case.text + "A" * MOST_CHARACTERS)
    raw = json.dumps(case.claims).encode()
    short = len(signed(case.header, raw))
    text = signed(case.header, raw + b" " * ((MOST_CHARACTERS - short) * 3 // 4 + 3))
    assert MOST_CHARACTERS < len(text) < MOST_CHARACTERS + 9
    yield case.say(text)


def too_long_a_life(case: Case) -> Iterator[str]:
    yield case.say(case.changed(exp=NOW + MAX_LIFETIME + 1))
    yield case.say(here=checker(case.store, max_lifetime=LIFETIMES[case.kind.use] - 1))


FORGERIES: dict[Forgery, set[str]] = {  # and the codes of which one is given
    algorithm_none: {"malformed_token", "bad_signature"},
    hs256_with_the_public_key: {"malformed_token", "bad_signature"},
    changed_part: {"malformed_token", "bad_signature"},
    part_of_another: {"bad_signature"},
    cut: {"malformed_token"},
    expired: {"expired"},
    not_yet_valid: {"not_yet_valid"},
    other_audience: {"wrong_model"},
    other_issuer: {"bad_signature"},
    replayed: {"replayed_nonce"},
    from_before_the_store: {"replayed_nonce"},
    revoked: {"revoked"},
    revoked_key: {"revoked"},
    retired_key: {"bad_signature"},
    unknown_key: {"bad_signature"},
    over_quota: {"quota_exceeded"},
    over_quota_in_all: {"quota_exceeded"},
    changed_body: {"wrong_request"},
    other_path: {"wrong_request"},
    duplicate_claims: {"malformed_token"},
    oversize: {"malformed_token"},
    too_long_a_life: {"malformed_token"},
}
# What a kind of token cannot be asked: a session is for any number of requests, and of any body.
SENSELESS: dict[Forgery, set[str]] = {
    replayed: {"session", "session with a quota"},
    from_before_the_store: {"session"},
    over_quota: {"session", "once, for a body"},
    over_quota_in_all: {"session", "once", "once, for a body"},
    changed_body: {"session", "session with a quota", "once"},
    other_path: {"session with a quota", "once", "once, for a body"},
}
CASES = [(name, forgery) for name in KINDS for forgery in FORGERIES if name not in SENSELESS.get(forgery, ())]


@pytest.mark.parametrize(("name", "forgery"), CASES, ids=[f"{name}-{forgery.__name__}" for name, forgery in CASES])
def test_every_forgery_is_refused_and_costs_nothing(name: str, forgery: Forgery) -> None:
    case = Case(KINDS[name])
    said = list(forgery(case))
    assert said
    assert set(said) <= FORGERIES[forgery], said
    nonce = Nonce.of(read_token(case.text, lambda _: KEY.verification_key))
    assert case.store.usage(nonce).taken == Amount()
    assert not case.store.usage(nonce).spent
    assert case.say() == ""


def test_each_kind_of_token_has_at_least_twelve_kinds_of_forgery() -> None:
    for name in KINDS:
        assert sum(kind == name for kind, _ in CASES) >= 17


def test_a_session_may_be_repeated_until_it_expires() -> None:
    """What `replayed` does not ask: it is what a session is for."""
    case = Case(KINDS["session"])
    for now in (NOW, NOW + 1, NOW + LIFETIMES["session"] + SKEW - 1):
        assert case.say(now=now) == ""
    assert case.say(token(limits=Limits(requests=1))) == ""
