"""What a permission grants, and what is asked of it. Claims in and out, each one checked.

Times are whole seconds since 1970 (UTC). `models` are digests as `oml_fast.models.model_digest` computes them: SHA-256
over the name, dtype, shape and bytes of each tensor, sorted by name, however the weights are sharded into files.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InvalidArgumentError, MalformedToken

USES = ("session", "once")
SKEW = 30  # seconds that two clocks may differ
MAX_LIFETIME = 90 * 86_400  # seconds from issue to expiry, at most
LONGEST_NAME = 200
MOST_MODELS = 16
MOST_PATHS = 32
_LATEST = 2**40  # a number of seconds beyond is no time
_LARGEST = 2**53 - 1  # what every JSON reader reads exactly
_DIGEST = re.compile("[0-9a-f]{64}")
_NONCE = re.compile("[A-Za-z0-9_-]{22,64}")
_PATH = re.compile(r"(/[A-Za-z0-9_.~:@!$&'()*+,;=-]+)+")
_CLAIMS = {"iss", "aud", "sub", "iat", "nbf", "exp", "jti", "use"}
_LIMITS = {"requests", "output_tokens", "paths", "body_sha256"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one permission allows in all. None: not limited.

    requests: of a session in all, or prompts times choices of the one request of a single-use permission.
    output_tokens: generated token ids in all. paths: of HTTP requests. body_sha256: hex digest of the one body.
    """

    requests: int | None = None
    output_tokens: int | None = None
    paths: tuple[str, ...] | None = None
    body_sha256: str | None = None

    @property
    def counted(self) -> bool:
        """Whether it has a quota."""
        return self.requests is not None or self.output_tokens is not None

    def claims(self) -> dict[str, Any]:
        values = asdict(self) | {"paths": None if self.paths is None else list(self.paths)}
        return {name: value for name, value in values.items() if value is not None}


_UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Permission:
    """What a permission token carries. Made by `check`, never by hand."""

    issuer: str
    licensee: str
    models: tuple[str, ...]
    issued_at: int
    not_before: int
    expires_at: int
    nonce: str
    use: str
    limits: Limits
    kid: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"models": list(self.models), "limits": self.limits.claims()}


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. `check` refuses what the permission needs to know and is not told here.

    model: digest of the model that would answer; None: the only one that the checker has.
    path: of the HTTP request, decoded. body_sha256: hex digest of its body as it came.
    requests: prompts times choices (n). output_tokens: the most that may be generated for all of them together, None
    where nothing bounds it.
    """

    model: str | None = None
    path: str | None = None
    body_sha256: str | None = None
    requests: int = 1
    output_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.requests < 1 or (self.output_tokens is not None and self.output_tokens < 0):
            raise InvalidArgumentError(
                f"a request of {self.requests} generations with {self.output_tokens} token ids: count at least one, "
                "and no fewer token ids than none."
            )


def permission_from_claims(claims: Mapping[str, Any], kid: str) -> Permission:
    """The permission in claims. MalformedToken names the claim that cannot be, never its value."""
    if set(claims) - {"limits"} != _CLAIMS:
        raise MalformedToken(f"its claims are not exactly {', '.join(sorted(_CLAIMS))} and perhaps limits.")
    issued, start, end = _time(claims, "iat"), _time(claims, "nbf"), _time(claims, "exp")
    if not issued < end or not start < end:
        raise MalformedToken("it expires before it begins.")
    if end - issued > MAX_LIFETIME:
        raise MalformedToken(f"it lives longer than {MAX_LIFETIME} seconds.")
    if claims["use"] not in USES:
        raise MalformedToken(f"its use is none of {', '.join(USES)}.")
    if not _text(claims["jti"], _NONCE):
        raise MalformedToken("its jti is not 22 to 64 characters of base64url.")
    return Permission(
        issuer=_name(claims, "iss"),
        licensee=_name(claims, "sub"),
        models=_models(claims["aud"]),
        issued_at=issued,
        not_before=start,
        expires_at=end,
        nonce=claims["jti"],
        use=claims["use"],
        limits=_limits(claims["limits"]) if "limits" in claims else _UNLIMITED,
        kid=kid,
    )


def is_name(value: object) -> bool:
    """One line of printable text in its composed form (NFC), so that two names which look alike are rarely two."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= LONGEST_NAME
        and value == value.strip()
        and value.isprintable()
        and unicodedata.is_normalized("NFC", value)
    )


def is_time(value: object) -> bool:
    return type(value) is int and 0 <= value < _LATEST


def is_nonce(value: object) -> bool:
    return _text(value, _NONCE)


def _text(value: object, form: re.Pattern[str]) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None


def _name(claims: Mapping[str, Any], name: str) -> str:
    value = claims[name]
    if not is_name(value):
        raise MalformedToken(f"its {name} is not one line of printable text (NFC, at most {LONGEST_NAME} characters).")
    return str(value)


def _time(claims: Mapping[str, Any], name: str) -> int:
    value = claims[name]
    if not is_time(value):
        raise MalformedToken(f"its {name} is no time in whole seconds.")
    return int(value)


def _models(value: object) -> tuple[str, ...]:
    models = [value] if isinstance(value, str) else value
    if (
        not isinstance(models, list)
        or not 1 <= len(models) <= MOST_MODELS
        or not all(_text(model, _DIGEST) for model in models)
        or len(set(models)) < len(models)
    ):
        raise MalformedToken(f"its aud is not 1 to {MOST_MODELS} digests of models, each 64 hex digits, each once.")
    return tuple(models)


def _limits(value: object) -> Limits:
    if not isinstance(value, dict) or set(value) - _LIMITS:
        raise MalformedToken(f"its limits hold something else than {', '.join(sorted(_LIMITS))}.")
    for name in ("requests", "output_tokens"):
        if name in value and not (type(value[name]) is int and 1 <= value[name] <= _LARGEST):
            raise MalformedToken(f"its limit of {name} is no whole number from 1.")
    if "body_sha256" in value and not _text(value["body_sha256"], _DIGEST):
        raise MalformedToken("its limit body_sha256 is not 64 hex digits.")
    paths = value.get("paths")
    if "paths" in value and not (
        isinstance(paths, list) and 1 <= len(paths) <= MOST_PATHS and all(_is_path(path) for path in paths)
    ):
        raise MalformedToken(f"its limit of paths is not 1 to {MOST_PATHS} plain paths as in /v1/completions.")
    return Limits(**(value | ({"paths": tuple(paths)} if paths else {})))


def _is_path(value: object) -> bool:
    return _text(value, _PATH) and len(str(value)) <= LONGEST_NAME and not {".", ".."} & set(str(value).split("/"))
