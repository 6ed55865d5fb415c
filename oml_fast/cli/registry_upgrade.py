"""oml-fast registry upgrade: make the tables of a registry those of this version."""

from __future__ import annotations

import argparse

from .common import finish
from .registry_common import add_registry_option, where

HELP = "make a registry, or bring one of an older oml_fast to this version"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_registry_option(parser)


def run(options: argparse.Namespace) -> None:
    from ..registry import upgrade

    name, before, now = upgrade(where(options))
    was = "new" if before is None else f"of version {before} before"
    text = f"The registry {name} has the tables of version {now}; it was {was}."
    finish(options, {"registry": name, "before": before, "version": now}, text)
