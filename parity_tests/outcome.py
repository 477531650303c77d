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
from repro.report.parity_curves import Curve, EndResult, Repetition

ROWS = 4  # of the figure: the images with most foreground in the original's masks


def compare_outcomes(shared: Path, run: Path, again: Path | None = None) -> EndResult:
    """``run`` has ``stage1/log.csv`` and ``masks/`` of the recording's 40 validation images; ``again`` has those of a
    training from weights whose last bits were drawn anew."""
    recorded = shared / "golden" / "outcome"
    voc = shared / "voc-animals" / "VOCdevkit" / "VOC2012"
    names = (recorded / "val.txt").read_text().split()
    masks = {
        "ground truth": voc / "SegmentationClass",
        "original": recorded / "masks",
        "this project": run / "masks",
    }
    truths, originals, ours = (_read(folder, names) for folder in masks.values())
    foreground = {name: float((mask > 0).mean()) for name, mask in zip(names, originals, strict=True)}
    scores = json.loads((recorded / "scores.json").read_text())["mean_iou"]
    matrix = confusion_matrix(truths, ours, 21)
    repetition = None
    if again:
        theirs = _read(again / "masks", names)
        other = confusion_matrix(truths, theirs, 21)
        means = {rule: mean_iou(other, rule) for rule in scores}
        repetition = Repetition(_equal(theirs, originals), _equal(theirs, ours), means)
    log = read_log(run / "stage1")
    log_again = read_log(again / "stage1") if again else {}
    with h5py.File(recorded / "curve.h5") as curve:
        count = len(curve["loss_Seed"])
        curves = [
            Curve(
                f"stage 1, {count} iterations at full width",
                f"loss-{loss}",
                curve[f"loss_{loss}"][()],
                log[f"loss-{loss}"],
                log_again.get(f"loss-{loss}"),
            )
            for loss in ("Seed", "Constrain")
        ]
    return EndResult(
        experiment=f"{count} iterations of stage 1 at full width on 600 real images",
        curves=curves,
        equal=_equal(ours, originals),
        pixels=sum(mask.size for mask in originals),
        mean_iou={rule: (want, mean_iou(matrix, rule)) for rule, want in scores.items()},
        rows=[
            (
                voc / "JPEGImages" / f"{name}.jpg",
                {what: folder / f"{name}.png" for what, folder in masks.items()},
            )
            for name in sorted(foreground, key=foreground.__getitem__)[: -ROWS - 1 : -1]
        ],
        classes=load_config("dsrg_vgg16_voc").dataset.classes,
        again=repetition,
    )


def _read(folder: Path, names: list[str]) -> list[np.ndarray]:
    return [np.asarray(Image.open(folder / f"{name}.png")) for name in names]


def _equal(masks: list[np.ndarray], others: list[np.ndarray]) -> int:
    return sum(int((mask == other).sum()) for mask, other in zip(masks, others, strict=True))
