"""The command `oml-fast`: a file per sub-command, each a skin over a public function of the same name."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from . import (
    commit_check,
    commit_make,
    commit_open,
    commit_stamp,
    demo,
    embed,
    evaluate_fsr,
    evaluate_robustness,
    evaluate_utility,
    fingerprints_export,
    fingerprints_import,
    generate,
    identify,
    info,
    keygen,
    permission_check,
    permission_export,
    permission_issue,
    permission_keygen,
    permission_revoke,
    plan,
    power,
    registry_add_licensee,
    registry_add_model,
    registry_add_set,
    registry_keys,
    registry_licensees,
    registry_sets,
    registry_spend,
    registry_upgrade,
    registry_usage,
    registry_verifications,
    report_check,
    report_open,
    report_show,
    serve,
    verify,
)
from .common import parse
from .outputs import require_outputs

__all__ = ["main"]

_COMMANDS = {
    "demo": demo,
    "generate": generate,
    "plan": plan,
    "embed": embed,
    "verify": verify,
    "identify": identify,
    "power": power,
    "report show": report_show,
    "report check": report_check,
    "report open": report_open,
    "commit make": commit_make,
    "commit stamp": commit_stamp,
    "commit check": commit_check,
    "commit open": commit_open,
    "keygen": keygen,
    "registry add-licensee": registry_add_licensee,
    "registry licensees": registry_licensees,
    "registry add-set": registry_add_set,
    "registry sets": registry_sets,
    "registry add-model": registry_add_model,
    "registry keys": registry_keys,
    "registry verifications": registry_verifications,
    "registry spend": registry_spend,
    "registry usage": registry_usage,
    "registry upgrade": registry_upgrade,
    "permission keygen": permission_keygen,
    "permission issue": permission_issue,
    "permission check": permission_check,
    "permission revoke": permission_revoke,
    "permission export": permission_export,
    "serve": serve,
    "fingerprints import": fingerprints_import,
    "fingerprints export": fingerprints_export,
    "evaluate utility": evaluate_utility,
    "evaluate robustness": evaluate_robustness,
    "evaluate fsr": evaluate_fsr,
    "info": info,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 after a one-line error, 130 after Ctrl-C; argparse exits with 2 on wrong usage."""
    from ..errors import OmlError

    try:
        options = parse(_COMMANDS, arguments)
        require_outputs(options)
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
