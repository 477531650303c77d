"""Our losses beside those that the original code logged from the same start on the same images, as a results folder.

``tools/parity_curves`` makes the runs. The page has a figure of the whole curves, and ``curves.csv`` every number.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from repro.errors import InputError
from repro.files import write_json
from repro.report.drawing import OURS, PAPER
from repro.report.figures import SETTINGS
from repro.report.page import render_parity
from weights_conversion.files import atomic_path, make_folder, write_text


@dataclass(frozen=True)
class Curve:
    """A loss of one experiment by iteration: the original's and ours, and how far apart they are at most, relative."""

    experiment: str
    loss: str
    original: np.ndarray
    ours: np.ndarray

    def __post_init__(self) -> None:
        if self.original.shape != self.ours.shape:
            raise InputError(
                f"{self.experiment}, {self.loss}: {len(self.ours)} iterations, {len(self.original)} recorded"
            )

    @property
    def apart(self) -> float:
        return float(np.max(np.abs(self.ours / self.original - 1)))


def report_curves(curves: Sequence[Curve], out_dir: Path) -> None:
    """Write ``index.html``, ``curves.csv``, ``verdict.json`` and ``figures/curves.png`` and ``.svg``."""
    make_folder(out_dir)
    with matplotlib.rc_context(SETTINGS):
        figure = _figure(curves)
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            with atomic_path(out_dir / f"figures/curves.{suffix}") as temporary:
                figure.savefig(temporary, format=suffix, metadata=metadata)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["experiment", "loss", "iteration", "original", "ours"])
    for curve in curves:
        for iteration, (original, ours) in enumerate(zip(curve.original, curve.ours, strict=True)):
            writer.writerow([curve.experiment, curve.loss, iteration, f"{original:.9g}", f"{ours:.9g}"])
    write_text(out_dir / "curves.csv", text.getvalue())
    widest = max(curves, key=lambda curve: curve.apart)
    sentence = (
        f"{sum(len(curve.ours) for curve in curves)} recorded losses of the original code are followed, the furthest "
        f"by {100 * widest.apart:.2g} % ({widest.loss} of {widest.experiment})."
    )
    write_json(out_dir / "verdict.json", {"verdict": sentence})
    write_text(out_dir / "index.html", render_parity(sentence, curves))


def _figure(curves: Sequence[Curve]) -> Figure:
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4.8 * columns, 3.2 * rows), layout="constrained")
    for axes, curve in zip(figure.subplots(rows, columns, squeeze=False).flat, curves, strict=False):
        axes.plot(curve.original, "-", color=PAPER, linewidth=5, alpha=0.45, label="original code")
        axes.plot(curve.ours, "o-", color=OURS, linewidth=1, markersize=3, label="this project")
        axes.set_title(f"{curve.experiment}: {curve.loss}", fontsize=9)
        axes.set(xlabel="iteration", ylabel="loss")
    for axes in figure.axes[len(curves) :]:
        axes.set_axis_off()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle("Losses of the original Caffe code and ours", fontsize=11)
    return figure
