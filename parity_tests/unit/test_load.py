"""Sets as large as the papers' and larger: they start, and how much memory they take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repro.data import (
    CueDataset,
    CueFile,
    LabelMapDataset,
    make_loader,
    read_label_list,
    write_cues,
    write_mask,
)
from repro.data.coco import AnnotationCOCO
from repro.training.train import labels_sha256

LINKS = 40_000  # names a file may have on common file systems


@pytest.fixture(
    scope="module",
    params=[4_000, pytest.param(80_000, marks=pytest.mark.long)],  # the latter are COCO's training images
)
def many(request) -> Iterator[tuple[Path, int]]:
    """A list of that many small images, their cues as one file and as PNGs; in memory where there is a place for it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        folder, count = Path(name), request.param
        rng = np.random.default_rng(0)
        for kind in ("images", "labels"):
            (folder / kind).mkdir()
        for first in range(0, count, LINKS):
            image, label = folder / f"{first}.jpg", folder / f"{first}.png"
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(image)
            write_mask(label, np.where(np.eye(41, dtype=bool), 7, 255).astype(np.uint8))
            for number in range(first, min(first + LINKS, count)):
                os.link(image, folder / "images" / f"{number:06d}.jpg")
                os.link(label, folder / "labels" / f"{number:06d}.png")
        entries = {
            number: (np.array([1 + number % 20]), rng.integers(0, 21, (3, 200))) for number in range(count)
        }
        write_cues(folder / "cues.h5", entries)
        numbers = range(count)
        (folder / "cues.txt").write_text("".join(f"{number:06d}.jpg {number}\n" for number in numbers))
        (folder / "labels.txt").write_text(
            "".join(f"{number:06d}.jpg {number:06d}.png\n" for number in numbers)
        )
        yield folder, count


def start_stage1(folder: Path, count: int) -> None:
    cues = CueFile.open(folder / "cues.h5")
    layer = CueDataset(folder / "images", cues.lines(folder / "cues.txt"), cues)
    assert len(layer) == count
    next(iter(make_loader(layer, batch_size=2, shuffle=True, seed=0, workers=1)))


def start_coco(folder: Path, count: int) -> None:
    layer = AnnotationCOCO(folder / "images", folder / "labels", read_label_list(folder / "labels.txt"))
    labels_sha256(str(folder / "labels"), layer.lines)
    next(iter(make_loader(layer, batch_size=2, shuffle=True, seed=0, workers=1)))


def start_stage2(folder: Path, count: int) -> None:
    layer = LabelMapDataset(folder / "images", folder / "labels", read_label_list(folder / "labels.txt"))
    labels_sha256(str(folder / "labels"), layer.lines)
    assert len(layer) == count


@pytest.mark.parametrize("start", [start_stage1, start_coco, start_stage2])
def test_a_long_list_of_images_starts(many, start):
    """Everything a stage does with its list before the first batch; checks of every line are part of it."""
    start(*many)


EVALUATE = """
import json, sys
from pathlib import Path
from repro.inference.evaluate import evaluate_folder
from repro.measure import peak_memory
pred, gt, found = Path(sys.argv[1]), Path(sys.argv[2]), []
for count in (24, int(sys.argv[3])):
    ids = [str(number) for number in range(count)]
    scores = evaluate_folder(pred, [gt / f"{name}.png" for name in ids], ids, 21)
    found.append([peak_memory() / 2**20, scores["images"], scores["mean_iou"]["released"]])
print(json.dumps(found))
"""


# VOC's val has 1449
@pytest.mark.parametrize("count", [300, pytest.param(1449, marks=pytest.mark.long)])
def test_predictions_of_full_size_are_not_kept(tmp_path, count):
    """375×500 masks of a few classes with void borders: many take no more memory than a few, and under a gigabyte."""
    rng = np.random.default_rng(0)
    for folder in ("pred", "gt"):
        (tmp_path / folder).mkdir()
    for number in range(count):
        name = f"{number}.png"
        if number >= 24:
            for folder in ("pred", "gt"):
                (tmp_path / folder / name).hardlink_to(tmp_path / folder / f"{number % 24}.png")
            continue
        mask = np.zeros((375, 500), np.uint8)
        for _ in range(4):
            row, column = rng.integers(0, 300), rng.integers(0, 400)
            height, width = rng.integers(20, 150, 2)
            mask[max(row - 5, 0) : row + height + 5, max(column - 5, 0) : column + width + 5] = 255
            mask[row : row + height, column : column + width] = rng.integers(1, 21)
        write_mask(tmp_path / "gt" / name, mask)
        write_mask(tmp_path / "pred" / name, np.where(mask == 255, 0, mask).astype(np.uint8))
    finished = subprocess.run(
        [sys.executable, "-c", EVALUATE, tmp_path / "pred", tmp_path / "gt", str(count)],
        capture_output=True,
        text=True,
        check=True,
    )
    (few, _, _), (peak, images, score) = json.loads(finished.stdout)
    assert (images, score) == (count, 1.0)
    assert peak - few < 0.5 * count * 375 * 500 / 2**20  # MB: no array of one byte a pixel is kept of each
    assert peak < 1000
