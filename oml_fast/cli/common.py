"""What the commands share: parsing with a configuration file, loading, printing. Imports nothing heavy."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InvalidArgumentError

if TYPE_CHECKING:
    from ..evaluate.data import Data
    from ..fingerprint import FingerprintSet
    from ..models import LanguageModel, Ranks

_INTERNAL = ("command", "subcommand", "command_name", "config", "json")


class Command(Protocol):
    """A module of this package that is a sub-command."""

    HELP: str

    def add_options(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, options: argparse.Namespace) -> None: ...


def parse(commands: Mapping[str, Any], arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, with the values of `--config FILE` standing in for options that are not given.

    A name of two words is a sub-command of a group: "evaluate utility".
    """
    from .. import __version__

    parser = argparse.ArgumentParser(
        prog="oml-fast", description="Fingerprint open-weight language models, and verify the fingerprints."
    )
    parser.add_argument("--version", action="version", version=f"oml-fast {__version__}")
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers: dict[str, argparse.ArgumentParser] = {}
    groups: dict[str, Any] = {}
    for name, command in commands.items():
        group, _, own = name.rpartition(" ")
        if group and group not in groups:
            about = ", ".join(other for other in commands if other.startswith(f"{group} "))
            made = choices.add_parser(group, help=f"has sub-commands: {about}", description=f"Commands: {about}.")
            groups[group] = made.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
        parsers[name] = groups.get(group, choices).add_parser(own, help=command.HELP, description=command.HELP)
        command.add_options(parsers[name])
        parsers[name].add_argument("--config", metavar="FILE", help="YAML file with values for these options")
        parsers[name].add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        parsers[name].set_defaults(command_name=name)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    chosen = _chosen(parsers, arguments)
    if chosen and any(action.nargs == argparse.REMAINDER for action in parsers[chosen]._actions):
        config = parser.parse_args(arguments).config  # another one may stand among what is passed on
    else:
        config = _config_path(arguments)
    if config is not None and chosen:
        _set_defaults(parsers[chosen], chosen, config)
    return parser.parse_args(arguments)


def resolved(options: argparse.Namespace) -> dict[str, Any]:
    """Every option with its value, as it is saved beside the output."""
    return {name: _plain(value) for name, value in sorted(vars(options).items()) if name not in _INTERNAL}


def add_model_options(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help=f"{what} (default: the bundled SmolLM2-135M-Instruct)"
    )
    add_device_options(parser)


def add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: a GPU where there is one)"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that the model's folder brings"
    )


def prepare() -> None:
    """Settings of this process that a command, not a library, may choose: quiet third parties, no hub, memory."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for results
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Two caches, oneDNN's and torch's of it, keep 1,024 compiled products each: by the GiB, and no time is saved.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
    from ..models import keep_freed_memory

    keep_freed_memory()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def model_folder(folder: Path | None) -> Path:
    """The folder named, or the bundled model's, converted on first use."""
    if folder is not None:
        return folder
    from .. import settings
    from ..models import bundled_model

    say("using the bundled model, SmolLM2-135M-Instruct")
    return bundled_model(settings.cache_dir())


def load_model(options: argparse.Namespace, folder: Path, *, packed: bool = False) -> LanguageModel:
    from ..models import load

    return load(folder, device=options.device, trust_remote_code=options.trust_remote_code, packed=packed)


def is_first() -> bool:
    """Whether this process speaks: the first that torchrun started, or the only one."""
    from .. import settings

    share = settings.shard()
    return share is None or share[0] == 1


def is_torchrun() -> bool:
    """Whether torchrun started several processes."""
    from .. import settings

    share = settings.shard()
    return share is not None and share[1] > 1


def shard_here(options: argparse.Namespace) -> tuple[int, int]:
    """(i, n): the share that --shard names, or torchrun, else all."""
    from .. import settings

    if not options.shard:
        return settings.shard() or (1, 1)
    index, _, count = options.shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise InvalidArgumentError(f"shard {options.shard!r}: write i/n with i between 1 and n, as in 1/3.")
    return int(index), int(count)


def device_here(device: str) -> str:
    """`device` as this process's own: on a GPU, that of its number on this machine."""
    from .. import settings
    from ..models import resolve_device

    resolved = resolve_device(device)
    return f"cuda:{settings.local_rank()}" if resolved == "cuda" else resolved


@contextlib.contextmanager
def joined_ranks(options: argparse.Namespace) -> Iterator[Ranks]:
    """The processes that torchrun started, connected; one alone where it started no more."""
    from ..models import ALONE, joined

    if not is_torchrun():
        yield ALONE
        return
    with joined(device_here(options.device)) as ranks:
        yield ranks


def load_fingerprints(path: Path) -> FingerprintSet:
    """The set in a file, or in the folder that `generate` wrote."""
    from ..fingerprint import FingerprintSet

    return FingerprintSet.load(path / "fingerprints.json" if path.is_dir() else path)


def public_data(options: argparse.Namespace) -> Data:
    """The data that `--data` names, which must be there, or the environment, which may name none that is."""
    from .. import settings
    from ..evaluate.data import Data

    data = Data(options.data or settings.data_dir())
    if options.data is not None:
        data.require_folder()
    return data


def finish(options: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    """Print the result: one JSON object with --json, otherwise the text."""
    print(json.dumps(result, indent=2) if options.json else text.rstrip("\n"))


def say(message: str) -> None:
    """One line of progress, on stderr; of several processes the first one speaks."""
    if is_first():
        print(message, file=sys.stderr)


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns, the first as wide as its widest name."""
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in rows)


def names(text: str | Sequence[str]) -> tuple[str, ...]:
    """A list given as "a,b" on the command line or as a list in a file."""
    return tuple(name.strip() for name in text.split(",")) if isinstance(text, str) else tuple(text)


def _chosen(names: Iterable[str], arguments: Sequence[str]) -> str | None:
    """The command that the arguments name, of one word or two."""
    words = [argument for argument in arguments if not argument.startswith("-")]
    return next((name for name in names if words[: len(name.split())] == name.split()), None)


def _config_path(arguments: Sequence[str]) -> str | None:
    for place, argument in enumerate(arguments):
        if argument == "--config" and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
    return None


def _set_defaults(parser: argparse.ArgumentParser, command: str, config: str) -> None:
    from ..settings import read_config

    actions = {action.dest: action for action in parser._actions if action.dest not in (*_INTERNAL, "help")}
    for name, value in read_config(config).items():
        action = actions.get(name.replace("-", "_"))
        if action is None:
            known = ", ".join(sorted(actions))
            raise InvalidArgumentError(f"{config}: {name!r} is no option of {command}; it has {known}.")
        action.default = typed(action, name, value, config)
        action.required = False


def typed(action: argparse.Action, name: str, value: Any, config: str) -> Any:
    """The value as the command line would have given it; the option's own type checks it."""
    if isinstance(action.default, bool):
        good = isinstance(value, bool)
    elif isinstance(action, argparse._AppendAction):
        good = isinstance(value, str | list) and all(isinstance(each, str) for each in value)
        convert = action.type if callable(action.type) else str
        value = [convert(each) for each in ([value] if isinstance(value, str) else value)] if good else value
    else:
        good = value is None or action.choices is None or value in action.choices
        if action.type is int and isinstance(value, float | bool):
            good = False  # int() would cut it
        if good and value is not None and action.type is not None:
            try:
                value = action.type(value)  # type: ignore[operator]
            except (TypeError, ValueError):
                good = False
    if not good:
        raise InvalidArgumentError(f"{config}: {name} cannot be {value!r}.")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
