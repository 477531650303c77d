"""What each stage minimises: the loss layers of the train prototxts, wired as there.

Stage 1, SEC      seed + expand + constrain; the CRF refines the raw scores.
Stage 1, DSRG     balanced seed on the grown cues + constrain; the CRF refines the probabilities.
Stage 2           softmax loss against pseudo labels sampled every 8th pixel, void ignored, mean over valid cells.

An objective takes the net and a batch and returns named scalars: the losses by their Caffe layer names, which
are summed (``loss_weight: 1``), and figures that are only reported: those among its ``columns`` in the log, others to
observers. ``winners`` is how many classes win at least one cell of stage 1's mini-batch.

With several ranks the batch is this rank's part of the mini-batch. Then the losses are what this part adds to the
mini-batch's, so that their sum over the ranks, and that of the gradients, is what one process has; the figures are
the whole mini-batch's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F

from repro import distributed
from repro.config import LossConfig
from repro.constants import VOID
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

    All of its losses are means over images: a part of the mini-batch adds its own mean, weighted by its share.

    Args:
        config: the losses.
        batch_size: images in the whole mini-batch; by default those that are given.
        watch: is shown the batch, given and grown cues with it; it changes nothing.
    """

    def __init__(
        self,
        config: LossConfig,
        batch_size: int | None = None,
        watch: Callable[[Batch, torch.Tensor], None] | None = None,
    ) -> None:
        self.config, self.batch_size, self.watch = config, batch_size, watch
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
        figures = {"winners": _winners(scores.detach())}
        if config.constrain or config.cues == "grown":
            refined = refine(crf_input, images, variant=config.variant)
            log_result, raised = crf_log(crf_input, images, variant=config.variant, refined=refined)
            if config.variant == "dsrg":
                probs = raised  # the CRF layer edits the blob in place: all later layers read it so
            if config.cues == "grown":
                cues = grow_seeds(
                    labels, refined, cues, theta_f=config.theta_f, theta_b=config.theta_b, rule=config.rule
                )
                figures["seeds"] = distributed.add_up(cues.sum())
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
        return Outcome(_shares(losses, len(images), self.batch_size), figures)


class ClassifierObjective:
    """Caffe's multi-label sigmoid loss on ``images`` (N, 3, S, S) and ``labels`` (N, C−1), for both classifiers.

    A mean over images; ``batch_size`` as for ``Stage1Objective``.
    """

    columns: tuple[str, ...] = ()

    def __init__(self, batch_size: int | None = None) -> None:
        self.batch_size = batch_size

    def __call__(self, net: Net, batch: Batch) -> Outcome:
        loss = sigmoid_cross_entropy_loss(net(batch["images"]), batch["labels"])
        return Outcome(_shares({"loss": loss}, len(batch["images"]), self.batch_size))


def _winners(scores: torch.Tensor) -> torch.Tensor:
    winner = scores.argmax(dim=1).flatten()
    hits = scores.new_zeros(scores.shape[1]).scatter_(0, winner, 1.0)
    return (distributed.add_up(hits) > 0).sum()


def _shares(losses: dict[str, torch.Tensor], images: int, batch_size: int | None) -> dict[str, torch.Tensor]:
    """What means over ``images`` add to the means over the ``batch_size`` that they are a part of."""
    if batch_size in (None, images):
        return losses
    return {name: loss * (images / batch_size) for name, loss in losses.items()}


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
        counts = distributed.add_up(_confusion(scores.detach(), label))
        # Caffe divides by max(count, 1): a batch of void alone costs 0, where PyTorch's mean is NaN
        summed = F.cross_entropy(scores, label, ignore_index=VOID, reduction="sum")
        return Outcome({"loss": summed / counts.sum().clamp_min(1)}, _seg_accuracy(counts))


def _confusion(scores: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Valid cells by true and winning class, (C, C) int64."""
    classes = scores.shape[1]
    valid = label != VOID
    # void goes into a row of its own that is cut off
    truth = torch.where(valid, label, classes)
    place = (truth * classes + scores.argmax(dim=1)).flatten()
    counts = place.new_zeros((classes + 1) * classes)  # not bincount, which waits for the device
    counts.scatter_add_(0, place, torch.ones_like(place))
    return counts[: classes * classes].reshape(classes, classes)


def _seg_accuracy(counts: torch.Tensor) -> dict[str, torch.Tensor]:
    """DeepLab's ``SegAccuracy`` on one batch: the share of right cells among the valid ones, the mean recall over
    the classes that occur in the labels, the mean intersection over union over **all** classes, where one that
    occurs neither in the labels nor in the prediction counts as 1."""
    matrix = counts.float()
    correct, actual = matrix.diagonal(), matrix.sum(dim=1)
    union = actual + matrix.sum(dim=0) - correct
    return {
        "accuracy": correct.sum() / actual.sum().clamp_min(1),
        "accuracy-recall": (correct / actual.clamp_min(1)).sum() / (actual > 0).sum().clamp_min(1),
        "accuracy-jaccard": torch.where(union > 0, correct / union.clamp_min(1), 1.0).mean(),
    }
