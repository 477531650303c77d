"""The papers' figures with our numbers: PNG and SVG, the same bytes from the same runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from repro.report.curve_figures import curves, supervision
from repro.report.drawing import Drawing
from repro.report.image_figures import growth, qualitative
from repro.report.pictures import Album
from repro.report.score_figures import classes, confusion, thresholds
from repro.run.scores import Scores
from weights_conversion.files import atomic_path

SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "repro",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "savefig.dpi": 110,
}
# on a dark page, with that page's colours (style.css.j2): the ground, text, and lines that are black
_DARK = """
@media (prefers-color-scheme: dark) {
  [id^="text_"] { fill: #e8e9eb }
  #patch_1 path { fill: #15171a !important }
  [style*="stroke: #000000"] { stroke: #e8e9eb !important }
}"""


def draw_all(scores: Scores, album: Album | None, out_dir: Path) -> list[Drawing]:
    """Write ``<out_dir>/<name>.png`` and ``.svg`` of every figure that the runs hold data for."""
    drawings = []
    generated = " (generated images)" if scores.generated else ""
    with matplotlib.rc_context(SETTINGS):
        for drawn, figure in _figures(scores, album):
            drawing = replace(drawn, title=drawn.title + generated, size=pixels(figure))
            figure.suptitle(drawing.title, fontsize=11)
            save(figure, out_dir / drawing.name)
            drawings.append(drawing)
    return drawings


def pixels(figure: Figure) -> tuple[int, int]:
    """Width and height of the PNG that `save` writes."""
    width, height = (int(round(side * SETTINGS["savefig.dpi"], 6)) for side in figure.get_size_inches())
    return width, height


def save(figure: Figure, base: Path) -> None:
    """Write ``<base>.png`` and ``.svg``, without what differs from call to call; on a dark page the SVG is dark."""
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        with atomic_path(base.with_name(f"{base.name}.{suffix}")) as temporary:
            figure.savefig(temporary, format=suffix, metadata=metadata)
            if suffix == "svg":
                drawn = temporary.read_text(encoding="utf-8")
                temporary.write_text(drawn.replace("</style>", f"{_DARK}</style>", 1), encoding="utf-8")
        figure.set_layout_engine("none")  # laid out once: it is half of the drawing's time


def _figures(scores: Scores, album: Album | None) -> Iterator[tuple[Drawing, Figure]]:
    if album is not None:
        yield from growth(scores, album)
    for stage in ("stage1", "stage2"):
        yield from curves(scores, stage)
    yield from supervision(scores)
    yield from thresholds(scores)
    yield from classes(scores)
    yield from confusion(scores)
    if album is not None:
        yield from qualitative(album)
