"""Who holds which set, what was verified, which keys are spent, and what was used (docs/registry.md)."""

from .attempts import REUSE, RegistryAttempt
from .permissions import PermissionStore
from .records import AttemptRecord, KeyCount, LicenseeRecord, ModelRecord, SetRecord
from .registry import Registry
from .schema import upgrade
from .usage import UsageLog, Used

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
    "UsageLog",
    "Used",
    "upgrade",
]
