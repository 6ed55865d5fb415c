"""The figures of the HTML report, as inline SVG: equal reports give equal figures; grey and black carry the meaning."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from . import figures

INK, GREY, LIGHT = "#1a1a1a", "#767676", "#d9d9d9"
_MOST_MARKS = 80
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_CELL, _COLUMNS = 10, 64


def path(verification: Mapping[str, Any]) -> str:
    """The evidence after each key, beside its limit: against chance, and against an FSR of `smallest_fsr` or more."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    v = verification
    chance, miss = figures.paths(v)
    matched = [key["matched"] for key in v["keys"]]
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "oml_fast", "font.size": 9, "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.1, 2.7), layout="constrained")
        FigureCanvasSVG(figure)
        left, right = figure.subplots(1, 2)
        _panel(left, chance, matched, -math.log10(v["false_positive_rate"]), "Evidence of the fingerprints")
        _panel(right, miss, matched, -math.log10(v["miss_rate"]), f"Evidence against an FSR of {v['smallest_fsr']:g}")
        right.set_ylabel("")
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    about = "Two line charts of the evidence after each key, with its limit; the numbers are in the table of keys."
    return _inline(file.getvalue(), about)


def _panel(axes: Any, values: Sequence[float], matched: Sequence[bool], limit: float, title: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    keys = range(len(values) + 1)
    path = [0.0, *values]
    low, high = min(path), max(*path, limit)
    axes.set_title(title, loc="left", fontsize=9, color=INK, pad=10)
    axes.plot(keys, path, color=INK, lw=1.3, zorder=3)
    if len(values) <= _MOST_MARKS:
        for seen, face in ((True, INK), (False, "white")):
            at = [place + 1 for place, match in enumerate(matched) if match is seen]
            size = 4.5 if len(values) <= 40 else 3
            axes.plot(at, [path[x] for x in at], "o", ms=size, mec=INK, mfc=face, mew=0.9, ls="", zorder=4)
    axes.axhline(limit, color=INK, lw=0.9, ls=(0, (4, 3)))
    axes.axhline(0, color=LIGHT, lw=0.8, zorder=1)
    above = (high - low) * 0.03
    axes.text(0, limit + above, f"limit {_power(limit)}", fontsize=8, color=INK, ha="left", va="bottom")
    axes.set_xlim(-0.02 * len(values), len(values) * 1.03)
    axes.set_ylim(low - (high - low) * 0.06, high + (high - low) * 0.16)
    axes.set_xlabel("keys asked", color=GREY, fontsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    axes.tick_params(colors=GREY, labelsize=8.5, length=3, width=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LIGHT)


def keys(verification: Mapping[str, Any]) -> str:
    """A square for each key in the order asked: full, it matched; open, it touched its window; a dot, neither."""
    full, touched, none, silent = [], [], [], []
    for place, key in enumerate(verification["keys"]):
        x, y = place % _COLUMNS * _CELL + 1, place // _COLUMNS * _CELL + 1
        if key["matched"]:
            full.append(f"M{x} {y}h8v8h-8z")
        elif any(key["satisfied"].values()):
            touched.append(f"M{x + 0.5} {y + 0.5}h7v7h-7z")
        elif key["answered"]:
            none.append(f"M{x + 3} {y + 3}h2v2h-2z")
        else:
            silent.append(f"M{x + 2} {y + 2}l4 4m0 -4l-4 4")
    count = len(verification["keys"])
    width, height = min(count, _COLUMNS) * _CELL, math.ceil(count / _COLUMNS) * _CELL
    shapes = [(full, f'fill="{INK}"'), (touched, f'fill="none" stroke="{INK}"')]
    shapes += [(none, f'fill="{GREY}"'), (silent, f'fill="none" stroke="{GREY}"')]
    drawn = "".join(f'<path d="{"".join(parts)}" {style}/>' for parts, style in shapes if parts)
    about = f"{len(full)} of {count} keys matched, {len(touched)} touched their window without a match."
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg role="img" aria-label="{about}" {size}>{drawn}</svg>'


def interval(low: float, seen: float, high: float) -> str:
    """A line from 0 to 1 with the interval on it and a dot where the FSR was seen."""
    x = [f"{4 + 192 * value:.1f}" for value in (low, seen, high)]
    return (
        f'<svg role="img" aria-label="{seen:.0%}, between {low:.0%} and {high:.0%}" width="200" height="14" '
        f'viewBox="0 0 200 14"><path d="M4 7H196M4 4v6M100 5.5v3M196 4v6" stroke="{LIGHT}" fill="none"/>'
        f'<path d="M{x[0]} 7H{x[2]}" stroke="{INK}" stroke-width="3"/><circle cx="{x[1]}" cy="7" r="4" fill="{INK}" '
        'stroke="#fff" stroke-width="1.2"/></svg>'
    )


def _power(exponent: float) -> str:
    """Ten to that power: 1, 10, 100, then 10⁶."""
    whole = round(exponent)
    if abs(exponent - whole) > 1e-6:
        return f"{10**exponent:.3g}"
    return f"{10**whole:,}" if 0 <= whole <= 3 else f"10{str(whole).translate(_SUPERSCRIPTS)}"


def _inline(svg: str, about: str) -> str:
    """An SVG file as it can stand in HTML: without prolog and metadata, with words for who does not see it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{about}" ', 1).strip()
