"""Three plots of robustness reports: bits a key, FSR against utility, persistence against what is left of the delta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49", "#8d6a9f", "#5c5c5c")
Reports = Mapping[str, Mapping[str, Any]]  # label of a model -> its Robustness as JSON


def write(reports: Reports, folder: Path, prefix: str = "") -> list[Path]:
    """All plots of all reports as SVG into `folder`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{prefix}{name}.svg" for name in ("bits_per_key", "fsr_against_utility", "persistence")]
    for draw, path in zip((bits_per_key, fsr_against_utility, persistence), paths, strict=True):
        draw(reports, path)
    return paths


def bits_per_key(reports: Reports, path: Path) -> None:
    """Bars of evidence by the window test, an attack a line, a model a colour; the dot is the count test's."""
    names = _attacks(reports)
    figure, axes = _figure(9, 1.4 + 0.22 * len(names) * (0.6 + 0.4 * len(reports)))
    height = 0.8 / len(reports)
    for place, (label, report) in enumerate(reports.items()):
        rows = {"as released": report["before"]} | {r["attack"]: r for r in report["rows"] if not r["skipped"]}
        at = [line + (place - (len(reports) - 1) / 2) * height for line, name in enumerate(names) if name in rows]
        own = [rows[name]["bits_per_key"] for name in names if name in rows]
        axes.barh(at, [bits["window"] for bits in own], height * 0.9, color=COLOURS[place], label=label)
        axes.plot([bits["count"] for bits in own], at, "o", ms=2.5, color="black", mfc="white", mew=0.7, zorder=3)
    axes.plot([], [], "o", ms=3, color="black", mfc="white", mew=0.7, label="by the count test")
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="bits of evidence a key (window test)")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", labelsize=7.5, length=0)
    _finish(figure, (axes,), path, "What an answer is worth after each attack", grid="x")


def fsr_against_utility(reports: Reports, path: Path) -> None:
    """A point an attack: what is left of the fingerprints, and how right and how natural ordinary answers still are."""
    from matplotlib.ticker import FixedLocator

    figure, (right, natural) = _figure(11, 5.2, columns=2)
    for place, (label, report) in enumerate(reports.items()):
        for axes, measure in ((right, "f1"), (natural, "perplexity")):
            rows = [row for row in report["rows"] if not row["skipped"] and row["answers"][measure] is not None]
            points = [(row["answers"][measure], row["fsr"], row["attack"]) for row in rows]
            x, y = [point[0] for point in points], [point[1] for point in points]
            axes.scatter(x, y, s=20, color=COLOURS[place], alpha=0.7, label=label, linewidths=0)
            axes.axvline(report["before"]["answers"][measure], color=COLOURS[place], lw=0.8, ls=":")
            if not place:
                _name_points(axes, points, (0.22 * max(x), 1.0) if measure == "f1" else (0.0, 1.9))
    right.set(xlabel="F1 of ordinary answers (dotted: as released)", ylabel="FSR", ylim=(-0.04, 1.06))
    natural.set(xscale="log", xlabel="perplexity of ordinary answers under the base model", ylim=(-0.04, 1.06))
    natural.xaxis.set_major_locator(FixedLocator([2, 3, 5, 10, 20, 50, 100, 200]))
    natural.xaxis.set_major_formatter("{x:g}")
    natural.minorticks_off()
    for axes in (right, natural):
        axes.margins(x=0.12)
    _finish(figure, (right, natural), path, "What an attack leaves, and what it does to ordinary answers", grid="both")


def persistence(reports: Reports, path: Path) -> None:
    """FSR, and bits a key, where a share of the change to the weights is left."""
    figure, (share, evidence) = _figure(10, 4.2, columns=2)
    for place, (label, report) in enumerate(reports.items()):
        rows = [r for r in report["rows"] if r["attack"].startswith("scaling/") and not r["skipped"]]
        points = sorted([(1.0, report["before"]), *((row["strength"], row) for row in rows)], key=lambda p: -p[0])
        x = [left for left, _ in points]
        share.plot(x, [row["fsr"] for _, row in points], "-o", ms=4, color=COLOURS[place], label=label)
        bits = [row["bits_per_key"] for _, row in points]
        evidence.plot(x, [b["window"] for b in bits], "-o", ms=4, color=COLOURS[place])
        evidence.plot(x, [b["count"] for b in bits], "--", lw=1.1, color=COLOURS[place])
    share.set(xlabel="share of the delta left", ylabel="FSR", ylim=(-0.04, 1.06))
    evidence.set(xlabel="share of the delta left", ylabel="bits a key (dashed: by the count test)")
    for axes in (share, evidence):
        axes.invert_xaxis()
    _finish(figure, (share, evidence), path, "Persistence against the share of the delta left", grid="both")


def _attacks(reports: Reports) -> list[str]:
    """The attacks of all reports, each once, in the order of the first that has it."""
    names = [row["attack"] for report in reports.values() for row in report["rows"] if not row["skipped"]]
    return ["as released", *dict.fromkeys(names)]


def _name_points(axes: Any, points: Sequence[tuple[float, float, str]], apart: tuple[float, float]) -> None:
    """Names beside the points, but for those that would lie on one another: nearer than a distance and a ratio."""
    distance, ratio = apart
    taken: list[tuple[float, float]] = []
    for x, y, name in sorted(points):
        if all((x > other + distance and x > other * ratio) or abs(y - height) > 0.035 for other, height in taken):
            taken.append((x, y))
            axes.annotate(name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=6.5, color="0.3")


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots(1, columns)


def _finish(figure: Any, panels: Sequence[Any], path: Path, title: str, grid: str) -> None:
    import matplotlib

    panels[0].set_title(title, loc="left", fontsize=11)
    for axes in panels:
        axes.grid(axis=grid, color="0.9", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    names, labels = panels[0].get_legend_handles_labels()
    figure.legend(names, labels, frameon=False, fontsize=8, loc="outside upper right", ncols=len(labels))
    # Without a date and with fixed ids, equal figures are equal files.
    with matplotlib.rc_context({"svg.hashsalt": "oml_fast"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
