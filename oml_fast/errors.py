"""One tree of exceptions. Faults end in Error; refusals of a permission are outcomes and do not.

Every message is one line that names both the value that is wrong and the way out. Nothing secret enters a message.
"""

from __future__ import annotations


class OmlError(Exception):
    """Whatever this package raises on purpose. The CLI prints its message as one line and exits with 1."""


class InvalidArgumentError(OmlError, ValueError):
    """An argument, option or configuration value that cannot be used."""


class BackendUnavailableError(OmlError):
    """A backend, extra or device that was asked for is not here; the message says what to do instead."""


class FingerprintFormatError(OmlError):
    """A fingerprints file or secret that cannot be trusted; names the file and the entry."""


class SignatureError(OmlError):
    """A signing key, a verification key or a signed document that cannot be trusted."""


class CompleterError(OmlError):
    """The suspect model could not be asked."""


class PermissionUnavailableError(OmlError):
    """Whether a request is permitted cannot be told now. Never a pass: a server answers with 503."""


class StoreUnavailableError(PermissionUnavailableError):
    """The store of nonces and quotas is gone, full, or too slow."""


class KeyListError(PermissionUnavailableError):
    """The owner's list of verification keys cannot be read, is not the owner's, has expired, or is older than seen."""


class PermissionDenied(OmlError):  # noqa: N818 - a refusal is an outcome, not a fault
    """A permission token that does not permit the request. Sub-classes say why; `code` says so to programs."""

    code = "denied"


class MalformedToken(PermissionDenied):
    """It is no permission token, or one that nobody may issue."""

    code = "malformed_token"


class BadSignature(PermissionDenied):
    """Not signed, as it stands, by a key that the owner's list has for the time of issue."""

    code = "bad_signature"


class ExpiredPermission(PermissionDenied):
    """Its time is over."""

    code = "expired"


class NotYetValid(PermissionDenied):
    """Its time has not come."""

    code = "not_yet_valid"


class WrongModel(PermissionDenied):
    """It is for another model."""

    code = "wrong_model"


class WrongRequest(PermissionDenied):
    """It is for other paths or for another body."""

    code = "wrong_request"


class RevokedPermission(PermissionDenied):
    """The owner has revoked it, or the key that signed it."""

    code = "revoked"


class ReplayedNonce(PermissionDenied):
    """Its nonce is spent, or nobody can tell whether it is."""

    code = "replayed_nonce"


class QuotaExceeded(PermissionDenied):
    """The request needs more than the permission has left."""

    code = "quota_exceeded"
