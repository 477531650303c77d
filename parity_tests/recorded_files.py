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


def write_stage1_inputs(recording: h5py.File, folder: Path) -> None:
    """``images/<i>.png``, ``list.txt`` and ``localization_cues.pickle`` in the SEC release's layout."""
    (folder / "images").mkdir()
    inputs, entries, lines = recording["inputs"], {}, []
    for index in range(sum(name.startswith("image_bgr_") for name in inputs)):
        Image.fromarray(inputs[f"image_bgr_{index}"][()][:, :, ::-1]).save(folder / "images" / f"{index}.png")
        entries[f"{index}_labels"] = inputs[f"labels_{index}"][()]
        entries[f"{index}_cues"] = inputs[f"cues_{index}"][()]
        lines.append(f"{index}.png {index}\n")
    (folder / "localization_cues.pickle").write_bytes(pickle.dumps(entries, protocol=2))
    (folder / "list.txt").write_text("".join(lines))


def write_both(golden: Callable[[str], h5py.File], folder: Path) -> Path:
    """``stage1/`` and ``retrain/``, each with its inputs; gives ``folder``."""
    for name, write in (("stage1", write_stage1_inputs), ("retrain", write_retrain_inputs)):
        (folder / name).mkdir()
        write(golden(name), folder / name)
    return folder


def write_retrain_inputs(recording: h5py.File, folder: Path) -> None:
    """``images/<i>.png``, ``labels/<i>.png`` (palette) and ``list.txt``."""
    (folder / "images").mkdir()
    inputs, lines = recording["inputs"], []
    for index in range(sum(name.startswith("image_bgr_") for name in inputs)):
        Image.fromarray(inputs[f"image_bgr_{index}"][()][:, :, ::-1]).save(folder / "images" / f"{index}.png")
        write_mask(folder / "labels" / f"{index}.png", inputs[f"label_{index}"][()])
        lines.append(f"{index}.png {index}.png\n")
    (folder / "list.txt").write_text("".join(lines))
