"""Figures of the scores: the grid of thresholds, IoU by class, confusion."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from repro.paper.experiments import Cell, experiments
from repro.report.drawing import ON_LIGHT, OURS, PAPER, Drawing
from repro.report.pictures import principal
from repro.run.scores import Entry, Scores


def thresholds(scores: Scores) -> Iterator[tuple[Drawing, Figure]]:
    """The paper's grid, and beside it ours by each rule that at least two cells have a run of."""
    found = experiments().experiments
    grids = {
        title: [cell for cell in found[name].cells if "∞" not in cell.row + cell.column]
        for title, name in (("ours, released rule", "table4"), ("ours, paper's rule", "table4-paper-rule"))
    }
    panels: list[tuple[str, list[tuple[Cell, float]]]] = [
        (title, [(cell, each.mean) for cell in cells if (each := scores.estimate(cell))])
        for title, cells in grids.items()
    ]
    panels = [(title, ours) for title, ours in panels if len(ours) > 1]
    if not panels:
        return
    cells = grids["ours, released rule"]
    rows, columns = (list(dict.fromkeys(getattr(cell, key) for cell in cells)) for key in ("row", "column"))
    panels.insert(0, ("paper", [(cell, cell.paper) for cell in cells]))
    figure = Figure(figsize=(4 * len(panels), 3.4), layout="constrained")
    best = []
    for axes, (title, values) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        grid = np.full((len(rows), len(columns)), np.nan)
        for cell, number in values:
            grid[rows.index(cell.row), columns.index(cell.column)] = number
        axes.grid(False)
        axes.set_facecolor("#dddddd")
        image = axes.imshow(grid, cmap="cividis", aspect="auto")
        middle = np.nanmean(grid)
        for (y, x), number in np.ndenumerate(grid):
            text = "no run" if np.isnan(number) else f"{number:.2f}"
            colour = ON_LIGHT if np.isnan(number) or number > middle else "white"
            axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(columns)), [column.partition("= ")[2] for column in columns])
        axes.set_yticks(range(len(rows)), [row.partition("= ")[2] for row in rows])
        axes.set(title=title, xlabel="θ_f (foreground)", ylabel="θ_b (background)")
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


def classes(scores: Scores) -> Iterator[tuple[Drawing, Figure]]:
    entries = principal(scores)
    if not entries:
        return
    entry = entries[-1]
    names = [entry["classes"][index] for index in entry.seen]
    ours = [100 * entry["scores"]["per_class_iou"][index] for index in entry.seen]
    answered = map(experiments().cell, reversed(entry["answers"]))
    cell = next((cell for cell in answered if cell.per_class), None)
    paper = cell.paper_per_class() if cell else {}
    compared = list(paper) == entry["classes"]
    figure = Figure(figsize=(max(6, 0.45 * len(names)), 4), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(names))
    width, shift = (0.4, 0.2) if compared else (0.7, 0)
    axes.bar(places - shift, ours, width, color=OURS, label=f"ours, {entry['method']}")
    if compared:
        looks: dict[str, Any] = {"color": PAPER, "hatch": "//", "edgecolor": "white"}
        axes.bar(places + shift, [paper[name] or 0 for name in names], width, label="paper", **looks)
    axes.set_xticks(places, names, rotation=60, ha="right")
    axes.set(ylabel="IoU, percent", ylim=(0, 100))
    axes.grid(axis="x", visible=False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    order = sorted(zip(ours, names, strict=True))
    yield (
        Drawing(
            "per_class",
            f"IoU of every class in images or masks, {_run_of(entry, scores)}",
            f"Bars of IoU by class for {entry['method']}{', beside the paper’s' if compared else ''}. "
            f"Lowest: {order[0][1]} {order[0][0]:.1f}; highest: {order[-1][1]} {order[-1][0]:.1f}.",
        ),
        figure,
    )


def confusion(scores: Scores) -> Iterator[tuple[Drawing, Figure]]:
    """One of each row."""
    names: set[str] = set()
    for entry in {(entry["run"], entry.stage): entry for entry in principal(scores)}.values():
        name = base = f"confusion_{re.sub('[^a-z0-9]+', '_', entry['method'].lower()).strip('_') or 'run'}"
        number = 1
        while name in names:
            number += 1
            name = f"{base}_{number}"
        names.add(name)
        yield _confusion_of(entry, name, _run_of(entry, scores))


def _run_of(entry: Entry, scores: Scores) -> str:
    """The row, and of several seeds which one a figure shows."""
    seeds = {other["seed"] for other in scores.entries if other["method"] == entry["method"]}
    return entry["method"] + (f", seed {entry['seed']}" if len(seeds) > 1 else "")


def _confusion_of(entry: Entry, name: str, run: str) -> tuple[Drawing, Figure]:
    names = [entry["classes"][index] for index in entry.seen]
    matrix = np.array(entry["scores"]["matrix"], float)[np.ix_(entry.seen, entry.seen)]
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = max(5, 0.32 * len(names) + 2)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    axes.grid(False)
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100)
    if len(names) <= 21:
        for (y, x), share in np.ndenumerate(shares):
            if share >= 0.5:
                colour, size = ON_LIGHT if share > 50 else "white", 6 if len(names) > 10 else 8
                axes.text(x, y, f"{share:.0f}", ha="center", va="center", fontsize=size, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(image, ax=axes, label="percent of the true class's pixels", shrink=0.8)
    off = shares - np.diag(np.diag(shares))
    y, x = np.unravel_index(off.argmax(), off.shape)
    return (
        Drawing(
            name,
            f"Confusion matrix, {run}",
            f"Percent of each true class's pixels by predicted class, {run}. "
            f"Largest confusion: {names[y]} taken for {names[x]}, {off[y, x]:.0f} percent.",
            group="Confusion matrix",
            member=entry["method"],
        ),
        figure,
    )
