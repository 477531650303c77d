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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from repro import distributed
from repro.config import LossConfig
from repro.constants import VOID
from repro.layers.reductions import confusion, seg_scores
from repro.models import CaffeNet
from repro.models.zoo import classifier_losses, stage1_losses, stage2_losses
from weights_conversion.caffe_pb2 import LayerParameter, NetParameter

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


class _Tail:
    """The loss layers behind a net's scores as a net of their own, made for the shapes of the blobs that it gets."""

    def __init__(self, layers: Sequence[LayerParameter]) -> None:
        self._layers = layers
        self._nets: dict[tuple[tuple[str, tuple[int, ...]], ...], CaffeNet] = {}

    def __call__(self, given: Batch) -> tuple[dict[str, torch.Tensor], Batch]:
        """The losses that count, by layer, and every blob."""
        shapes = tuple((name, tuple(blob.shape)) for name, blob in given.items())
        if shapes not in self._nets:
            names, dims = zip(*shapes, strict=True)
            parameter = NetParameter(
                name="losses", input=names, input_shape=[{"dim": dim} for dim in dims], layer=self._layers
            )
            self._nets[shapes] = CaffeNet(parameter, phase="train")
        net = self._nets[shapes]
        blobs = net.forward_blobs(given)
        return {layer.name: blobs[layer.top] for layer in net.layers if any(layer.loss_weights)}, blobs


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
        self.batch_size, self.watch = batch_size, watch
        layers = stage1_losses("scores", **config.model_dump())
        self.tail = _Tail(layers)
        self.columns = tuple(layer.name for layer in layers if layer.loss_weight)
        if config.cues == "grown":
            self.columns += ("seeds",)

    def __call__(self, net: Net, batch: Batch) -> Outcome:
        images = batch["images"]
        scores = net(images)
        given = {"scores": scores, "images": images, "labels": batch["labels"], "cues": batch["cues"]}
        losses, blobs = self.tail(given)
        figures = {"winners": _winners(scores.detach())}
        if "seeds" in self.columns:
            figures["seeds"] = distributed.add_up(blobs["cues-new"].sum())
        if self.watch:
            self.watch(batch, blobs.get("cues-new", batch["cues"]))
        return Outcome(_shares(losses, len(images), self.batch_size), figures)


class ClassifierObjective:
    """Caffe's multi-label sigmoid loss on ``images`` (N, 3, S, S) and ``labels`` (N, C−1), for both classifiers.

    A mean over images; ``batch_size`` as for ``Stage1Objective``.
    """

    columns: tuple[str, ...] = ()

    def __init__(self, batch_size: int | None = None) -> None:
        self.batch_size = batch_size
        self.tail = _Tail(classifier_losses("scores"))

    def __call__(self, net: Net, batch: Batch) -> Outcome:
        losses, _ = self.tail({"scores": net(batch["images"]), "labels-classes": batch["labels"]})
        return Outcome(_shares(losses, len(batch["images"]), self.batch_size))


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

    The batch holds ``images`` (N, 3, S, S) and ``label`` (N, 1, S, S) float, class ids or 255. With several ranks the
    loss is a mean over the valid cells of all of them, and the figures are the whole mini-batch's.
    """

    columns: tuple[str, ...] = ("accuracy", "accuracy-recall", "accuracy-jaccard")

    def __init__(self, label_shrink: int) -> None:
        self.tail = _Tail(stage2_losses("scores", label_shrink=label_shrink))

    def __call__(self, net: Net, batch: Batch) -> Outcome:
        scores = net(batch["images"])
        losses, blobs = self.tail({"scores": scores, "label": batch["label"]})
        accuracy = blobs["accuracy"]
        if distributed.size() > 1:
            own = confusion(scores.detach(), blobs["label_shrink"], ignore_labels=(VOID,))
            whole = distributed.add_up(own)
            share = own.sum().clamp_min(1) / whole.sum().clamp_min(1)
            losses, accuracy = {name: loss * share for name, loss in losses.items()}, seg_scores(whole)
        return Outcome(losses, dict(zip(self.columns, accuracy.flatten(), strict=True)))
