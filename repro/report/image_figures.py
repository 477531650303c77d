"""Figures of images: the method from cues to masks, and the worst and best predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from repro.constants import VOID
from repro.report.drawing import Drawing
from repro.report.pictures import Album, coloured, growing, labelled, shrunk
from repro.run.scores import Scores

_UNLABELLED = (221, 221, 221)
_SIDE = 240  # pixels of an image in a figure
_IMAGES = 3  # whose seeds grow in one picture; the page shows all
_SNAPSHOTS = 3  # at most, of growing seeds


def growth(scores: Scores, album: Album) -> Iterator[tuple[Drawing, Figure]]:
    """The method in one picture: one row per image, from the image over cues, seeds and mask to the ground truth."""
    found = growing(scores, album)[:_IMAGES]
    if not found:
        return
    snapshots = list(found[0].seeds)[1:]
    shown = [snapshots[round(place)] for place in np.linspace(0, len(snapshots) - 1, _SNAPSHOTS)]
    iterations = [0, *dict.fromkeys(shown)]
    after = [what for what in ("mask", "truth") if getattr(found[0], what)]
    titles = ["image", "cues", *(f"iteration {step}" for step in iterations[1:]), *after]
    figure = Figure(figsize=(1.6 * len(titles), 1.35 * len(found) + 0.8), layout="constrained")
    axes = figure.subplots(len(found), len(titles), squeeze=False)
    shares: list[str] = []
    seen: set[int] = set()
    for row, one in zip(axes, found, strict=True):
        paths = [*(one.seeds[step] for step in iterations), *(getattr(one, what) for what in after)]
        seen |= _show_row(row, one.image, paths, titles if one is found[0] else (), _UNLABELLED)
        height, width = row[0].get_images()[0].get_array().shape[:2]
        for place in row[1:]:
            place.get_images()[0].set_extent((0, width, height, 0))
        ends = [labelled(one.seeds[step]) for step in (0, iterations[-1])]
        shares.append(f"{one.name} from {ends[0]:.0f} to {ends[1]:.0f} percent")
    _legend(figure, album.classes, seen, "no seed, or void")
    words = {"mask": ", the mask that stage 2 learns from", "truth": ", the ground truth"}
    yield (
        Drawing(
            "growth",
            "From cues to masks",
            "Training images, their cues, the grown seeds at snapshots of stage 1"
            + "".join(words[what] for what in after)
            + f"; light grey is unlabelled. Labelled cells: {'; '.join(shares)}.",
        ),
        figure,
    )


def qualitative(album: Album) -> Iterator[tuple[Drawing, Figure]]:
    order = album.ordered
    count = min(3, len(order) // 2)
    worst, best = order[:count], order[len(order) - count :]
    pictures = [*worst, *best]
    if not pictures:
        return
    method = album.method
    figure = Figure(figsize=(6.6, 2.1 * len(pictures) + 0.5), layout="constrained")
    seen: set[int] = set()
    for row, picture in zip(figure.subplots(len(pictures), 3, squeeze=False), pictures, strict=True):
        titles = (picture.name, "ground truth", f"{method}: {100 * picture.iou:.1f}")
        seen |= _show_row(row, picture.image, (picture.truth, picture.masks[method]), titles)
    _legend(figure, album.classes, seen, "void", (255, 255, 255))
    yield (
        Drawing(
            "qualitative",
            f"Worst and best images, {method}",
            f"Image, ground truth and prediction. Worst by mean IoU: {_named(worst)}. Best: {_named(best)}.",
        ),
        figure,
    )


def side_by_side(rows: Sequence[tuple[Path, Mapping[str, Path]]], classes: Sequence[str]) -> Figure:
    """One row per image: the image, then its masks, each under its name."""
    titles = ["image", *rows[0][1]]
    figure = Figure(figsize=(1.9 * len(titles), 1.5 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    seen: set[int] = set()
    for number, (row, (image, masks)) in enumerate(zip(axes, rows, strict=True)):
        seen |= _show_row(row, image, list(masks.values()), () if number else titles)
    _legend(figure, classes, seen, "void", (255, 255, 255))
    return figure


def _named(pictures: Sequence[Any]) -> str:
    return ", ".join(f"{picture.name} {100 * picture.iou:.1f}" for picture in pictures)


def _show_row(
    row: Sequence[Axes],
    image: Path,
    masks: Sequence[Path],
    titles: Sequence[str],
    void_colour: tuple[int, int, int] = (255, 255, 255),
) -> set[int]:
    """An image and its masks, under titles if there are any; gives the classes that the masks show."""
    shown = [np.asarray(shrunk(path, _SIDE, mask=True)) for path in masks]
    pictures = [np.asarray(shrunk(image, _SIDE)), *(coloured(mask, void_colour) for mask in shown)]
    for place, picture, title in zip(row, pictures, titles or [""] * len(pictures), strict=True):
        _show(place, picture, title)
    return {int(index) for mask in shown for index in np.unique(mask)}


def _show(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def _legend(
    figure: Figure,
    classes: Sequence[str],
    seen: set[int],
    void: str,
    void_colour: tuple[int, int, int] = _UNLABELLED,
) -> None:
    """Below the figure: the colour of each class that it shows."""
    colours = coloured(np.arange(VOID + 1), void_colour) / 255
    names = {**dict(enumerate(classes)), VOID: void}
    patches = [
        Patch(facecolor=colours[index], edgecolor="#555555", label=names[index]) for index in sorted(seen)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=8, fontsize=8)
