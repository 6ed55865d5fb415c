"""RFC 3161 timestamps: an authority signs a commitment's digest with the time, so that nobody need trust the owner's.

What an authority answers is kept whole (DER) beside the commitment, one answer per authority; two authorities are
better than one. `rfc3161_client` does the cryptography.

Order of the checks of `check_timestamps`, for each answer:
1. it is a well-formed answer that grants a timestamp;
2. it is over this commitment's SHA-256 digest;
3. its signature holds, and its chain leads to one of the given root certificates, all valid at the time that it tells;
4. the certificate that signed is one for timestamps and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError
from ..files import read_text, write_json
from ..signing import parse_json
from .commitment import Commitment, CommitmentError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from rfc3161_client import TimeStampRequest, TimeStampResponse

OWN_EVIDENCE = "owner's own evidence"
_SHA256 = "2.16.840.1.101.3.4.2.1"
_MOST_BYTES = 1 << 20
_SECONDS = 30.0


class TimestampError(CommitmentError):
    """No timestamp could be had, or one does not hold."""


@dataclass(frozen=True, slots=True)
class TimeStamp:
    """What an authority says: the digest existed at `time`, give or take `accuracy` seconds. `serial` is its number."""

    authority: str
    time: datetime
    accuracy: float
    serial: int

    def latest(self) -> datetime:
        """The latest time that the authority's words allow."""
        return self.time + timedelta(seconds=self.accuracy)

    def to_json(self) -> dict[str, Any]:
        return {
            "authority": self.authority,
            "time": self.time.isoformat(),
            "accuracy": self.accuracy,
            "serial": str(self.serial),
        }


def timestamp_request(commitment: Commitment) -> TimeStampRequest:
    """A request for a timestamp over the commitment's digest; `.as_bytes()` is what an authority takes (DER)."""
    from rfc3161_client import HashAlgorithm, TimestampRequestBuilder

    builder = TimestampRequestBuilder().data(commitment.content()).hash_algorithm(HashAlgorithm.SHA256)
    return builder.nonce(nonce=True).cert_request(cert_request=True).build()


def ask_authority(commitment: Commitment, url: str, *, seconds: float = _SECONDS) -> bytes:
    """Have the authority at `url` timestamp the commitment; the answer (DER), over this digest and with our nonce.

    Raises TimestampError where it cannot be reached within `seconds`, refuses, or answers something else. Whether its
    signature is to be trusted, `check_timestamps` says.
    """
    request = timestamp_request(commitment)
    der = _post(url, request.as_bytes(), seconds)
    try:
        response = require_answer(commitment, der)
    except TimestampError as error:
        raise TimestampError(f"{url}: {error}") from error
    if response.tst_info.nonce != request.nonce:
        raise TimestampError(f"{url} answered another request than ours (its nonce differs): ask again.")
    return der


def require_answer(commitment: Commitment, der: bytes) -> TimeStampResponse:
    """The answer, read; TimestampError unless it grants a timestamp over the commitment's digest."""
    from rfc3161_client import PKIStatus, decode_timestamp_response

    try:
        response = decode_timestamp_response(der)
        status = response.status
    except ValueError as error:
        raise TimestampError("it is no timestamp response (RFC 3161, DER), or is damaged.") from error
    if status != PKIStatus.GRANTED:
        raise TimestampError(f"no timestamp was granted (status {status}): ask again, or another authority.")
    try:
        imprint = response.tst_info.message_imprint
        same = imprint.hash_algorithm.dotted_string == _SHA256 and imprint.message.hex() == commitment.digest()
    except ValueError as error:
        raise TimestampError("it is no timestamp response (RFC 3161, DER), or is damaged.") from error
    if not same:
        raise TimestampError("the timestamp is over another digest: the commitment was changed, or it is another's.")
    return response


def check_timestamps(commitment: Commitment, tokens: Sequence[bytes], roots: Sequence[Certificate]) -> list[TimeStamp]:
    """What the authorities say, oldest first. TimestampError that tells the first of `tokens` that does not hold."""
    if tokens and not roots:
        raise TimestampError("no root certificate is given: name those of the authorities that you trust.")
    found = []
    for place, token in enumerate(tokens):
        try:
            found.append(_checked(commitment, token, roots))
        except TimestampError as error:
            raise TimestampError(f"timestamp {place + 1} of {len(tokens)}: {error}") from error
    return sorted(found, key=lambda stamp: stamp.latest())


def older_than(timestamps: Sequence[TimeStamp], when: datetime) -> bool:
    """Whether one of the timestamps is surely older than `when`."""
    if when.tzinfo is None:
        raise InvalidArgumentError(f"the time {when} has no zone: give it in UTC.")
    return any(stamp.latest() < when for stamp in timestamps)


def evidence_kind(timestamps: Sequence[TimeStamp], suspect_since: datetime | None) -> str:
    """What a report may say of its evidence, given when the suspect first existed (None: nobody knows).

    Only a timestamp older than the suspect makes more of it than the owner's own evidence.
    """
    if suspect_since is None or not older_than(timestamps, suspect_since):
        return OWN_EVIDENCE
    older = [stamp for stamp in timestamps if stamp.latest() < suspect_since]
    told = " and by ".join(f"{s.authority} at {s.time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" for s in older)
    since = f"{suspect_since.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return f"committed before the suspect, which exists since {since}: timestamped by {told}"


def tokens_path(commitment: str | Path) -> Path:
    """Where the timestamps of a commitment's file are kept: beside it."""
    return Path(commitment).with_suffix(".timestamps.json")


def read_tokens(path: str | Path) -> list[bytes]:
    """The answers kept in a file; none where there is no file. Raises TimestampError where it is damaged."""
    if not Path(path).exists():
        return []
    try:
        values = parse_json(read_text(path, "the timestamps"), "the timestamps")
        if not isinstance(values, list):
            raise ValueError
        return [base64.b64decode(value, validate=True) for value in values]
    except InvalidArgumentError as error:
        raise TimestampError(f"{path}: {error}") from error
    except (ValueError, TypeError, binascii.Error) as error:
        raise TimestampError(f"{path} is no JSON list of base64: restore it from its backup.") from error


def add_token(path: str | Path, token: bytes) -> None:
    """Keep one more answer in a file. One that is there already is kept once."""
    tokens = read_tokens(path)
    if token not in tokens:
        write_json(path, [base64.b64encode(each).decode() for each in [*tokens, token]])


def read_roots(path: str | Path) -> tuple[Certificate, ...]:
    """The root certificates in a PEM file (TimestampError where it holds none)."""
    from cryptography import x509

    try:
        return tuple(x509.load_pem_x509_certificates(Path(path).read_bytes()))
    except (OSError, ValueError) as error:
        raise TimestampError(f"{path} holds no certificates in PEM: get the authority's root certificate.") from error


def _checked(commitment: Commitment, der: bytes, roots: Sequence[Certificate]) -> TimeStamp:
    from cryptography import x509
    from rfc3161_client import VerificationError, VerifierBuilder

    response = require_answer(commitment, der)
    try:
        verifier = VerifierBuilder(roots=list(roots)).build()
        verifier.verify(response, bytes.fromhex(commitment.digest()))
        info, (signer,) = response.tst_info, response.signed_data.signer_infos
        certificates = [x509.load_der_x509_certificate(each) for each in response.signed_data.certificates]
        authority = next(
            each.subject.rfc4514_string()
            for each in certificates
            if (each.issuer, each.serial_number) == (signer.issuer, signer.serial_number)
        )
        return TimeStamp(authority, info.gen_time, _seconds(info.accuracy), info.serial_number)
    except (VerificationError, ValueError) as error:
        raise TimestampError(_reason(str(error))) from error


def _seconds(accuracy: Any) -> float:
    """The accuracy in seconds; 0 where the authority says none."""
    if accuracy is None:
        return 0.0
    return float((accuracy.seconds or 0) + (accuracy.millis or 0) / 1e3 + (accuracy.micros or 0) / 1e6)


def _reason(told: str) -> str:
    """The library's reason in one line; a chain's before a signature's, which it holds too."""
    known = {
        "certificate has expired": "a certificate of its chain had expired at the time that it tells",
        "certificate is not yet valid": "a certificate of its chain was not yet valid at the time that it tells",
        "certificate purpose": "the certificate that signed it is not one for timestamps",
        "EKU": "the certificate that signed it is not one for timestamps",
        "certificate verify error": "its chain does not lead to a given root certificate: give its authority's own",
        "signer certificate not found": "it carries no certificate of its signer: ask the authority again",
        "digest failure": "its content is not what was signed: the timestamp was changed",
        "signature failure": "its signature does not hold: the timestamp was changed",
    }
    return next((text for part, text in known.items() if part in told), f"it does not hold ({told[:100]})") + "."


def _post(url: str, body: bytes, seconds: float) -> bytes:
    """Send a timestamp query, follow no redirection, and read at most `seconds` and 1 MiB."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise InvalidArgumentError("a timestamp authority's address must be http(s)://host/path, without a password.")
    headers = {"Content-Type": "application/timestamp-query", "Accept": "application/timestamp-reply"}
    request = urllib.request.Request(url, body, headers)  # noqa: S310 - the scheme is checked above
    end = time.monotonic() + seconds
    answer = bytearray()
    try:
        with urllib.request.build_opener(_NoRedirection).open(request, timeout=seconds) as reply:
            while chunk := reply.read1(65536):
                answer += chunk
                if len(answer) > _MOST_BYTES:
                    raise TimestampError(f"{url} answers more than a timestamp: check the address.")
                if time.monotonic() > end:
                    raise TimeoutError
    except urllib.error.HTTPError as error:
        error.close()
        moved = error.headers.get("Location") if 300 <= error.code < 400 else None
        way_out = f"name the address it moved to, {moved}" if moved else "check the address, or ask another authority"
        raise TimestampError(f"{url} answered HTTP {error.code}: {way_out}.") from error
    except TimeoutError as error:
        raise TimestampError(f"{url} did not answer within {seconds:g} s: ask again, or another authority.") from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(getattr(error, "reason", None), TimeoutError):
            raise TimestampError(f"{url} did not answer within {seconds:g} s: ask again, or another.") from error
        told = getattr(error, "reason", None) or error
        raise TimestampError(f"{url} could not be asked ({told}): check the address and the network.") from error
    return bytes(answer)


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET."""

    def redirect_request(self, *_: Any) -> None:
        return None
