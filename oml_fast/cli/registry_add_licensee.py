"""oml-fast registry add-licensee: one who may hold a copy of a model."""

from __future__ import annotations

import argparse

from .common import finish
from .registry_common import add_registry_option, open_registry

HELP = "add one who may hold a copy of a model"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, metavar="NAME", help="of the licensee; no two have the same")
    parser.add_argument("--note", default="", metavar="TEXT", help="anything to remember about them (default: none)")
    add_registry_option(parser)


def run(options: argparse.Namespace) -> None:
    with open_registry(options, create=True) as registry:
        registry.add_licensee(options.name, options.note)
        finish(options, {"registry": registry.name, "licensee": options.name}, f"Added the licensee {options.name}.")
