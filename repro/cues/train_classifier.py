"""Training the classifiers that cues are made of: ``vgg16_cam`` and ``vgg16_bg``, on image-level labels alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from repro import distributed
from repro.config import Config, CuesConfig, Mark, Stage0Config, shaping
from repro.data.experiment import LabelledSet, open_labelled, stage0_of
from repro.data.image_survey import survey_images
from repro.data.labels import LabelledImages, check_every_class_occurs
from repro.errors import InputError, chosen
from repro.files import json_sha256
from repro.inference.predict import load_every_layer
from repro.models import CaffeNet
from repro.precision import to_device
from repro.run_folder import Run
from repro.solver import build_solver
from repro.training.batches import Batches
from repro.training.hooks import stage_hooks
from repro.training.loop import SolverLoop
from repro.training.measured_filler import fill_by_first_batch
from repro.training.objectives import classifier_objective
from repro.training.seed_quality import HeldOutPrecision
from repro.training.snapshots import snapshots
from weights_conversion.files import file_sha256, no_such

log = logging.getLogger(__name__)

SEED_CLASSIFIERS = ("cam", "bg")


def needed_classifiers(settings: CuesConfig) -> tuple[str, ...]:
    """Those that cues are made of: maps of saliency stand in for the background's."""
    return SEED_CLASSIFIERS if settings.saliency is None else SEED_CLASSIFIERS[:1]


def train_classifier(config: Config, net: str, run: Run) -> Path:
    """Train ``vgg16_<net>`` in ``<run>/stage0/<net>``, resuming from its newest snapshot if there is one.

    ``init.weights`` fills the convolutions of VGG16 alone: the inner products of ImageNet's net have other shapes.
    A share of the images is held out; their average precision is logged every ``test_interval`` iterations.

    Args:
        net: ``cam`` or ``bg``.

    Returns:
        The final weights, ``iter_<max_iter>.safetensors``.

    Raises:
        InputError: anything missing or malformed in the inputs; a class that no image shows; a folder made with other
            settings.
    """
    chosen("net", net, SEED_CLASSIFIERS)
    labelled = open_labelled(config)
    section = stage0_of(config)
    if section.solver.max_iter < 1:
        raise InputError("stage0.solver.max_iter: expected at least 1 iteration")
    if section.init.weights and not Path(section.init.weights).is_file():
        raise InputError(f"stage0.init.weights: {no_such('file', section.init.weights)}")
    survey_images(list(labelled.images.values()))
    training, held_out = _split(labelled, section.data.held_out, config.seed)
    check_every_class_occurs(
        {name: labelled.labels[name] for name in training}, config.dataset.classes, labelled.source
    )
    with run.step(f"stage0/{net}", classifier_settings(config, section, labelled)) as step:
        weights = step.folder / f"iter_{section.solver.max_iter}.safetensors"
        if step.done:
            return weights
        model = config.build_net(f"vgg16_{net}")
        model.fill(section.init.filler, torch.Generator().manual_seed(config.seed))
        missing = [layer.name for layer in model.layers]
        if section.init.weights:
            report = load_every_layer(_convolutions(model), section.init.weights, "VGG16")
            log.info("%s", report)
            missing = [name for name in missing if name not in report.loaded]
        elif section.init.filler == "gaussian":
            log.warning(
                "stage0.init.weights is not given: at VGG16's depth nothing is learnt from the filler gaussian; give "
                "vgg16_20M.caffemodel, or init.filler=looks_linear to train from scratch"
            )
        to_device(model, config, run.device)
        data = section.data
        images = _layer(config, labelled, training, mirror=data.mirror)
        batches = Batches.of(images, section, config.seed)
        if section.init.filler == "lsuv" and distributed.is_first() and not snapshots(step.folder):
            step.record["filler"] = fill_by_first_batch(model, missing, batches.first)
        precision = HeldOutPrecision(
            model,
            _layer(config, labelled, held_out, mirror=False),
            config.dataset.classes[1:],
            interval=section.test_interval,
            batch_size=data.batch_size,
        )
        names = config.dataset.classes
        lines = (f"{name},{','.join(names[i] for i in labelled.labels[name])}\n" for name in training)
        hooks = stage_hooks(step, "".join(lines).encode(), [precision] if held_out else [])
        solver = build_solver(model, section.solver)
        SolverLoop(model, solver, classifier_objective(), batches, step.folder, hooks).run()
        return weights


def classifier_weights(config: Config) -> dict[str, Path]:
    """Where ``train_classifier`` leaves the weights of each net, whether they are there or not."""
    last = f"iter_{stage0_of(config).solver.max_iter}.safetensors"
    return {net: config.run_dir / "stage0" / net / last for net in SEED_CLASSIFIERS}


def _convolutions(model: CaffeNet) -> nn.Module:
    """VGG16's own convolutions, by name, as a module to load weights into."""
    return nn.ModuleDict({name: module for name, module in model.named_children() if name.startswith("conv")})


def _split(labelled: LabelledSet, share: float, seed: int) -> tuple[list[str], list[str]]:
    """Names to train on and names held out, both in their order; which is which depends on the seed alone."""
    names = list(labelled.images)
    count = round(share * len(names))
    out = set(np.random.default_rng(seed).permutation(len(names))[:count].tolist())
    return [n for i, n in enumerate(names) if i not in out], [n for i, n in enumerate(names) if i in out]


def _layer(config: Config, labelled: LabelledSet, names: Sequence[str], *, mirror: bool) -> LabelledImages:
    return LabelledImages(
        {name: labelled.images[name] for name in names},
        labelled.labels,
        num_classes=config.model.num_classes,
        size=stage0_of(config).data.input_size,
        mirror=mirror,
    )


def classifier_settings(config: Config, section: Stage0Config, labelled: LabelledSet) -> dict[str, Any]:
    """The settings that decide a classifier; images count by their names."""
    fields = shaping(section, Mark.INPUT, Mark.EXTRA_INPUT)
    del fields["cues"]  # the next step's
    model = shaping(config.model)
    del model["name"]  # of the net that the cues are for
    return {
        "seed": config.seed,
        "precision": config.precision,
        "model": model,
        "classes": config.dataset.classes,
        "stage0": fields,
        "inputs_sha256": {
            "labels": json_sha256(labelled.labels),
            **({"weights": file_sha256(section.init.weights)} if section.init.weights else {}),
        },
    }
