"""Our losses beside those that the original code logged from the same start on the same images, as a results folder.

``tools/parity_curves`` makes the runs. The page has a figure of the whole curves, and ``curves.csv`` every number. Of a
longer training, whose curves part as rounding grows, it shows what matters then: the masks and their scores.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from repro.errors import InputError
from repro.files import write_json
from repro.report.drawing import COLOURS, OURS, PAPER
from repro.report.figures import SETTINGS, pixels, save
from repro.report.image_figures import side_by_side
from repro.report.page import render_parity
from weights_conversion.files import make_folder, write_text


@dataclass(frozen=True)
class Curve:
    """A loss of one experiment by iteration: the original's and ours, and how far apart they are at most, relative.

    ``again``: ours once more, from weights whose last bits were drawn anew.
    """

    experiment: str
    loss: str
    original: np.ndarray
    ours: np.ndarray
    again: np.ndarray | None = None

    def __post_init__(self) -> None:
        for ours in self.runs.values():
            if ours.shape != self.original.shape:
                raise InputError(
                    f"{self.experiment}, {self.loss}: {len(ours)} iterations, {len(self.original)} recorded"
                )

    @property
    def runs(self) -> dict[str, np.ndarray]:
        """Our trainings by name."""
        return {"ours": self.ours} | ({} if self.again is None else {"ours_again": self.again})

    @property
    def apart(self) -> float:
        return float(np.max(np.abs(self.ours / self.original - 1)))


@dataclass(frozen=True)
class Repetition:
    """What our training ends with from weights whose last bits were drawn anew: what rounding is worth.

    ``equal`` mask pixels are the original's, ``same`` those of our other training. ``mean_iou``: by rule, 0–1.
    """

    equal: int
    same: int
    mean_iou: Mapping[str, float]


@dataclass(frozen=True)
class EndResult:
    """What the original and this project end with after the same training.

    ``equal`` of ``pixels`` mask pixels are the same. ``mean_iou``: by rule, the original's and ours, 0–1.
    ``rows``: some images with their masks by name, for a figure.
    """

    experiment: str
    curves: Sequence[Curve]
    equal: int
    pixels: int
    mean_iou: Mapping[str, tuple[float, float]]
    rows: Sequence[tuple[Path, Mapping[str, Path]]]
    classes: Sequence[str]
    again: Repetition | None = None

    @property
    def sentence(self) -> str:
        scores = "; ".join(
            f"{100 * ours:.2f} against {100 * original:.2f} by the rule {rule}"
            for rule, (original, ours) in self.mean_iou.items()
        )
        return (
            f"After {self.experiment}, {100 * self.equal / self.pixels:.2f} % of {self.pixels:,} mask pixels are the "
            f"original's. Mean IoU: {scores}.{self._of_rounding()}"
        )

    def _of_rounding(self) -> str:
        if self.again is None:
            return ""
        equal, same = (f"{100 * count / self.pixels:.2f} %" for count in (self.again.equal, self.again.same))
        scores = " and ".join(f"{100 * ours:.2f} ({rule})" for rule, ours in self.again.mean_iou.items())
        return (
            f" From weights whose last bits were drawn anew, our training ends with {equal} of the original's pixels, "
            f"{same} of those it had before, and mean IoU {scores}: so much is due to rounding."
        )


def report_curves(curves: Sequence[Curve], out_dir: Path, outcome: EndResult | None = None) -> None:
    """Write ``index.html``, ``curves.csv``, ``verdict.json`` and the figure ``curves``; of an outcome ``outcome.csv``,
    ``outcome.json`` and the figures ``outcome-curves`` and ``outcome``."""
    make_folder(out_dir)
    with matplotlib.rc_context(SETTINGS):
        drawn = {"curves": _figure(curves)}
        if outcome is not None:
            drawn["outcome-curves"] = _figure(outcome.curves)
            drawn["outcome"] = side_by_side(outcome.rows, outcome.classes)
        for name, figure in drawn.items():
            save(figure, out_dir / "figures" / name)
    sizes = {name: pixels(figure) for name, figure in drawn.items()}
    write_text(out_dir / "curves.csv", _csv(curves))
    if outcome is not None:
        write_text(out_dir / "outcome.csv", _csv(outcome.curves))
        told = ("experiment", "equal", "pixels", "mean_iou", "sentence")
        again = {} if outcome.again is None else {"again": asdict(outcome.again)}
        write_json(out_dir / "outcome.json", {name: getattr(outcome, name) for name in told} | again)
    widest = max(curves, key=lambda curve: curve.apart)
    sentence = (
        f"{sum(len(curve.ours) for curve in curves)} recorded losses of the original code are followed, the furthest "
        f"by {100 * widest.apart:.2g} % ({widest.loss} of {widest.experiment})."
    )
    write_json(out_dir / "verdict.json", {"title": "Losses beside the original's", "verdict": sentence})
    write_text(out_dir / "index.html", render_parity(sentence, curves, outcome, sizes))


def _csv(curves: Sequence[Curve]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["experiment", "loss", "iteration", "original", *curves[0].runs])
    for curve in curves:
        for iteration, values in enumerate(zip(curve.original, *curve.runs.values(), strict=True)):
            writer.writerow([curve.experiment, curve.loss, iteration, *(f"{value:.9g}" for value in values)])
    return text.getvalue()


def _figure(curves: Sequence[Curve]) -> Figure:
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4.8 * columns, 3.2 * rows), layout="constrained")
    for axes, curve in zip(figure.subplots(rows, columns, squeeze=False).flat, curves, strict=False):
        axes.plot(curve.original, "-", color=PAPER, linewidth=5, alpha=0.45, label="original code")
        if curve.again is not None:
            axes.plot(curve.again, "--", color=COLOURS[2], linewidth=1, label="this project, other last bits")
        axes.plot(curve.ours, "o-", color=OURS, linewidth=1, markersize=3, label="this project")
        axes.set_title(f"{curve.experiment}: {curve.loss}", fontsize=9)
        axes.set(xlabel="iteration", ylabel="loss")
    for axes in figure.axes[len(curves) :]:
        axes.set_axis_off()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle("Losses of the original Caffe code and ours", fontsize=11)
    return figure
