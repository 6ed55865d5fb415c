"""Permissions: signed tokens, checked on every request; nonces and quotas (docs/permissions.md)."""

from .asynchronous import AsyncChecker
from .checking import Admission, Checker, check
from .key_file import FixedKeys, KeyFile, KeySource, change_key_file, read_key_file
from .key_list import KeyList, ListedKey, new_key_list, read_key_list
from .memory import MemoryStore
from .permission import MAX_LIFETIME, SKEW, USES, Limits, Permission, Request
from .sqlite import SqliteStore
from .stores import Amount, Earlier, Nonce, Store, Usage
from .token import LIFETIMES, MOST_CHARACTERS, TYPE, issue, read_token

__all__ = [
    "LIFETIMES",
    "MAX_LIFETIME",
    "MOST_CHARACTERS",
    "SKEW",
    "TYPE",
    "USES",
    "Admission",
    "Amount",
    "AsyncChecker",
    "Checker",
    "Earlier",
    "FixedKeys",
    "KeyFile",
    "KeyList",
    "KeySource",
    "Limits",
    "ListedKey",
    "MemoryStore",
    "Nonce",
    "Permission",
    "Request",
    "SqliteStore",
    "Store",
    "Usage",
    "change_key_file",
    "check",
    "issue",
    "new_key_list",
    "read_key_file",
    "read_key_list",
    "read_token",
]
