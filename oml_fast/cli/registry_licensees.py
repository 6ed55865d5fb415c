"""oml-fast registry licensees: who may hold a copy."""

from __future__ import annotations

import argparse

from .common import finish
from .registry_common import add_registry_option, columns, open_registry, plain

HELP = "list the licensees"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_registry_option(parser)


def run(options: argparse.Namespace) -> None:
    with open_registry(options) as registry:
        found = registry.licensees()
        rows = [(record.name, record.sets, record.added_at, record.note) for record in found]
        text = columns(("licensee", "sets", "added", "note"), rows, "No licensees.")
        finish(options, {"registry": registry.name, "licensees": plain(found)}, text)
