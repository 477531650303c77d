"""What each stage minimises: the loss layers of the train prototxts, wired as there.

Stage 1, SEC      seed + expand + constrain; the CRF refines the raw scores.
Stage 1, DSRG     balanced seed on the grown cues + constrain; the CRF refines the probabilities.
Stage 2           softmax loss against pseudo labels sampled every 8th pixel, void ignored, mean over valid cells.

An objective takes the net and a batch and returns named scalars: the losses by their Caffe layer names, which
are summed (``loss_weight: 1``), and metrics that are only reported: those among its ``columns`` in the log, others to
hooks. ``winners`` is how many classes win at least one cell of stage 1's mini-batch.

With several ranks the batch is this rank's part of the mini-batch. Then the losses are what this part adds to the
mini-batch's, so that their sum over the ranks, and that of the gradients, is what one process has; the metrics are
the whole mini-batch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from repro import distributed
from repro.config import LossConfig
from repro.constants import VOID
from repro.data.release_layers import AnnotationLayer, AnnotationLayerCOCO
from repro.errors import InputError
from repro.models import CaffeNet
from repro.models.layer_types.python import DSRGLayer, SoftmaxLayer
from repro.models.net import NetLayer
from repro.models.registry import Layer
from repro.models.zoo import classifier_losses, stage1_losses, stage2_losses
from weights_conversion.caffe_pb2 import LayerParameter, NetParameter

Batch = dict[str, torch.Tensor]
Net = Callable[..., Any]  # a CaffeNet, or what shares it out over processes
_OWN = ("iteration", "lr", "loss", "seeds", "winners")  # columns and metrics with a meaning of their own


@dataclass
class Outcome:
    """One mini-batch's losses (scalars with a graph, summed for the backward pass) and reported metrics."""

    losses: dict[str, torch.Tensor]
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)  # loss_weight of those that have another than 1

    @property
    def total(self) -> torch.Tensor:
        weighed = [
            loss * self.weights[name] if name in self.weights else loss for name, loss in self.losses.items()
        ]
        return torch.stack(weighed).sum()


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
        labels, cues = (batch[name].to(images.dtype) for name in ("labels", "cues"))
        losses, blobs = self.tail({"scores": scores, "images": images, "labels": labels, "cues": cues})
        metrics = {"winners": _winners(scores.detach())}
        if "seeds" in self.columns:
            metrics["seeds"] = distributed.add_up(blobs["cues-new"].sum())
        if self.watch:
            self.watch(batch, blobs.get("cues-new", cues))
        return Outcome(_shares(losses, len(images), self.batch_size), metrics)


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


class NetObjective:
    """The losses and outputs of a net that has its loss layers in it, by their tops' names, on what its data layers
    made.

    Args:
        net: it.
        watch: as for :class:`Stage1Objective`, where the net has cues.

    Raises:
        InputError: nothing to minimise; with several processes a layer that cannot be computed in parts.
    """

    def __init__(self, net: CaffeNet, watch: Callable[[Batch, torch.Tensor], None] | None = None) -> None:
        self.watch = watch
        made = {top for layer in net.data_layers for top in layer.tops}
        tops = [
            (layer, top, weight)
            for layer in net.layers
            for top, weight in zip(layer.tops, layer.loss_weights, strict=True)
        ]
        self.modules = {layer.name: net[layer.name] for layer in net.layers}
        self.losses = [(layer, top, weight) for layer, top, weight in tops if weight]
        losses = {top for _, top, _ in self.losses}
        sizes = {name: torch.Size(shape).numel() for name, shape in net.shapes.items()}
        self.reports = [
            (layer, top)
            for layer, top, _ in tops
            if top in net.outputs and top not in made | losses and sizes[top] <= 64
        ]
        if not self.losses:
            raise InputError(f"{net.path or net.name}: no layer has a loss_weight: nothing to minimise")
        self.names = {
            top: _free(top, alone=len(self.losses) == 1 and self.losses[0][2] == 1) for top in losses
        }
        self.metrics = {
            top: _columns(top, sizes[top], self.modules[layer.name]) for layer, top in self.reports
        }
        self.grown = next((lay.top for lay in net.layers if isinstance(net[lay.name], DSRGLayer)), None)
        annotations = (AnnotationLayer, AnnotationLayerCOCO)
        self.given_cues = next(
            (lay.tops[1] for lay in net.data_layers if isinstance(net[lay.name], annotations)), None
        )
        self.scores = next(
            (lay.bottoms[0] for lay in net.layers if isinstance(net[lay.name], SoftmaxLayer)), None
        )
        columns = [self.names[top] for _, top, _ in self.losses] + [
            c for cs in self.metrics.values() for c in cs
        ]
        self.columns = tuple(dict.fromkeys(c for c in columns if c != "loss")) + (
            ("seeds",) if self.grown else ()
        )
        extra = [self.grown, self.scores] if self.scores or self.grown else []
        if distributed.size() > 1:
            counted = [layer for layer, _, _ in self.losses] + [layer for layer, _ in self.reports]
            extra += [bottom for layer in counted for bottom in layer.bottoms]
            self._refuse_shared()
        self.wanted = list(dict.fromkeys([*losses, *self.metrics, *(name for name in extra if name)]))

    def _refuse_shared(self) -> None:
        for module in self.modules.values():
            if module.mixes_images:
                module.fail(
                    "", f"mixes the images of a batch, which {distributed.size()} processes cannot share"
                )
        for layer, _, _ in self.losses:
            module = self.modules[layer.name]
            if type(module).items is Layer.items:
                module.fail(
                    "loss_weight", f"of a layer whose batch {distributed.size()} processes cannot share"
                )

    def __call__(self, net: Net, batch: Batch) -> Outcome:
        extras = {name: batch[name] for name in ("truth",) if name in batch}
        blobs = net({name: blob for name, blob in batch.items() if name not in extras}, self.wanted)
        losses, weights = {}, {}
        for layer, top, weight in self.losses:
            name = self.names[top]
            losses[name] = blobs[top].sum() * self._share(layer, batch | blobs)
            if weight != 1:
                weights[name] = weight
        metrics: dict[str, torch.Tensor] = {}
        for layer, top in self.reports:
            values = blobs[top].detach()
            if distributed.size() > 1 and not self.modules[layer.name].columns:
                values = distributed.add_up(values * self._share(layer, batch | blobs))
            metrics |= dict(zip(self.metrics[top], values.flatten(), strict=True))
        if self.scores:
            metrics["winners"] = _winners(blobs[self.scores].detach())
        if self.grown:
            metrics["seeds"] = distributed.add_up(blobs[self.grown].sum())
        if self.watch and self.given_cues:
            given = batch[self.given_cues]
            self.watch({**extras, "cues": given}, blobs[self.grown] if self.grown else given)
        return Outcome(losses, metrics, weights)

    def _share(self, layer: NetLayer, blobs: Batch) -> torch.Tensor | float:
        """This process's part of the mean over the whole mini-batch."""
        if distributed.size() == 1:
            return 1.0
        bottoms = [blobs[name].detach() for name in layer.bottoms]
        own = self.modules[layer.name].items(*bottoms)
        if own == 0 and isinstance(own, int):  # a sum
            return 1.0
        count = torch.as_tensor(len(bottoms[0]) if own is None else own, device=bottoms[0].device)
        whole = distributed.add_up(count.clone())
        return (count.clamp_min(1) / whole.clamp_min(1)).to(bottoms[0].dtype)


def _free(name: str, *, alone: bool) -> str:
    """A column for a top; the loss of a single layer called loss is the sum of all."""
    return f"{name} (top)" if name in _OWN and not (name == "loss" and alone) else name


def _columns(top: str, size: int, module: Layer) -> list[str]:
    name = _free(top, alone=False)
    if module.columns:
        return [f"{name}{ending}" for ending in module.columns]
    return [name] if size == 1 else [f"{name}[{index}]" for index in range(size)]


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

    The batch holds ``images`` (N, 3, S, S) and ``label`` (N, 1, S, S), class ids or 255. With several ranks the
    loss is a mean over the valid cells of all of them, and the metrics are the whole mini-batch's.
    """

    columns: tuple[str, ...] = ("accuracy", "accuracy-recall", "accuracy-jaccard")

    def __init__(self, label_shrink: int) -> None:
        self.tail = _Tail(stage2_losses("scores", label_shrink=label_shrink))

    def __call__(self, net: Net, batch: Batch) -> Outcome:
        scores = net(batch["images"])
        label = batch["label"].to(batch["images"].dtype)
        losses, blobs = self.tail({"scores": scores, "label": label})
        if distributed.size() > 1:
            own = (blobs["label_shrink"] != VOID).sum()
            share = own.clamp_min(1) / distributed.add_up(own.clone()).clamp_min(1)
            losses = {name: loss * share for name, loss in losses.items()}
        return Outcome(losses, dict(zip(self.columns, blobs["accuracy"].flatten(), strict=True)))
