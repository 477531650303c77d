"""Figures over the iterations and epochs: losses and rates, and the quality of the grown seeds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axis import YAxis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from repro.paper.experiments import numbers
from repro.report.drawing import COLOURS, OURS, PAPER, STYLES, Drawing
from repro.report.pictures import principal
from repro.run.scores import TRAINED, Scores, incomparable
from repro.training.csv_log import read_log


def curves(scores: Scores, stage: str) -> Iterator[tuple[Drawing, Figure]]:
    logs = _logs(scores, stage)
    if not logs:
        return
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    loss, rate = figure.subplots(1, 2)
    reference: dict[int, float] = {}
    if stage == "stage1" and any("DSRG" in name for name in logs) and _is_the_papers(scores):
        released = next(entry for entry in numbers()["third_party"].values() if "training_loss" in entry)
        last = max(row["iteration"] for rows in logs.values() for row in rows) + 1
        reference = {at: value for at, value in released["training_loss"].items() if at <= last}
    for index, (name, rows) in enumerate(logs.items()):
        iterations = [row["iteration"] for row in rows]
        values = np.array([row["loss"] for row in rows])
        colour, style = COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]
        loss.plot(iterations, values, color=colour, alpha=0.2, linewidth=0.8)
        loss.plot(iterations, _running_mean(values, 20), style, color=colour, label=name)
        rate.plot(iterations, [row["lr"] for row in rows], style, color=colour, label=name)
    if reference:
        loss.plot(
            list(reference), list(reference.values()), "k*", markersize=9, label="released Caffe code, +DSRG"
        )
    if any(row["loss"] > 0 for rows in logs.values() for row in rows):
        loss.set_yscale("log")
        _label_apart(loss.yaxis)
    loss.set(xlabel="iteration", ylabel="loss (faint: unsmoothed; line: mean of 20)")
    rate.set(xlabel="iteration", ylabel="base learning rate")
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
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


def supervision(scores: Scores) -> Iterator[tuple[Drawing, Figure]]:
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
            label, marks = f"ours, seed {entry['seed']}", {"marker": "o", "markersize": 3}
            axes.plot(epochs, values, STYLES[index % 4], color=OURS, label=label, **marks)
            words.append(f"{quality} from {values[0]:.1f} to {values[-1]:.1f} (seed {entry['seed']})")
        for source, filled, label in (
            ("printed", PAPER, "paper"),
            ("read_off_the_plot", "none", "paper, read off the plot"),
        ):
            points = paper[source]
            values = [point[quality] for point in points.values()]
            axes.plot(list(points), values, "s", color=PAPER, markerfacecolor=filled, label=label)
        axes.set(xlabel="epoch", title={"iou": "IoU"}.get(quality, quality), ylim=(0, 100))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    yield (
        Drawing(
            "supervision_quality",
            "Quality of the grown seeds by epoch",
            f"Precision, recall and IoU of the grown seeds against ground truth, percent: {'; '.join(words)}. "
            "The paper's values are marked.",
        ),
        figure,
    )


def _label_apart(axis: YAxis) -> None:
    """Ticks of a logarithmic axis whose labels do not touch, however little or much it spans."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    every = LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,), numticks=8)
    axis.set_major_locator(MaxNLocator(6) if decades < 1 else every)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def _is_the_papers(scores: Scores) -> bool:
    """Whether a run is the experiment whose loss the released code logged."""
    return any(
        incomparable(entry) is None and entry["method"] == "+DSRG" and "vgg16" in entry["base"]["profile"]
        for entry in scores.entries
    )


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
