"""The recordings' inputs as the files that a user has: images, lists, cues, label maps."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from repro.data import write_mask


def read_log(folder: Path) -> dict[str, np.ndarray]:
    """The columns of a stage's ``log.csv``."""
    with (folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


SMALL = {  # by stage: the settings for a fourth of the pixels, where no recording is followed
    1: ("data.new_height=161", "data.new_width=161"),
    2: ("data.crop_size=161",),
}


def write_stage1_inputs(recording: h5py.File, folder: Path, *, every: int = 1) -> None:
    """``images/<i>.png``, ``list.txt`` and ``localization_cues.pickle`` in the SEC release's layout.

    Of the cues on 41x41 cells one in ``every`` each way stays: 2 leaves 21x21, the grid of ``SMALL`` images.
    """
    (folder / "images").mkdir()
    inputs, entries, lines = recording["inputs"], {}, []
    for index in range(sum(name.startswith("image_bgr_") for name in inputs)):
        _save_image(inputs[f"image_bgr_{index}"][()], folder / "images" / f"{index}.png")
        entries[f"{index}_labels"] = inputs[f"labels_{index}"][()]
        classes, *places = inputs[f"cues_{index}"][()]
        stays = ~np.any(np.mod(places, every), axis=0)
        entries[f"{index}_cues"] = np.stack([classes, *(place // every for place in places)])[:, stays]
        lines.append(f"{index}.png {index}\n")
    (folder / "localization_cues.pickle").write_bytes(pickle.dumps(entries, protocol=2))
    (folder / "list.txt").write_text("".join(lines))


def write_both(golden: Callable[[str], h5py.File], folder: Path) -> Path:
    """``stage1/`` and ``retrain/``, each with the inputs for ``SMALL``; gives ``folder``."""
    for name in ("stage1", "retrain"):
        (folder / name).mkdir()
    write_stage1_inputs(golden("stage1"), folder / "stage1", every=2)
    write_retrain_inputs(golden("retrain"), folder / "retrain")
    return folder


def _save_image(bgr: np.ndarray, path: Path) -> None:
    Image.fromarray(bgr[:, :, ::-1]).save(path, compress_level=1)  # quickly written, quickly read


def write_retrain_inputs(recording: h5py.File, folder: Path) -> None:
    """``images/<i>.png``, ``labels/<i>.png`` (palette) and ``list.txt``."""
    (folder / "images").mkdir()
    inputs, lines = recording["inputs"], []
    for index in range(sum(name.startswith("image_bgr_") for name in inputs)):
        _save_image(inputs[f"image_bgr_{index}"][()], folder / "images" / f"{index}.png")
        write_mask(folder / "labels" / f"{index}.png", inputs[f"label_{index}"][()])
        lines.append(f"{index}.png {index}.png\n")
    (folder / "list.txt").write_text("".join(lines))
