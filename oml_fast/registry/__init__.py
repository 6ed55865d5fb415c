"""Who holds which set, what was verified, and which keys are spent (docs/registry.md)."""

from .attempts import REUSE, RegistryAttempt
from .permissions import PermissionStore
from .records import AttemptRecord, KeyCount, LicenseeRecord, ModelRecord, SetRecord
from .registry import Registry
from .schema import upgrade

__all__ = [
    "REUSE",
    "AttemptRecord",
    "KeyCount",
    "LicenseeRecord",
    "ModelRecord",
    "PermissionStore",
    "Registry",
    "RegistryAttempt",
    "SetRecord",
    "upgrade",
]
