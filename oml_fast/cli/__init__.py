"""The command `oml-fast`: a file per sub-command, each a skin over a public function of the same name."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from . import demo, embed, evaluate_robustness, evaluate_utility, generate, info, verify
from .common import parse

__all__ = ["main"]

_COMMANDS = {
    "demo": demo,
    "generate": generate,
    "embed": embed,
    "verify": verify,
    "evaluate utility": evaluate_utility,
    "evaluate robustness": evaluate_robustness,
    "info": info,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 after a one-line error, 130 after Ctrl-C; argparse exits with 2 on wrong usage."""
    from ..errors import OmlError

    try:
        options = parse(_COMMANDS, arguments)
        _COMMANDS[options.command_name].run(options)
    except OmlError as error:
        print(f"oml-fast: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "oml-fast: interrupted; nothing is half-written. The same command goes on or starts again.", file=sys.stderr
        )
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return 0
