"""Seeds growing over the iterations, for a few images: what Fig. 1 of the DSRG paper shows.

The seeds of an image are those that the growing layer would give at a snapshot of stage 1: the cues grown into the
regions of which the net is sure by then.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from repro import distributed
from repro.config import Config
from repro.constants import VOID
from repro.data import CueDataset, CueFile, write_mask
from repro.data.experiment import Experiment
from repro.errors import InputError
from repro.inference.predict import load_model
from repro.layers import caffe_softmax, grow_seeds, refine
from repro.run_folder import Run
from repro.training.snapshots import snapshots

IMAGES = 4
STEP = "growth"


@torch.inference_mode()
def draw_growth(run: Run, config: Config, experiment: Experiment, stage1: Path) -> None:
    """Write ``growth/<id>_<iteration>.png``: the seeds of some training images at each snapshot of ``stage1``.

    Masks of (H, W) cells of the score grid, 255 where there is no seed; a cell of several classes shows the
    highest. Iteration 0 stands for the cues as they are.

    Raises:
        InputError: ``report.growth`` names an image that is not trained on.
    """
    cues = experiment.cues
    if cues.is_dir():
        return  # COCO's cues are masks already; its paper shows none growing
    names = config.report.growth or list(experiment.train)[:IMAGES]
    if unknown := [name for name in names if name not in experiment.train]:
        raise InputError(
            f"report.growth: {unknown[0]} is none of the {len(experiment.train)} training images"
        )
    iterations = snapshots(stage1)
    loss, data = config.stage1.loss, config.stage1.data
    settings = {"images": names, "iterations": iterations, "loss": loss.model_dump()}
    with run.step(STEP, settings) as step:
        if step.done or not distributed.is_first():
            return
        step.begin()
        file, lines = CueFile.open(cues), experiment.cue_lines(names)
        if file.names is not None:
            lines = file.named(lines, lines.source)
        for iteration in iterations:
            model = load_model(config, stage1 / f"iter_{iteration}.safetensors", run.device)
            layer = CueDataset(
                experiment.train_root,
                lines,
                file,
                num_classes=config.model.num_classes,
                background_label=data.background_label,
                grid=model.grid_size(data.new_height, data.new_width),
                new_height=data.new_height,
                new_width=data.new_width,
            )
            for number, name in enumerate(names):
                item = layer.item(number, np.random.default_rng())  # nothing is mirrored, so nothing is drawn
                images, labels, seeds = (
                    item[blob][None].to(run.device) for blob in ("images", "labels", "cues")
                )
                if iteration == iterations[0]:
                    _write(step.folder / f"{name}_0.png", seeds)
                refined = refine(caffe_softmax(model(images)), images, variant=loss.variant)
                grown = grow_seeds(
                    labels, refined, seeds, theta_f=loss.theta_f, theta_b=loss.theta_b, rule=loss.rule
                )
                _write(step.folder / f"{name}_{iteration}.png", grown)


def _write(path: Path, seeds: torch.Tensor) -> None:
    cells = seeds[0].cpu().numpy() > 0.5
    classes = np.where(cells, np.arange(len(cells))[:, None, None], -1).max(axis=0)
    write_mask(path, np.where(classes < 0, VOID, classes).astype(np.uint8))
