"""oml-fast info: what is available here, and why the rest is not."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from .common import finish, table

HELP = "say what is available here, and why the rest is not"


def add_options(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(options: argparse.Namespace) -> None:
    from .. import __version__, backends

    parts = backends.explain()
    rows = [("oml_fast", __version__)]
    rows += [(part.name, f"{'yes' if part.available else 'no '}  {part.detail}") for part in parts]
    result = {"version": __version__, "parts": {part.name: asdict(part) for part in parts}}
    finish(options, result, table(rows))
