"""The suspects that a command names: weights in a folder, with transformers or vLLM, or an endpoint."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError
from .common import add_device_options, load_model, prepare, say, typed

if TYPE_CHECKING:
    from ..completer import Completer
    from ..fingerprint import FingerprintSet
    from ..models import LanguageModel

ENGINES = ("transformers", "vllm")
_SECRET = ("header", "proxy", "extra_body")  # may hold passwords: their values enter no message


def add_suspect_options(parser: argparse.ArgumentParser) -> None:
    from .endpoint_options import add_endpoint_options

    parser.add_argument("--model", type=Path, metavar="FOLDER", help="the suspect model's weights")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="the base model's, where the suspect's own was changed"
    )
    parser.add_argument(
        "--engine", choices=ENGINES, default="transformers", help="what runs the weights (default: transformers)"
    )
    parser.add_argument("--dtype", default="auto", help="of the weights in vLLM (default: auto)")
    parser.add_argument(
        "--tensor-parallel-size",
        type=int,
        default=1,
        metavar="N",
        help="GPUs for one model in vLLM (default: 1)",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="keys a batch, with transformers (default: 64)")
    add_endpoint_options(parser)
    add_device_options(parser)


def suspect(options: argparse.Namespace, sets: Iterable[FingerprintSet]) -> Completer:
    """The suspect that the options name, ready to be asked these sets. InvalidArgumentError: they name none, or two."""
    check_suspect(options)
    if options.endpoint is not None:
        from .endpoint_options import endpoint_from

        return endpoint_from(options, sorted({name for made in sets for name in made.settings.formats}))
    prepare()
    if options.engine == "vllm":
        from ..serving import VllmCompleter

        return VllmCompleter(
            options.model,
            dtype=options.dtype,
            tensor_parallel_size=options.tensor_parallel_size,
            trust_remote_code=options.trust_remote_code,
        )
    from ..models import HfCompleter

    model = load_model(options, options.model)
    if options.tokenizer is not None:
        _read_with(model, options.tokenizer)
    return HfCompleter(model, batch_size=options.batch_size, progress=True)


def _read_with(model: LanguageModel, folder: Path) -> None:
    """Let another tokenizer say what the model's token ids mean: one that was extended keeps the ids of the old one."""
    from ..models import load_tokenizer, tokenizer_digest

    model.tokenizer = load_tokenizer(folder)
    model.tokenizer_digest = tokenizer_digest(model.tokenizer)
    say(f"the suspect's token ids are read with the tokenizer in {folder}")


def check_suspect(options: argparse.Namespace) -> None:
    """Refuse options that name no suspect, two, or one that cannot be asked so. Loads and asks nothing."""
    _require_one(options)
    if options.endpoint is not None:
        from .endpoint_options import endpoint_settings

        endpoint_settings(options)
        return
    if not options.model.is_dir():
        raise InvalidArgumentError(f"there is no model folder {options.model}: name the suspect's with --model.")
    if options.tokenizer is not None and options.engine == "vllm":
        raise InvalidArgumentError("--tokenizer goes with --engine transformers: vLLM reads the model's own.")
    if options.engine == "vllm":
        # The null models of a second opinion run with transformers, on the device named.
        if options.device != "auto" and not getattr(options, "null_model", None):
            raise InvalidArgumentError(
                f"--device {options.device} is for transformers: vLLM takes the device that it was built for. Leave "
                "--device out, or choose --engine transformers."
            )
    elif options.dtype != "auto":
        raise InvalidArgumentError(
            f"--dtype {options.dtype} is for vLLM: transformers takes the dtype of the weights. Leave --dtype out, or "
            "choose --engine vllm."
        )


def suspect_name(options: argparse.Namespace) -> str:
    """What reports and the registry call the suspect: `--suspect`, or what is asked. InvalidArgumentError."""
    if options.suspect:
        return str(options.suspect)
    _require_one(options)
    if options.endpoint is not None:
        from .endpoint_options import endpoint_settings

        return f"{options.endpoint_model or 'model'} at {endpoint_settings(options).shown}"  # no query, no password
    return str(options.model.resolve())  # one folder, one name


def read_suspects(path: Path, options: argparse.Namespace) -> dict[str, argparse.Namespace]:
    """Each suspect's options, by name: a YAML list of mappings with a `name` and the options of one suspect.

    What the file leaves out is as on the command line. Raises InvalidArgumentError, before anything is loaded or asked.
    """
    from ..settings import read_config

    listed = read_config(path).get("suspects")
    if not isinstance(listed, list) or not listed or not all(isinstance(entry, dict) for entry in listed):
        raise InvalidArgumentError(
            f"{path}: it needs a list `suspects`, each with a name and a model or an endpoint (docs/verification.md)."
        )
    actions = _actions()
    found: dict[str, argparse.Namespace] = {}
    for place, entry in enumerate(listed, 1):
        own = argparse.Namespace(**{**vars(options), "suspect": None})
        for key, value in entry.items():
            _set(own, actions, str(key), value, path)
        try:
            own.suspect = suspect_name(own)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{path}: suspect {place}: {error}") from error
        if own.suspect in found:
            raise InvalidArgumentError(f"{path}: two suspects are called {own.suspect!r}: give each its own name.")
        found[own.suspect] = own
    for name, own in found.items():
        try:
            check_suspect(own)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{path}: suspect {name!r}: {error}") from error
    return found


def loaders(
    suspects: Mapping[str, argparse.Namespace], sets: Mapping[str, FingerprintSet]
) -> dict[str, Callable[[], Completer]]:
    """For each suspect a function that loads it."""

    def loader(options: argparse.Namespace) -> Callable[[], Completer]:
        return lambda: suspect(options, sets.values())

    return {name: loader(options) for name, options in suspects.items()}


def _require_one(options: argparse.Namespace) -> None:
    if (options.model is None) == (options.endpoint is None):
        raise InvalidArgumentError("name one suspect: its weights with --model FOLDER, or --endpoint URL.")


def _actions() -> dict[str, argparse.Action]:
    """The options of a suspect, and its name, as a file may spell them."""
    parser = argparse.ArgumentParser(add_help=False)
    add_suspect_options(parser)
    parser.add_argument("--name")
    return {action.dest: action for action in parser._actions}


def _set(options: argparse.Namespace, actions: Mapping[str, argparse.Action], key: str, value: Any, path: Path) -> None:
    """Set one option to a value of the file, as the command line would have."""
    name = key.replace("-", "_")
    if name not in actions:
        raise InvalidArgumentError(f"{path}: {key!r} is no option of a suspect; it has {', '.join(sorted(actions))}.")
    action = actions[name]
    if not _plausible(action, value):
        shown = "this" if name in _SECRET else repr(value)
        raise InvalidArgumentError(f"{path}: {key} cannot be {shown}: give it as on the command line, text in quotes.")
    if action.type in (int, float) and value is not None:
        value = str(value)  # else 2.5 would become 2, and true 1
    setattr(options, "suspect" if name == "name" else name, typed(action, key, value, str(path)))


def _plausible(action: argparse.Action, value: Any) -> bool:
    """Whether a value of YAML has the kind that the option is given as; what it says is checked after."""
    if value is None:
        return action.default is None and action.dest != "header"
    if isinstance(action.default, bool):
        return isinstance(value, bool)
    if action.type in (int, float):
        return isinstance(value, int | float | str)
    if isinstance(value, list):
        return action.dest == "header" and all(isinstance(each, str) for each in value)
    return isinstance(value, str) or (action.dest == "extra_body" and isinstance(value, dict))
