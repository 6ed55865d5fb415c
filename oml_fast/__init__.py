"""oml_fast: fingerprint open-weight language models, verify the fingerprints, check permissions.

Importing this package loads nothing heavy: each public name is fetched from its room on first use.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embed import embed as embed
    from .fingerprint import FingerprintSet as FingerprintSet
    from .generate import generate as generate
    from .oml_model import OMLModel as OMLModel
    from .permission import Permission as Permission
    from .permission import check as check
    from .permission import issue as issue
    from .verify import verify as verify

__version__ = "0.1.0"
__all__ = ["FingerprintSet", "OMLModel", "Permission", "__version__", "check", "embed", "generate", "issue", "verify"]

_ROOMS = {
    "FingerprintSet": "fingerprint",
    "Permission": "permission",
    "check": "permission",
    "issue": "permission",
    "OMLModel": "oml_model",
    "generate": "generate",
    "embed": "embed",
    "verify": "verify",
}


class _Package(ModuleType):
    """Three rooms have the name of the function they offer; here the name means the function, always.

    Python binds a sub-module to its parent once it is loaded. Without this, `oml_fast.verify` would be the function or
    the module depending on who imported what before.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ROOMS and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
