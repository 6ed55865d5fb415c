"""oml-fast registry usage: what each licensee used of each model."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import asdict

from .commit_make import add_model_options, chosen_model_digest
from .common import finish
from .permission_common import seconds, shown_time
from .registry_common import SHORT, add_registry_option, columns, where

HELP = "say what each licensee used of each model"
_HEAD = ("licensee", "model", "requests", "generations", "prompt tokens", "output tokens", "aborted")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--licensee", metavar="NAME", help="only what this licensee used")
    add_model_options(parser, "only what was used of this model")
    # `type`, for YAML has dates of its own.
    parser.add_argument("--since", type=str, metavar="TIME", help="only hours from 2026-01-31 or 2026-01-31T12:00Z on")
    parser.add_argument("--until", type=str, metavar="TIME", help="only hours that begin before this time")
    parser.add_argument("--by-hour", action="store_true", help="list every hour")
    add_registry_option(parser)


def run(options: argparse.Namespace) -> None:
    from ..registry import UsageLog

    wanted = {
        "licensee": options.licensee,
        "model_digest": chosen_model_digest(options),
        "since": seconds(options.since, "--since"),
        "until": seconds(options.until, "--until"),
    }
    with closing(UsageLog(where(options), create=False)) as log:
        if options.by_hour:
            found = [({"hour": shown_time(hour)}, used) for hour, used in log.by_hour(**wanted)]
        else:
            found = [({}, used) for used in log.total(**wanted)]
        listed = [{**hour, **asdict(used)} for hour, used in found]
        rows = [[*(each | {"model_digest": each["model_digest"][:SHORT]}).values()] for each in listed]
        text = columns(("hour", *_HEAD) if options.by_hour else _HEAD, rows, "No usage.")
        result = {"registry": log.name, "since": options.since, "until": options.until, "usage": listed}
        finish(options, result, text)
