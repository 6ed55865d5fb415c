"""oml-fast registry sets: the fingerprint sets, whose they are, and which models carry them."""

from __future__ import annotations

import argparse

from .common import finish
from .registry_common import SHORT, add_registry_option, columns, open_registry, plain

HELP = "list the fingerprint sets, and the models that carry them"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--licensee", metavar="NAME", help="only the sets of this licensee")
    add_registry_option(parser)


def run(options: argparse.Namespace) -> None:
    with open_registry(options) as registry:
        found = registry.sets(options.licensee)
        digests = {record.digest for record in found}
        models = [model for model in registry.models() if model.set_digest in digests]
        paths = {digest: ", ".join(m.path for m in models if m.set_digest == digest) or None for digest in digests}
        rows = [(r.digest[:SHORT], r.num_fingerprints, r.licensee, r.added_at, paths[r.digest]) for r in found]
        text = columns(("set", "keys", "licensee", "added", "models"), rows, "No sets.")
        finish(options, {"registry": registry.name, "sets": plain(found), "models": plain(models)}, text)
