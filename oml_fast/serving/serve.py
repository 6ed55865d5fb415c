"""`vllm serve` behind a permission gate: which command is run, and what is refused because it would go around it.

vLLM's gRPC server and its Rust frontend never call ASGI middleware, and its API key is compared with the header that
carries the permission token. All other options pass through as they are. The gate is the last middleware named, so it
stands before all others.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..errors import BackendUnavailableError, InvalidArgumentError
from ..permission import KeyFile
from ..settings import read_config, vllm_switches
from ..signing import read_verification_key
from .gate_settings import GateSettings
from .permission_gate import open_store

GATE = "oml_fast.serving.permission_gate.PermissionGate"
_REFUSED = {
    "--grpc": "its gRPC server calls no middleware",
    "--grpc-port": "its gRPC server calls no middleware",
    "--omni": "its other frontend was not tried with the permission gate",
    "--api-key": "the Authorization header carries the permission token",
}


def vllm_command(model: str, options: Sequence[str]) -> list[str]:
    """The command that serves `model` with vLLM's own `options` behind the gate.

    Raises InvalidArgumentError for an option, in `options` or in the file that their --config names, or a variable
    that would bypass or block it, BackendUnavailableError where vLLM is not installed.
    """
    if model.startswith("-"):
        raise InvalidArgumentError(f"{model} is no model: name a folder, and put vLLM's options after it.")
    for option in [*options, *_configured(options)]:
        if reason := _refused(option):
            raise InvalidArgumentError(
                f"vllm serve cannot have {option.partition('=')[0]} here: {reason}. Leave it out."
            )
    if found := vllm_switches():
        raise InvalidArgumentError(f"{found[0]} is set, with which no permission would be checked: unset it.")
    program = Path(sys.executable).with_name("vllm")
    path = str(program) if program.is_file() else shutil.which("vllm")
    if path is None:
        raise BackendUnavailableError("the program vllm is not installed: pip install 'oml_fast[vllm]'.")
    return [path, "serve", model, "--enable-force-include-usage", *options, "--middleware", GATE]


def served_names(model: str, options: Sequence[str]) -> list[str]:
    """The names by which requests may ask for the model: those of --served-model-name, or the model's own."""
    given: list[str] = []
    configured = _config(options).get("served-model-name", [])
    taking = False
    for option in options:
        name, _, value = option.partition("=")
        if option.startswith("-"):
            taking = name.replace("_", "-") == "--served-model-name"
            given += [value] if taking and value else []
        elif taking:
            given.append(option)
    return given or ([configured] if isinstance(configured, str) else list(configured)) or [model]


def check_settings(settings: GateSettings) -> None:
    """Open what the gate will open, so that what is wrong is said now and not in a minute. Raises OmlError."""
    store = open_store(settings.store)
    try:
        KeyFile(settings.keys, read_verification_key(settings.owner_key), store).current(time.time())
    finally:
        store.close()


def _refused(option: str) -> str | None:
    """Why an option is refused; its abbreviations are, too, for argparse takes them."""
    name = option.partition("=")[0].replace("_", "-")
    if not name.startswith("--") or name == "--":
        return None
    return next((reason for refused, reason in _REFUSED.items() if refused.startswith(name)), None)


def _configured(options: Sequence[str]) -> Iterator[str]:
    """What vLLM's own configuration file switches on, as the options that vLLM makes of it."""
    for name, value in _config(options).items():
        if value is not None and value is not False:
            yield f"--{name}"
        yield from map(str, value if isinstance(value, list) else [value])


def _config(options: Sequence[str]) -> Mapping[str, Any]:
    paths: Iterable[str] = [
        option.partition("=")[2] or following
        for option, following in zip_longest(options, options[1:], fillvalue="")
        if option.partition("=")[0] == "--config"
    ]
    return {name.replace("_", "-"): value for path in paths for name, value in read_config(path).items()}
