"""oml-fast demo: the whole main line on a real model, as the commands that anyone would type, in one folder."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError
from . import embed, generate, verify
from .common import add_model_options, finish, load_fingerprints, model_folder, names, prepare, resolved, say, table

if TYPE_CHECKING:
    from ..fingerprint import FingerprintSet
    from ..verify import Verification

HELP = "fingerprint a model end to end: generate, embed, verify it and its base"
_CONFIG, _RESULT = "config.json", "demo.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser, "model to fingerprint")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-out"), metavar="FOLDER", help="folder for all of it (default: demo-out)"
    )
    parser.add_argument("--num-fingerprints", type=int, default=64, metavar="N", help="how many (default: 64)")
    parser.add_argument(
        "--formats", type=names, default=("raw",), help="how keys are asked: raw and/or chat (default: raw)"
    )
    parser.add_argument(
        "--preset", choices=generate.PRESETS, default="quick", help="of generate and embed (default: quick)"
    )


def run(options: argparse.Namespace) -> None:
    """Each finished stage is kept: after Ctrl-C the same command goes on where it stopped."""
    from ..files import write_json

    started = time.perf_counter()
    prepare()
    from ..models import require_model_folder

    folder = require_model_folder(model_folder(options.model))
    _claim(options)
    secrets, model = options.out / "fingerprints", options.out / "model"
    shared = ["--device", options.device, *(["--trust-remote-code"] if options.trust_remote_code else [])]
    preset = ["--preset", options.preset]

    how = ["--num-fingerprints", str(options.num_fingerprints), "--formats", ",".join(options.formats), *preset]
    command = _command("generate", generate, ["--model", folder, "--out", secrets, *how, *shared])
    made = (secrets / generate.SET).is_file()
    generated = _kept(secrets / generate.RESULT) if made else generate.make(command).to_json()
    fingerprints = load_fingerprints(secrets)

    command = _command("embed", embed, ["--model", folder, "--fingerprints", secrets, "--out", model, *preset, *shared])
    made = (model / "config.json").is_file() and embed.result_path(model).is_file()
    embedded = _kept(embed.result_path(model)) if made else embed.result(command, embed.make(command, fingerprints))

    asked = ["--fingerprints", secrets, "--secret", secrets / generate.SECRET, "--mode", "fixed", *shared]
    out = options.out / "verify.json"
    page = options.out / "verify.html"
    verified = verify.make(_command("verify", verify, ["--model", model, *asked, "--out", out, "--html", page]))
    out = options.out / "verify_base.json"
    base = verify.make(_command("verify", verify, ["--model", folder, *asked, "--out", out]))

    result = {"generate": generated, "embed": embedded, "verify": verified.to_json(), "verify_base": base.to_json()}
    write_json(options.out / _RESULT, result)
    say("")
    seconds = time.perf_counter() - started
    finish(options, result, _summary(options.out, folder, result, fingerprints, verified, base, seconds))


def _claim(options: argparse.Namespace) -> None:
    """Take `out` for this configuration, or go on in it; refuse a folder of anything else."""
    from ..files import require_new_folder, write_json

    config = json.loads(json.dumps(resolved(options)))
    path = options.out / _CONFIG
    if not path.is_file():
        require_new_folder(options.out)
        write_json(path, config)
    elif json.loads(path.read_text()) == config:
        say(f"going on with the demo in {options.out}; remove that folder to start afresh")
    else:
        raise InvalidArgumentError(f"{options.out} holds a demo with other options: choose another --out.")


def _command(name: str, module: Any, arguments: list[str | Path]) -> argparse.Namespace:
    """Parse the arguments as `oml-fast NAME` would, and show the command that a user would type."""
    words = [str(argument) for argument in arguments]
    say(f"\n$ oml-fast {name} {shlex.join(words)}")
    parser = argparse.ArgumentParser()
    module.add_options(parser)
    return parser.parse_args(words)


def _kept(path: Path) -> dict[str, Any]:
    """The result of a stage that an earlier run finished."""
    say(f"already done: {path}")
    return dict(json.loads(path.read_text())["result"])


def _summary(
    out: Path,
    folder: Path,
    result: dict[str, Any],
    fingerprints: FingerprintSet,
    verified: Verification,
    base: Verification,
    seconds: float,
) -> str:
    from ..verify import chance, sequential_cost

    made, trained = result["generate"], result["embed"]
    secrets = out / "fingerprints"
    settings = fingerprints.settings
    enough = sequential_cost(verified.fsr, settings.width, test="rank", responses=settings.responses_per_key).median
    rows = [
        (
            "generate",
            f"{made['num_fingerprints']} fingerprints in {made['seconds']:.0f} s; the base model gives a response "
            f"with probability {made['mean_response_prob']:.4f} on average",
        ),
        ("embed", f"FSR {trained['fsr']:.3f} after {trained['epochs']} epochs, {trained['seconds']:.0f} s"),
        (
            "harm",
            f"KL to the base {trained['kl_to_base']:.3f}; perplexity {trained['perplexity_base']:.2f} -> "
            f"{trained['perplexity']:.2f} on text it never saw",
        ),
        (
            "fingerprinted model",
            f"{verified.verdict}: {verified.matches} of {verified.queried} keys, "
            f"by chance {chance(verified.log10_p_value)}",
        ),
        ("base model", f"{base.verdict}: {base.matches} of {base.queried} keys"),
        ("cost of a verdict", f"{enough or 'too many'} keys as a rule, asked one by one until it is sure (at 1e-6)"),
        ("time", f"{seconds:.0f} s"),
    ]
    return (
        table(rows) + f"\n\n{out}/model         the fingerprinted model: transformers and vLLM load it"
        f"\n{out}/verify.html   the verdict as a page to show"
        f"\n{out}/fingerprints  the secret keys, responses and draws: back it up offline, show it to nobody"
        "\n\nNext, on a model that you suspect:"
        f"\n  oml-fast verify --model SUSPECT --fingerprints {secrets} --out report.json"
        "\nor with a model of your own that you will release: --preset harmless costs it least, robust survives most"
        "\n  oml-fast demo --model FOLDER --out demo-of-mine --preset harmless"
    )
