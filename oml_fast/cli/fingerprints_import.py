"""oml-fast fingerprints import: a set published by another tool, as a set of this one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError
from .common import finish, prepare, resolved, table

if TYPE_CHECKING:
    from ..interchange import Imported

HELP = "read a set in a published format, and say what is lost"
_SET, _RESULT = "fingerprints.json", "import.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="PATH",
        help="published JSON list, or MLprints' folder or YAML file",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder for the set")
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="the base model of the set: its tokenizer and its digest are taken"
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="only a tokenizer, where the base model is not at hand"
    )
    parser.add_argument(
        "--width", type=int, default=3, help="candidates that each response was drawn from (default: 3)"
    )
    parser.add_argument("--format", default="raw", choices=("raw", "chat"), help="how keys are asked (default: raw)")
    parser.add_argument("--key-length", type=int, help="cut keys to so many token ids, as their training did")
    parser.add_argument(
        "--response-length", type=int, help="token ids in a response (default: the most that all have, up to 32)"
    )
    parser.add_argument("--key-field", default="key", metavar="NAME", help="of MLprints' entries (default: key)")
    parser.add_argument(
        "--response-field", default="response", metavar="NAME", help="of MLprints' entries (default: response)"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that the tokenizer's folder brings"
    )


def run(options: argparse.Namespace) -> None:
    imported = make(options)
    finish(options, imported.to_json(), summary(imported, options.out))


def make(options: argparse.Namespace) -> Imported:
    """Import into a new folder, mode 0700: the set, and what became of every entry."""
    from ..files import SECRET_MODE, new_folder, require_new_folder, write_json
    from ..interchange import import_published, read_published

    require_new_folder(options.out)
    if (options.model is None) == (options.tokenizer is None):
        raise InvalidArgumentError(
            "texts become token ids by a tokenizer: name the set's base model with --model, or a tokenizer with "
            "--tokenizer, and not both."
        )
    published = read_published(options.source, key_field=options.key_field, response_field=options.response_field)
    prepare()
    imported = import_published(
        published,
        width=options.width,
        response_length=options.response_length,
        key_length=options.key_length,
        format=options.format,
        **_model(options),
    )
    with new_folder(options.out) as folder:
        imported.fingerprints.save(folder / _SET)
        write_json(folder / _RESULT, {"config": resolved(options), "result": imported.to_json()}, SECRET_MODE)
    options.out.chmod(0o700)
    return imported


def summary(imported: Imported, out: Path) -> str:
    """What came along and what did not."""
    settings = imported.fingerprints.settings
    dropped = ", ".join(f"{reason} {len(places)}" for reason, places in imported.dropped.items()) or "none"
    shape = f"{settings.responses_per_key} a key, {settings.response_length} token ids each"
    unknown = f"unknown for {imported.unknown_probs} responses" if imported.unknown_probs else "known"
    rows = [
        ("fingerprints", f"{len(imported.fingerprints)} of {imported.read} in {out / _SET}"),
        ("left out", dropped),
        ("responses", shape),
        ("their probabilities", unknown),
        *(("lost", words) for words in imported.lost),
    ]
    return table(rows)


def _model(options: argparse.Namespace) -> dict[str, Any]:
    """The tokenizer and what is known of the base model."""
    from ..models import load_tokenizer, model_digest, tokenizer_digest

    if options.model is not None:
        tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
        known = {"base_model": options.model.name, "base_model_digest": model_digest(options.model)}
    else:
        tokenizer, known = _tokenizer(options), {}
    return {"tokenizer": tokenizer, "tokenizer_digest": tokenizer_digest(tokenizer), **known}


def _tokenizer(options: argparse.Namespace) -> Any:
    import transformers

    try:
        if not options.tokenizer.is_dir():
            raise OSError("no such folder")
        return transformers.AutoTokenizer.from_pretrained(
            options.tokenizer, trust_remote_code=options.trust_remote_code, local_files_only=True
        )
    except (ValueError, TypeError, OSError, KeyError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidArgumentError(
            f"{options.tokenizer} holds no tokenizer that can be loaded ({reason}): name a folder that save_pretrained "
            "wrote one into."
        ) from error
