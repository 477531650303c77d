"""What the benchmark runs on: pictures of VOC's usual size, made of the embedded set's, with cues and labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from repro.data import CueFile, read_image_rgb, write_cues
from repro.data.image_list import CueLine, Lines
from repro.data.mini import build_mini

HEIGHT, WIDTH = 375, 500  # of most of VOC's images


@dataclass(frozen=True)
class Inputs:
    """A folder with ``images/<i>.jpg``, their list and cues, and the pictures themselves, (H, W, 3) RGB."""

    folder: Path
    lines: Lines[CueLine]
    cues: CueFile
    pictures: list[np.ndarray]


@contextmanager
def inputs(count: int, num_classes: int, grid: tuple[int, int]) -> Iterator[Inputs]:
    """``count`` pictures, each with background and two classes more, cues on a quarter of the ``grid``."""
    rng = np.random.default_rng(0)
    with TemporaryDirectory(prefix="repro-bench-") as name:
        folder = Path(name)
        small = build_mini(folder / "mini", train=16, val=1)
        tiles = cycle(read_image_rgb(path) for path in sorted(small.images.iterdir()))
        pictures = [_mosaic(tiles) for _ in range(count)]
        (folder / "images").mkdir()
        entries = {}
        for index, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / "images" / f"{index}.jpg", quality=90)
            classes = np.sort(rng.choice(np.arange(1, num_classes), min(2, num_classes - 1), replace=False))
            entries[index] = (classes, _cues(rng, [0, *classes.tolist()], grid))
        write_cues(folder / "cues.h5", entries, grid)
        lines = Lines((CueLine(f"{index}.jpg", index, index + 1) for index in range(count)), "the pictures")
        yield Inputs(folder, lines, CueFile.open(folder / "cues.h5"), pictures)


def scores(count: int, num_classes: int, grid: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Scores (N, C, H, W) as a net has them half-way: smooth, sure of a class in places."""
    coarse = torch.randn(count, num_classes, 7, 7, generator=torch.Generator().manual_seed(0)) * 4
    smooth = torch.nn.functional.interpolate(coarse, size=grid, mode="bilinear", align_corners=True)
    return smooth.to(device)


def _mosaic(tiles: Iterator[np.ndarray]) -> np.ndarray:
    """Tiles in rows from left to right, cut off at the edges: the embedded set's textures and noise at full size."""
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    top = 0
    while top < HEIGHT:
        left, height = 0, 100  # the smallest height of a tile
        while left < WIDTH:
            tile = next(tiles)[:height, : WIDTH - left][: HEIGHT - top]
            canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
            left += tile.shape[1]
        top += height
    return canvas


def _cues(rng: np.random.Generator, classes: list[int], grid: tuple[int, int]) -> np.ndarray:
    """(3, K): a block of each class somewhere in its own third of the grid."""
    rows, columns = grid
    cells = []
    for number, class_index in enumerate(classes):
        top = number * rows // len(classes)
        left = int(rng.integers(max(1, columns // 3)))
        block = np.mgrid[top : top + rows // len(classes), left : left + columns // 3].reshape(2, -1)
        cells.append(np.vstack([np.full(block.shape[1], class_index), block]))
    return np.concatenate(cells, axis=1)
