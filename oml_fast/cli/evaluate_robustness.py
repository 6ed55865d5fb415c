"""oml-fast evaluate robustness: attack a fingerprinted model in every known way, and say what is left."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError
from .common import (
    add_device_options,
    finish,
    load_fingerprints,
    load_model,
    model_folder,
    names,
    prepare,
    public_data,
    resolved,
    say,
)

if TYPE_CHECKING:
    from ..evaluate.battery import Robustness

HELP = "attack a fingerprinted model in every known way, and say what is left"
_RESULT, _TABLE, _PARTS = "robustness.json", "robustness.txt", "parts"


class _List(argparse.Action):
    """Print the attacks and stop."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from ..evaluate.attacks import ALL
        from .common import table

        print(table([(attack.name, attack.cost) for attack in ALL]))
        parser.exit()


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="the fingerprinted model")
    parser.add_argument(
        "--base", type=Path, metavar="FOLDER", help="its base model (default: the bundled SmolLM2-135M-Instruct)"
    )
    parser.add_argument(
        "--fingerprints", type=Path, required=True, metavar="PATH", help="fingerprints file, or its folder"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="folder for results; the same command goes on in it"
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--attacks", type=names, default=(), help="names or families, as in sft/2e-5,merge (default: all)"
    )
    chosen.add_argument("--quick", action="store_true", help="only six kinds of attack: minutes, not hours")
    parser.add_argument(
        "--list", action=_List, nargs=0, default=False, help="print every attack with its cost, and stop"
    )
    parser.add_argument(
        "--sibling",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="another fingerprinted copy of the base; repeatable",
    )
    parser.add_argument(
        "--others", type=Path, action="append", metavar="PATH", help="set of another owner, for specificity; repeatable"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="public data (default: what OML_FAST_DATA names)")
    parser.add_argument("--seed", type=int, default=0, help="of attacks that draw (default: 0)")
    add_device_options(parser)


def run(options: argparse.Namespace) -> None:
    from ..evaluate.report import text

    result = make(options)
    say("")
    finish(options, result.to_json(), text(result))


def make(options: argparse.Namespace) -> Robustness:
    """Run the battery; write the result, the table and the plots."""
    from ..evaluate import plots
    from ..evaluate.attack import Scene
    from ..evaluate.attacks import QUICK, choose
    from ..evaluate.battery import robustness
    from ..evaluate.report import text
    from ..files import require_writable, write_atomic, write_json

    if options.quick and options.attacks:  # the parser refuses it on the command line, not in a file
        raise InvalidArgumentError("quick and attacks both given: choose one of them.")
    attacks = choose(QUICK if options.quick else options.attacks)
    if not options.sibling and not options.attacks:
        named = ", ".join(attack.name for attack in attacks if "sibling" in attack.needs)
        attacks = tuple(attack for attack in attacks if "sibling" not in attack.needs)
        if named:
            say(f"left out, since they need another fingerprinted copy of the base (--sibling): {named}")
    data = public_data(options)
    require_writable(options.out / _RESULT)
    fingerprints = load_fingerprints(options.fingerprints)
    others = [load_fingerprints(path) for path in options.others or ()]
    prepare()
    scene = Scene(
        model=load_model(options, options.model),
        base=load_model(options, model_folder(options.base)),
        fingerprints=fingerprints,
        siblings=tuple(load_model(options, folder) for folder in options.sibling or ()),
        data=data,
        seed=options.seed,
    )
    result = robustness(scene, attacks, others=others, folder=options.out / _PARTS, progress=True)
    write_json(options.out / _RESULT, {"config": resolved(options), "result": result.to_json()})
    write_atomic(options.out / _TABLE, text(result))
    plots.write({options.model.name: result.to_json()}, options.out)
    return result
