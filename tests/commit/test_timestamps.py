"""Timestamps hold for this digest, under these roots, at their own time, and otherwise not; a local authority."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from authority import DAY, Authority, changed_time, granting, send, served
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from public_timestamp import RESPONSE, ROOT, WITHOUT_CERTIFICATE
from sets import SECRET, small_set

from oml_fast.commit import (
    OWN_EVIDENCE,
    Commitment,
    Terms,
    TimeStamp,
    TimestampError,
    add_token,
    ask_authority,
    check_timestamps,
    commit,
    evidence_kind,
    older_than,
    read_roots,
    read_tokens,
    require_answer,
    timestamp_request,
    tokens_path,
)
from oml_fast.errors import InvalidArgumentError

COMMITMENT = commit(small_set(5), SECRET, Terms(), "ef" * 32)
OTHER = replace(COMMITMENT, terms=Terms("prefix"))
REQUEST = timestamp_request(COMMITMENT).as_bytes()
NOW = datetime.now(UTC)
Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command here")
    return Authority(tmp_path_factory.mktemp("authority") / "one")


@pytest.fixture(scope="module")
def answer(authority: Authority) -> bytes:
    """A good answer for COMMITMENT. The tests leave it as it is."""
    return authority.reply(REQUEST)


@pytest.fixture
def url(authority: Authority) -> Iterator[str]:
    with served(lambda handler, body: send(handler, authority.reply(body))) as address:
        yield address


def refused(token: bytes, *roots: x509.Certificate, commitment: Commitment = COMMITMENT) -> str:
    with pytest.raises(TimestampError) as caught:
        check_timestamps(commitment, [token], roots)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unasked(answering: Answer, *, seconds: float = 5) -> str:
    with served(answering) as address, pytest.raises(TimestampError) as caught:
        ask_authority(COMMITMENT, address, seconds=seconds)
    assert address in str(caught.value)
    return str(caught.value)


def test_an_authority_s_answer_tells_who_and_when(authority: Authority, answer: bytes) -> None:
    (stamp,) = check_timestamps(COMMITMENT, [answer], [authority.root])
    assert stamp.authority == "CN=Test authority"
    assert abs(stamp.time - datetime.now(UTC)) < timedelta(minutes=5)
    assert (stamp.accuracy, stamp.latest()) == (2.5, stamp.time + timedelta(seconds=2.5))
    assert json.loads(json.dumps(stamp.to_json()))["serial"] == str(stamp.serial)


def test_the_imprint_is_the_commitment_s_digest() -> None:
    request = timestamp_request(COMMITMENT)
    assert request.message_imprint.message.hex() == COMMITMENT.digest()
    assert request.cert_req
    assert request.nonce != timestamp_request(COMMITMENT).nonce


def test_two_authorities_come_oldest_first(authority: Authority, answer: bytes, tmp_path: Path) -> None:
    second = Authority(tmp_path / "two", "Second authority")
    earlier = second.resign(answer, changed_time(NOW - 3 * DAY))
    stamps = check_timestamps(COMMITMENT, [answer, earlier], [authority.root, second.root])
    assert [stamp.authority for stamp in stamps] == ["CN=Second authority", "CN=Test authority"]
    with pytest.raises(TimestampError, match="timestamp 2 of 2"):
        check_timestamps(COMMITMENT, [answer, earlier], [authority.root])


def test_another_digest_is_refused(authority: Authority, answer: bytes) -> None:
    assert "another digest" in refused(answer, authority.root, commitment=OTHER)
    for field in ("merkle_root", "secret_commitment", "model_digest"):
        changed = replace(COMMITMENT, **{field: "00" * 32})
        assert "another digest" in refused(answer, authority.root, commitment=changed)


def test_another_digest_algorithm_is_refused(authority: Authority) -> None:
    from rfc3161_client import HashAlgorithm, TimestampRequestBuilder

    request = TimestampRequestBuilder().data(COMMITMENT.content()).hash_algorithm(HashAlgorithm.SHA512).build()
    assert "another digest" in refused(authority.reply(request.as_bytes()), authority.root)


def test_an_untrusted_root_is_refused(authority: Authority, answer: bytes, tmp_path: Path) -> None:
    for name in ("Test authority", "Another"):  # one of them has the true one's name
        assert "root certificate" in refused(answer, Authority(tmp_path / name, name).root)
    assert "root certificate" in refused(answer, authority.certificate)
    assert "no root certificate is given" in refused(answer)


def test_a_chain_counts_at_the_time_told(answer: bytes, tmp_path: Path) -> None:
    old = Authority(tmp_path / "old", valid=(NOW - 10 * DAY, NOW - 5 * DAY))
    (stamp,) = check_timestamps(COMMITMENT, [old.resign(answer, changed_time(NOW - 7 * DAY))], [old.root])
    assert NOW - 8 * DAY < stamp.time < NOW - 6 * DAY
    assert "expired" in refused(old.resign(answer), old.root)
    assert "expired" in refused(old.resign(answer, changed_time(NOW - 4 * DAY)), old.root)
    assert "not yet valid" in refused(old.resign(answer, changed_time(NOW - 11 * DAY)), old.root)
    assert "expired" in refused(old.reply(REQUEST), old.root)


@pytest.mark.parametrize(
    ("purpose", "critical"),
    [
        (ExtendedKeyUsageOID.EMAIL_PROTECTION, True),
        (ExtendedKeyUsageOID.SERVER_AUTH, True),
        (ExtendedKeyUsageOID.CODE_SIGNING, True),
        (ExtendedKeyUsageOID.TIME_STAMPING, False),
    ],
)
def test_a_certificate_for_something_else_is_refused(
    answer: bytes, tmp_path: Path, purpose: x509.ObjectIdentifier, critical: bool
) -> None:
    other = Authority(tmp_path / "other", purpose=purpose, critical=critical)
    assert "not one for timestamps" in refused(other.resign(answer), other.root)


def test_a_time_changed_after_signing_is_refused(authority: Authority, answer: bytes) -> None:
    for days in (900, 1, -1):
        assert "was changed" in refused(changed_time(NOW - days * DAY)(answer), authority.root)


def test_any_byte_changed_is_refused_or_says_the_same(authority: Authority, answer: bytes) -> None:
    (stamp,) = check_timestamps(COMMITMENT, [answer], [authority.root])
    kept = 0
    for place in range(0, len(answer), 3):
        changed = bytearray(answer)
        changed[place] ^= 0x41
        try:
            assert check_timestamps(COMMITMENT, [bytes(changed)], [authority.root]) == [stamp]
            kept += 1
        except TimestampError:
            pass
    assert kept < 10  # bytes that no signature covers, and that say nothing


def test_an_answer_cut_short_anywhere_is_refused(authority: Authority, answer: bytes) -> None:
    for place in range(0, len(answer), 17):
        assert "damaged" in refused(answer[:place], authority.root)
    assert "damaged" in refused(answer + b"\x00", authority.root)


@pytest.mark.parametrize("status", [1, 2, 3, 4, 5, 6, 99])
def test_an_answer_that_grants_nothing_is_refused(answer: bytes, status: int) -> None:
    with pytest.raises(TimestampError):
        require_answer(COMMITMENT, granting(b"", status))


@pytest.mark.parametrize("token", [b"", b"\x30\x00", b"<html>", bytes(100), granting(b""), granting(b"\x30\x00")])
def test_what_is_no_answer_is_refused(token: bytes) -> None:
    with pytest.raises(TimestampError, match="no timestamp response"):
        require_answer(COMMITMENT, token)


def test_no_timestamps_are_none() -> None:
    assert check_timestamps(COMMITMENT, [], []) == []


class Hello(Commitment):
    """Stands for what a public authority timestamped."""

    def content(self) -> bytes:
        return b"hello"


HELLO = Hello(**{name: getattr(COMMITMENT, name) for name in COMMITMENT.to_json()})


def test_a_public_authority_s_timestamp(tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_text(ROOT)
    roots = read_roots(tmp_path / "root.pem")
    (stamp,) = check_timestamps(HELLO, [RESPONSE], roots)
    assert stamp == TimeStamp(
        "CN=sigstore-tsa,O=sigstore.dev",
        datetime(2025, 5, 9, 11, 58, 55, tzinfo=UTC),
        1.0,
        0x784B4C5E57AAA63B570F15CBA4DF95251668AE9E,
    )
    assert "another digest" in refused(RESPONSE, *roots)
    assert "no certificate of its signer" in refused(WITHOUT_CERTIFICATE, *roots, commitment=HELLO)
    assert "was changed" in refused(RESPONSE[:-1] + bytes([RESPONSE[-1] ^ 1]), *roots, commitment=HELLO)
    earlier = RESPONSE.replace(b"20250509115855Z", b"20250508115855Z")
    assert "was changed" in refused(earlier, *roots, commitment=HELLO)


def test_a_public_timestamp_is_nothing_under_our_root(authority: Authority) -> None:
    assert "root certificate" in refused(RESPONSE, authority.root, commitment=HELLO)


def test_asking_over_http(authority: Authority, url: str) -> None:
    tokens = [ask_authority(COMMITMENT, url) for _ in range(2)]
    stamps = check_timestamps(COMMITMENT, tokens, [authority.root])
    assert stamps[0].serial != stamps[1].serial


def test_what_is_sent_is_a_timestamp_query(authority: Authority) -> None:
    seen: list[tuple[str | None, str]] = []

    def answering(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        seen.append((handler.headers["Content-Type"], handler.path))
        send(handler, authority.reply(body))

    with served(answering) as address:
        ask_authority(COMMITMENT, address)
    assert seen == [("application/timestamp-query", "/tsa")]


def test_an_answer_to_another_request_is_refused(authority: Authority, answer: bytes) -> None:
    assert "nonce" in unasked(lambda handler, _: send(handler, answer))
    foreign = authority.reply(timestamp_request(OTHER).as_bytes())
    assert "another digest" in unasked(lambda handler, _: send(handler, foreign))


@pytest.mark.parametrize(
    ("answering", "reason"),
    [
        (lambda handler, _: send(handler, b"", 500), "HTTP 500"),
        (lambda handler, _: send(handler, b"", 404), "check the address"),
        (lambda handler, _: send(handler, b"", 301, Location="https://elsewhere/"), "moved to, https://elsewhere/"),
        (lambda handler, _: send(handler, b"", 307, Location="https://elsewhere/"), "moved to, https://elsewhere/"),
        (lambda handler, _: send(handler, b"<html>", Content_Type="text/html"), "no timestamp response"),
        (lambda handler, _: send(handler, b""), "no timestamp response"),
        (lambda handler, _: send(handler, granting(b"", 2)), "status 2"),
        (lambda handler, _: send(handler, bytes(2_000_000)), "more than a timestamp"),
        (lambda handler, _: handler.connection.close(), "could not be asked"),
        (lambda handler, _: send(handler, b"short", Content_Length="1000"), "could not be asked|no timestamp response"),
    ],
)
def test_whatever_else_an_authority_answers_is_told(answering: Answer, reason: str) -> None:
    assert re.search(reason, unasked(answering))


def test_a_slow_authority_is_given_up() -> None:
    def dripping(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        send(handler, b"")
        with contextlib.suppress(OSError):
            for _ in range(20):
                handler.wfile.write(b".")
                time.sleep(0.05)

    assert "within 0.2 s" in unasked(lambda handler, _: time.sleep(0.4), seconds=0.2)
    assert "within 0.2 s" in unasked(dripping, seconds=0.2)


def test_an_authority_that_is_not_there_is_told() -> None:
    with served(lambda handler, _: send(handler, b"")) as address:
        pass
    with pytest.raises(TimestampError, match="could not be asked"):
        ask_authority(COMMITMENT, address)


@pytest.mark.parametrize(
    "url", ["", "freetsa.org", "ftp://host/tsa", "file:///etc/passwd", "http://", "http://me:word@host/tsa", "//host"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="http") as caught:
        ask_authority(COMMITMENT, url)
    assert "word@" not in str(caught.value)


def test_answers_are_kept_beside_the_commitment(tmp_path: Path) -> None:
    path = tokens_path(tmp_path / "commitment.json")
    assert path == tmp_path / "commitment.timestamps.json"
    assert read_tokens(path) == []
    for token in (b"one", b"two", b"one"):
        add_token(path, token)
    assert read_tokens(path) == [b"one", b"two"]
    assert json.loads(path.read_text()) == [base64.b64encode(token).decode() for token in (b"one", b"two")]


@pytest.mark.parametrize("content", ["", "{}", "[1]", "[null]", '["?"]', '["YQ"]', '["é"]', '["YQ=="', '"YQ=="'])
def test_damaged_answers_are_named_and_not_lost(tmp_path: Path, content: str) -> None:
    path = tmp_path / "timestamps.json"
    path.write_text(content)
    for act in (lambda: read_tokens(path), lambda: add_token(path, b"more")):
        with pytest.raises(TimestampError, match=r"timestamps\.json"):
            act()
    assert path.read_text() == content


@pytest.mark.parametrize("content", [b"", b"\xff", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_holds_no_certificate_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "roots.pem").write_bytes(content)
    for path in (tmp_path / "roots.pem", tmp_path / "none", tmp_path):
        with pytest.raises(TimestampError, match="PEM"):
            read_roots(path)


STAMP = TimeStamp("CN=One", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), 60.0, 7)
LATER = TimeStamp("CN=Two", datetime(2026, 3, 1, tzinfo=UTC), 0.0, 8)


def test_older_counts_the_whole_accuracy() -> None:
    latest = STAMP.time + timedelta(minutes=1)
    assert older_than([STAMP], latest + timedelta(seconds=1))
    assert not older_than([STAMP], latest)
    assert not older_than([STAMP], STAMP.time + timedelta(seconds=59))
    assert older_than([LATER, STAMP], latest + DAY)
    assert not older_than([], NOW)
    with pytest.raises(InvalidArgumentError, match="zone"):
        older_than([STAMP], datetime(2026, 1, 1))


def test_without_an_older_timestamp_it_is_the_owner_s_own_evidence() -> None:
    assert evidence_kind([], NOW) == OWN_EVIDENCE
    assert evidence_kind([STAMP, LATER], None) == OWN_EVIDENCE
    assert evidence_kind([STAMP, LATER], STAMP.time) == OWN_EVIDENCE
    told = evidence_kind([STAMP, LATER], datetime(2026, 2, 1, tzinfo=UTC))
    assert "CN=One at 2026-01-02 03:04:05 UTC" in told
    assert "2026-02-01 00:00 UTC" in told
    assert "CN=Two" not in told
    assert "CN=One" in (both := evidence_kind([STAMP, LATER], datetime(2026, 4, 1, tzinfo=UTC)))
    assert "CN=Two" in both
