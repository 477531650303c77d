"""What the longest recorded training of the original ends with, beside what ours ends with."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from parity_tests.recorded_files import read_log
from repro.config import load_config
from repro.metrics import confusion_matrix, mean_iou
from repro.report.parity_curves import Curve, Outcome

ROWS = 4  # of the figure: the images with most foreground in the original's masks


def compare_outcomes(shared: Path, run: Path) -> Outcome:
    """``run`` has ``stage1/log.csv`` and ``masks/`` of the recording's 40 validation images."""
    recorded = shared / "golden" / "outcome"
    voc = shared / "voc-animals" / "VOCdevkit" / "VOC2012"
    names = (recorded / "val.txt").read_text().split()
    masks = {
        "ground truth": voc / "SegmentationClass",
        "original": recorded / "masks",
        "this project": run / "masks",
    }
    equal = pixels = 0
    foreground = {}
    matrix = np.zeros((21, 21), np.int64)
    for name in names:
        truth, want, got = (np.asarray(Image.open(folder / f"{name}.png")) for folder in masks.values())
        equal, pixels = equal + int((got == want).sum()), pixels + got.size
        foreground[name] = float((want > 0).mean())
        matrix += confusion_matrix(truth, got, 21)
    scores = json.loads((recorded / "scores.json").read_text())["mean_iou"]
    log = read_log(run / "stage1")
    with h5py.File(recorded / "curve.h5") as curve:
        count = len(curve["loss_Seed"])
        curves = [
            Curve(
                f"stage 1, {count} iterations at full width",
                f"loss-{loss}",
                curve[f"loss_{loss}"][()],
                log[f"loss-{loss}"],
            )
            for loss in ("Seed", "Constrain")
        ]
    return Outcome(
        experiment=f"{count} iterations of stage 1 at full width on 600 real images",
        curves=curves,
        equal=equal,
        pixels=pixels,
        mean_iou={rule: (want, mean_iou(matrix, rule)) for rule, want in scores.items()},
        rows=[
            (
                voc / "JPEGImages" / f"{name}.jpg",
                {what: folder / f"{name}.png" for what, folder in masks.items()},
            )
            for name in sorted(foreground, key=foreground.__getitem__)[: -ROWS - 1 : -1]
        ],
        classes=load_config("dsrg_vgg16_voc").dataset.classes,
    )
