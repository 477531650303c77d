"""What each stage minimises: the loss layers of the train prototxts, wired as there.

Stage 1, SEC      seed + expand + constrain; the CRF refines the raw scores.
Stage 1, DSRG     balanced seed on the grown cues + constrain; the CRF refines the probabilities.
Stage 2           softmax loss against pseudo labels sampled every 8th pixel, void ignored, mean over valid cells.

An objective takes the net and a batch and returns named scalars: the losses by their Caffe layer names, which
are summed (``loss_weight: 1``), and figures that are only reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F

from repro.config import LossConfig
from repro.layers import (
    balanced_seed_loss,
    caffe_softmax,
    constrain_loss,
    crf_log,
    expand_loss,
    grow_seeds,
    interp,
    refine,
    seed_loss,
    sigmoid_cross_entropy_loss,
)

IGNORE_LABEL = 255
Batch = dict[str, torch.Tensor]
Net = Callable[[torch.Tensor], torch.Tensor]  # images to scores


@dataclass
class Outcome:
    """One mini-batch's losses (scalars with a graph, summed for the backward pass) and reported figures."""

    losses: dict[str, torch.Tensor]
    figures: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def total(self) -> torch.Tensor:
        return torch.stack(list(self.losses.values())).sum()


class Objective(Protocol):
    columns: tuple[str, ...]

    def __call__(self, net: Net, batch: Batch) -> Outcome: ...


class Stage1Objective:
    """Seed, expand and constrain losses on image-level labels and cues.

    The batch holds ``images`` (N, 3, h, w), ``labels`` (N, C) and ``cues`` (N, C, H, W). The CRF runs once and
    serves both the constrain loss and the growing; the release computes the same thing twice.

    Args:
        watch: is shown the batch, given and grown cues with it; it changes nothing.
    """

    def __init__(
        self, config: LossConfig, watch: Callable[[Batch, torch.Tensor], None] | None = None
    ) -> None:
        self.config, self.watch = config, watch
        names = {
            "loss-Seed": config.seed != "none",
            "loss-Expand": config.expand,
            "loss-Constrain": config.constrain,
        }
        self.columns = tuple(name for name, used in names.items() if used)
        if config.cues == "grown":
            self.columns += ("seeds",)

    def __call__(self, net: Net, batch: Batch) -> Outcome:
        config = self.config
        images, labels, cues = batch["images"], batch["labels"], batch["cues"]
        scores = net(images)
        probs = caffe_softmax(scores)
        crf_input = probs if config.variant == "dsrg" else scores
        figures = {}
        if config.constrain or config.cues == "grown":
            refined = refine(crf_input, images, variant=config.variant)
            log_result, raised = crf_log(crf_input, images, variant=config.variant, refined=refined)
            if config.variant == "dsrg":
                probs = raised  # the CRF layer edits the blob in place: all later layers read it so
            if config.cues == "grown":
                cues = grow_seeds(
                    labels, refined, cues, theta_f=config.theta_f, theta_b=config.theta_b, rule=config.rule
                )
                figures["seeds"] = cues.sum()
        if self.watch:
            self.watch(batch, cues)
        losses = {}
        if config.seed != "none":
            losses["loss-Seed"] = (balanced_seed_loss if config.seed == "balanced" else seed_loss)(
                probs, cues
            )
        if config.expand:
            losses["loss-Expand"] = expand_loss(probs, labels, pooling=config.pooling)
        if config.constrain:
            losses["loss-Constrain"] = constrain_loss(probs, log_result, clip=config.variant == "dsrg")
        return Outcome(losses, figures)


class ClassifierObjective:
    """Caffe's multi-label sigmoid loss on ``images`` (N, 3, S, S) and ``labels`` (N, C−1), for both classifiers."""

    columns: tuple[str, ...] = ()

    def __call__(self, net: Net, batch: Batch) -> Outcome:
        return Outcome({"loss": sigmoid_cross_entropy_loss(net(batch["images"]), batch["labels"])})


class Stage2Objective:
    """``SoftmaxWithLoss`` (ignore 255, mean over valid cells) on labels shrunk by ``Interp``, and ``SegAccuracy``.

    The batch holds ``images`` (N, 3, S, S) and ``label`` (N, 1, S, S) float, class ids or 255.
    """

    columns: tuple[str, ...] = ("accuracy", "accuracy-recall", "accuracy-jaccard")

    def __init__(self, label_shrink: int) -> None:
        self.label_shrink = label_shrink

    def __call__(self, net: Net, batch: Batch) -> Outcome:
        scores = net(batch["images"])
        # the shrunk grid falls on whole pixels, so this samples labels and never blends them
        label = interp(batch["label"], shrink_factor=self.label_shrink)[:, 0].round().long()
        valid = (label != IGNORE_LABEL).sum()
        # Caffe divides by max(count, 1): a batch of void alone costs 0, where PyTorch's mean is NaN
        summed = F.cross_entropy(scores, label, ignore_index=IGNORE_LABEL, reduction="sum")
        return Outcome({"loss": summed / valid.clamp_min(1)}, _seg_accuracy(scores.detach(), label))


def _seg_accuracy(scores: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
    """DeepLab's ``SegAccuracy`` on one batch: the share of right cells among the valid ones, the mean recall over
    the classes that occur in the labels, the mean intersection over union over **all** classes, where one that
    occurs neither in the labels nor in the prediction counts as 1."""
    classes = scores.shape[1]
    valid = label != IGNORE_LABEL
    # void goes into a row of its own that is cut off
    truth = torch.where(valid, label, classes)
    place = (truth * classes + scores.argmax(dim=1)).flatten()
    counts = place.new_zeros((classes + 1) * classes)  # not bincount, which waits for the device
    counts.scatter_add_(0, place, torch.ones_like(place))
    matrix = counts[: classes * classes].reshape(classes, classes).float()
    correct, actual = matrix.diagonal(), matrix.sum(dim=1)
    union = actual + matrix.sum(dim=0) - correct
    return {
        "accuracy": correct.sum() / actual.sum().clamp_min(1),
        "accuracy-recall": (correct / actual.clamp_min(1)).sum() / (actual > 0).sum().clamp_min(1),
        "accuracy-jaccard": torch.where(union > 0, correct / union.clamp_min(1), 1.0).mean(),
    }
