"""oml-fast power: how many keys a verdict takes, before any is spent."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InvalidArgumentError
from .common import finish, names

HELP = "say how many keys a verdict takes, for which error at which FSR"
TESTS = ("rank", "forced_choice", "window", "count")
FSRS = (1.0, 0.9, 0.5, 0.2, 0.05)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fsr", type=numbers, default=FSRS, help="shares kept (default: 1,0.9,0.5,0.2,0.05)")
    parser.add_argument("--width", type=int, default=16, help="candidates in a window (default: 16)")
    parser.add_argument("--responses-per-key", type=int, default=1, help="drawn without replacement (default: 1)")
    parser.add_argument("--tests", type=names, default=TESTS, help=f"of {', '.join(TESTS)} (default: all)")
    parser.add_argument("--false-positive-rate", type=float, default=1e-6, help="of a match (default: 1e-6)")
    parser.add_argument("--smallest-fsr", type=float, default=0.5, help="what no_match excludes (default: 0.5)")
    parser.add_argument("--miss-rate", type=float, default=1e-2, help="of a no_match (default: 0.01)")
    parser.add_argument("--num-keys", type=int, default=1000, metavar="N", help="at most so many (default: 1000)")


def run(options: argparse.Namespace) -> None:
    from ..verify import keys_to_verdict, sequential_cost

    rows: list[dict[str, Any]] = []
    for test in options.tests:
        for fsr in options.fsr:
            cost = sequential_cost(
                fsr,
                options.width,
                options.false_positive_rate,
                test=test,
                responses=options.responses_per_key,
                smallest_fsr=options.smallest_fsr,
                miss_rate=options.miss_rate,
                most_keys=options.num_keys,
            )
            fixed = None
            if test in ("window", "count"):
                fixed = keys_to_verdict(
                    fsr, options.width, options.false_positive_rate, test=test, responses=options.responses_per_key
                )
            rows.append(
                {
                    "test": test,
                    "fsr": fsr,
                    "median": cost.median,
                    "in_99_of_100": cost.in_99_of_100,
                    "match": cost.match,
                    "no_match": cost.no_match,
                    "fixed": fixed,
                }
            )
    finish(options, {"width": options.width, "rows": rows}, _text(rows, options))


def numbers(text: str | list[float]) -> tuple[float, ...]:
    """Numbers given as "1,0.5" on the command line, or as a list in a file."""
    try:
        return tuple(float(part) for part in (text.split(",") if isinstance(text, str) else text))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{text!r}: give numbers with commas between them, as in 1,0.5.") from error


def _text(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    head = ("test", "FSR", "median", "99 in 100", "match", "no_match", "fixed, 99 in 100")
    lines = [head]
    for row in rows:
        keys = [_keys(row[name], options.num_keys) for name in ("median", "in_99_of_100")]
        fixed = "" if row["test"] not in ("window", "count") else _keys(row["fixed"], 100_000)
        lines.append((row["test"], f"{row['fsr']:g}", *keys, f"{row['match']:.1%}", f"{row['no_match']:.1%}", fixed))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(
        [
            f"Keys to a verdict at {options.false_positive_rate:g}, width {options.width} (sequential, simulated):",
            "",
            *table,
            "",
            f"no_match excludes an FSR of {options.smallest_fsr:g} or more at a miss rate of {options.miss_rate:g}:",
            "a model below that may end so before its evidence is enough. Ask with a lower --smallest-fsr to go on.",
            "Medians are over both ends. Keys without a match are taken to answer as chance does. A real eroded",
            "model still prefers their responses among candidates: rank and forced_choice then cost less than this.",
        ]
    )


def _keys(count: int | None, most: int) -> str:
    return f"> {most}" if count is None else str(count)
