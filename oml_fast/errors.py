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


class PermissionDenied(OmlError):  # noqa: N818 - a refusal is an outcome, not a fault
    """A permission token that does not permit the request. Sub-classes say why."""
