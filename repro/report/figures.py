"""The papers' figures with our numbers: PNG and SVG, the same bytes from the same runs.

Line colours are Okabe and Ito's, which colour-blind readers can tell apart, and differ in style as well; heat maps
are cividis; masks keep the VOC palette, which is what readers of these papers know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from repro.constants import VOID
from repro.data import read_mask
from repro.paper.experiments import experiments, numbers
from repro.report.pictures import Album, coloured, principal, shrunk
from repro.run.scores import TRAINED, Scores
from repro.training.csv_log import read_log
from weights_conversion.files import atomic_path

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_STYLES = ("-", "--", "-.", ":")
_PAPER = "#D55E00"
_OURS = "#0072B2"
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "repro",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 110,
}
_UNLABELLED = (221, 221, 221)
_SIDE = 240  # pixels of an image in a figure
_SNAPSHOTS = 3  # at most, of growing seeds


@dataclass(frozen=True)
class Drawing:
    """A figure on disk: its files without their suffix, what it shows, and that in words for who cannot see it."""

    name: str
    title: str
    alt: str


def draw_all(scores: Scores, album: Album | None, out_dir: Path) -> list[Drawing]:
    """Write ``<out_dir>/<name>.png`` and ``.svg`` of every figure that the runs hold data for."""
    drawings = []
    with matplotlib.rc_context(_SETTINGS):
        for drawing, figure in _figures(scores, album):
            for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
                with atomic_path(out_dir / f"{drawing.name}.{suffix}") as temporary:
                    figure.savefig(temporary, format=suffix, metadata=metadata)
            drawings.append(drawing)
    return drawings


def _figures(scores: Scores, album: Album | None) -> Iterator[tuple[Drawing, Figure]]:
    for stage in ("stage1", "stage2"):
        yield from _curves(scores, stage)
    yield from _supervision(scores)
    yield from _thresholds(scores)
    yield from _classes(scores)
    yield from _confusion(scores)
    if album is not None:
        yield from _growth(scores, album)
        yield from _qualitative(album)


def _curves(scores: Scores, stage: str) -> Iterator[tuple[Drawing, Figure]]:
    logs = _logs(scores, stage)
    if not logs:
        return
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    loss, rate = figure.subplots(1, 2)
    reference: dict[int, float] = {}
    if stage == "stage1" and any("DSRG" in name for name in logs):
        released = next(entry for entry in numbers()["third_party"].values() if "training_loss" in entry)
        last = max(row["iteration"] for rows in logs.values() for row in rows) + 1
        reference = {at: value for at, value in released["training_loss"].items() if at <= last}
    for index, (name, rows) in enumerate(logs.items()):
        iterations = [row["iteration"] for row in rows]
        values = np.array([row["loss"] for row in rows])
        colour, style = _COLOURS[index % len(_COLOURS)], _STYLES[index % len(_STYLES)]
        loss.plot(iterations, values, color=colour, alpha=0.2, linewidth=0.8)
        loss.plot(iterations, _running_mean(values, 20), style, color=colour, label=name)
        rate.plot(iterations, [row["lr"] for row in rows], style, color=colour, label=name)
    if reference:
        loss.plot(
            list(reference), list(reference.values()), "k*", markersize=9, label="released Caffe code, +DSRG"
        )
    if any(row["loss"] > 0 for rows in logs.values() for row in rows):
        loss.set_yscale("log")
        loss.yaxis.set_major_formatter("{x:g}")
        loss.yaxis.set_minor_formatter("{x:g}")
    loss.set(xlabel="iteration", ylabel="loss (faint: unsmoothed; line: mean of 20)")
    rate.set(xlabel="iteration", ylabel="base learning rate")
    loss.legend(fontsize=8)
    number = stage.removeprefix("stage")
    ends = ", ".join(
        f"{name} ends at {_running_mean(np.array([r['loss'] for r in rows]), 20)[-1]:.3g}"
        for name, rows in logs.items()
    )
    yield (
        Drawing(
            f"curves_{stage}",
            f"Loss and rate of stage {number}",
            f"Loss over the iterations of stage {number} for each run, and its learning rate. {ends}."
            + (" Stars: losses that the released code logged." if reference else ""),
        ),
        figure,
    )


def _supervision(scores: Scores) -> Iterator[tuple[Drawing, Figure]]:
    runs = [
        entry for entry in scores.entries if entry["seed_quality"] and "figure4" in " ".join(entry["answers"])
    ]
    if not runs:
        return
    paper = numbers()["dsrg"]["figure4_supervision_quality"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    words = []
    for axes, quality in zip(figure.subplots(1, 3, sharex=True), ("precision", "recall", "iou"), strict=True):
        for index, entry in enumerate(runs):
            rows = entry["seed_quality"]
            epochs, values = [row["epoch"] for row in rows], [100 * row[quality] for row in rows]
            axes.plot(
                epochs,
                values,
                _STYLES[index % 4],
                marker="o",
                markersize=3,
                color=_OURS,
                label=f"ours, seed {entry['seed']}",
            )
            words.append(f"{quality} from {values[0]:.1f} to {values[-1]:.1f} (seed {entry['seed']})")
        for source, filled, label in (
            ("printed", _PAPER, "paper"),
            ("read_off_the_plot", "none", "paper, read off the plot"),
        ):
            points = paper[source]
            axes.plot(
                list(points),
                [point[quality] for point in points.values()],
                "s",
                color=_PAPER,
                markerfacecolor=filled,
                label=label,
            )
        axes.set(xlabel="epoch", title={"iou": "IoU"}.get(quality, quality), ylim=(0, 100))
    axes.legend(fontsize=8)
    yield (
        Drawing(
            "supervision_quality",
            "Quality of the grown seeds by epoch",
            f"Precision, recall and IoU of the grown seeds against ground truth, percent: {'; '.join(words)}. "
            "The paper's values are marked.",
        ),
        figure,
    )


def _thresholds(scores: Scores) -> Iterator[tuple[Drawing, Figure]]:
    tables = [(name, experiments().experiments[name]) for name in ("table4", "table4-paper-rule")]
    if not any(scores.of(cell) for _, table in tables for cell in table.cells):
        return
    cells = [cell for cell in tables[0][1].cells if "∞" not in cell.row + cell.column]
    rows, columns = (list(dict.fromkeys(getattr(cell, key) for cell in cells)) for key in ("row", "column"))
    panels: list[tuple[str, Callable[[Any], float | None]]] = [("paper", lambda cell: cell.paper)]

    def ours(cell: Any) -> float | None:
        estimate = scores.estimate(cell)
        return None if estimate is None else estimate.mean

    panels += [(f"ours, {rule}", ours) for rule in ("released rule", "paper's rule")]
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    best = []
    for index, (axes, (title, value)) in enumerate(zip(figure.subplots(1, 3), panels, strict=True)):
        table = tables[max(0, index - 1)][1]
        grid = np.full((len(rows), len(columns)), np.nan)
        for cell in table.cells:
            if cell.row in rows and cell.column in columns and (number := value(cell)) is not None:
                grid[rows.index(cell.row), columns.index(cell.column)] = number
        axes.grid(False)
        axes.set_facecolor("#dddddd")
        image = axes.imshow(grid, cmap="cividis", aspect="auto")
        middle = np.nanmean(grid) if np.isfinite(grid).any() else 0
        for (y, x), number in np.ndenumerate(grid):
            text = "no run" if np.isnan(number) else f"{number:.2f}"
            colour = "black" if np.isnan(number) or number > middle else "white"
            axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(columns)), [column.partition("= ")[2] for column in columns])
        axes.set_yticks(range(len(rows)), [row.partition("= ")[2] for row in rows])
        axes.set(title=title, xlabel="θ_f (foreground)", ylabel="θ_b (background)")
        if np.isfinite(grid).any():
            y, x = np.unravel_index(np.nanargmax(grid), grid.shape)
            best.append(f"{title}: best {grid[y, x]:.2f} at {rows[y]}, {columns[x]}")
            figure.colorbar(image, ax=axes, label="mean IoU, percent")
    yield (
        Drawing(
            "thresholds",
            "Mean IoU over the thresholds of growing",
            f"Heat maps of mean IoU. {'; '.join(best)}.",
        ),
        figure,
    )


def _classes(scores: Scores) -> Iterator[tuple[Drawing, Figure]]:
    entries = principal(scores)
    if not entries:
        return
    entry = entries[-1]
    names = entry["classes"]
    ours = [100 * (value or 0) for value in entry["scores"]["per_class_iou"]]
    cell = next(
        (
            experiments().cell(name)
            for name in reversed(entry["answers"])
            if experiments().cell(name).per_class
        ),
        None,
    )
    paper = cell.paper_per_class() if cell else {}
    compared = list(paper) == names
    figure = Figure(figsize=(max(6, 0.45 * len(names)), 4), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(names))
    width = 0.4 if compared else 0.7
    axes.bar(
        places - (width / 2 if compared else 0), ours, width, color=_OURS, label=f"ours, {entry['method']}"
    )
    if compared:
        axes.bar(
            places + width / 2,
            [paper[name] or 0 for name in names],
            width,
            color=_PAPER,
            hatch="//",
            edgecolor="white",
            label="paper",
        )
    axes.set_xticks(places, names, rotation=60, ha="right")
    axes.set(ylabel="IoU, percent", ylim=(0, 100))
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=8)
    occurring = [value is not None for value in entry["scores"]["per_class_iou"]]
    order = sorted(
        bar for bar, occurs in zip(zip(ours, names, strict=True), occurring, strict=True) if occurs
    )
    yield (
        Drawing(
            "per_class",
            f"IoU of every class, {entry['method']}",
            f"Bars of IoU by class for {entry['method']}{', beside the paper’s' if compared else ''}. "
            f"Lowest: {order[0][1]} {order[0][0]:.1f}; highest: {order[-1][1]} {order[-1][0]:.1f}.",
        ),
        figure,
    )


def _confusion(scores: Scores) -> Iterator[tuple[Drawing, Figure]]:
    entries = principal(scores)
    if not entries:
        return
    entry = entries[-1]
    names, matrix = entry["classes"], np.array(entry["scores"]["matrix"], float)
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = max(5, 0.32 * len(names) + 2)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    axes.grid(False)
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100)
    if len(names) <= 21:
        for (y, x), share in np.ndenumerate(shares):
            if share >= 0.5:
                axes.text(
                    x,
                    y,
                    f"{share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=6 if len(names) > 10 else 8,
                    color="black" if share > 50 else "white",
                )
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(image, ax=axes, label="percent of the true class's pixels", shrink=0.8)
    off = shares - np.diag(np.diag(shares))
    y, x = np.unravel_index(off.argmax(), off.shape)
    yield (
        Drawing(
            "confusion",
            f"Confusion matrix, {entry['method']}",
            f"Percent of each true class's pixels by predicted class. "
            f"Largest confusion: {names[y]} taken for {names[x]}, {off[y, x]:.0f} percent.",
        ),
        figure,
    )


def _growth(scores: Scores, album: Album) -> Iterator[tuple[Drawing, Figure]]:
    """The method in one picture: a row an image, from the image over cues, seeds and mask to the ground truth."""
    folder = next(
        (
            entry.folder / "growth"
            for entry in scores.entries
            if (entry.folder / "growth" / "done.json").exists()
        ),
        None,
    )
    if folder is None:
        return
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("[!.]*.png")):
        name, _, iteration = path.stem.rpartition("_")
        found.setdefault(name, {})[int(iteration)] = path
    found = {name: stages for name, stages in found.items() if name in album.experiment.train}
    if not found:
        return
    snapshots = sorted(next(iter(found.values())))[1:]
    shown = [snapshots[round(place)] for place in np.linspace(0, len(snapshots) - 1, _SNAPSHOTS)]
    iterations = [0, *dict.fromkeys(shown)]
    after = {"mask": folder.parent / "pseudo_labels", "truth": album.experiment.train_truth_root}
    masks = {
        title: root
        for title, root in after.items()
        if root is not None and all((root / f"{name}.png").is_file() for name in found)
    }
    titles = ["cues", *(f"iteration {step}" for step in iterations[1:]), *masks]
    figure = Figure(figsize=(1.6 * (len(titles) + 1), 1.35 * len(found) + 0.5), layout="constrained")
    axes = figure.subplots(len(found), len(titles) + 1, squeeze=False)
    shares, seen = [], set()
    for row, (name, stages) in zip(axes, found.items(), strict=True):
        image = np.asarray(shrunk(album.experiment.image(name), _SIDE))
        _show(row[0], image, name)
        paths = [*(stages[step] for step in iterations), *(root / f"{name}.png" for root in masks.values())]
        for place, title, path in zip(row[1:], titles, paths, strict=True):
            mask = np.asarray(shrunk(path, _SIDE, mask=True))
            seen |= set(np.unique(mask).tolist())
            _show(place, coloured(mask, _UNLABELLED), title)
            place.get_images()[0].set_extent((0, image.shape[1], image.shape[0], 0))
        labelled = [_labelled(stages[step]) for step in (0, iterations[-1])]
        shares.append(f"{name} from {labelled[0]:.0f} to {labelled[1]:.0f} percent")
    colours = coloured(np.arange(VOID + 1), _UNLABELLED) / 255
    names = {**dict(enumerate(album.classes)), VOID: "no seed, or void"}
    patches = [Patch(color=colours[index], label=names[index]) for index in sorted(seen)]
    figure.legend(handles=patches, loc="outside lower center", ncols=8, fontsize=8)
    yield (
        Drawing(
            "growth",
            "From cues to masks",
            "Training images, their cues, the grown seeds at snapshots of stage 1"
            + "".join(
                {"mask": ", the mask that stage 2 learns from", "truth": ", the ground truth"}[title]
                for title in masks
            )
            + f"; light grey is unlabelled. Labelled cells: {'; '.join(shares)}.",
        ),
        figure,
    )


def _qualitative(album: Album) -> Iterator[tuple[Drawing, Figure]]:
    worst, best = album.extremes(3)
    pictures = [*worst, *best]
    if not pictures:
        return
    method = album.method
    figure = Figure(figsize=(6.6, 2.1 * len(pictures)), layout="constrained")
    for row, picture in zip(figure.subplots(len(pictures), 3, squeeze=False), pictures, strict=True):
        truth, mask = (
            np.asarray(shrunk(path, _SIDE, mask=True)) for path in (picture.truth, picture.masks[method])
        )
        _show(row[0], np.asarray(shrunk(picture.image, _SIDE)), picture.name)
        _show(row[1], coloured(truth), "ground truth")
        _show(row[2], coloured(mask), f"{method}: {100 * picture.iou:.1f}")
    yield (
        Drawing(
            "qualitative",
            f"Worst and best images, {method}",
            f"Image, ground truth and prediction. Worst by mean IoU: {_named(worst)}. Best: {_named(best)}.",
        ),
        figure,
    )


def _named(pictures: Sequence[Any]) -> str:
    return ", ".join(f"{picture.name} {100 * picture.iou:.1f}" for picture in pictures)


def _show(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def _labelled(path: Path) -> float:
    return 100 * float((read_mask(path, VOID) != VOID).mean())


def _logs(scores: Scores, stage: str) -> dict[str, list[dict[str, float]]]:
    """``log.csv`` of the principal runs by the row's name; every seed has its line."""
    logs: dict[str, list[dict[str, float]]] = {}
    methods = {entry["method"] for entry in principal(scores)}
    several = len({entry["seed"] for entry in scores.entries}) > 1
    for entry in scores.entries:
        if entry["origin"] != TRAINED or entry["method"] not in methods or entry.stage != stage:
            continue
        if rows := read_log(entry.folder / stage / "log.csv"):
            logs[f"{entry['method']}, seed {entry['seed']}" if several else entry["method"]] = rows
    return logs


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the latest ``window`` values, of fewer at the start: Caffe's ``average_loss``."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(stop - window, 0)
    return (sums[stop] - sums[start]) / (stop - start)
