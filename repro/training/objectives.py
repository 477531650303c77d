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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from repro import distributed
from repro.config import LossConfig
from repro.data.release_layers import AnnotationLayer, AnnotationLayerCOCO
from repro.errors import InputError
from repro.models import CaffeNet
from repro.models.layer_types.python import DSRGLayer, SoftmaxLayer
from repro.models.loss_tails import classifier_losses, stage1_losses, stage2_losses
from repro.models.net_layer import NetLayer
from repro.models.registry import Layer
from weights_conversion.caffe_pb2 import LayerParameter, NetParameter

Batch = dict[str, torch.Tensor]
Net = Callable[..., Any]  # a CaffeNet, or what shares it out over processes
Watch = Callable[[Batch, torch.Tensor], None]
EXTRAS = ("truth",)  # of a batch: for those who watch, no blobs of the net
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


class NetObjective:
    """The losses and outputs of a net that has its loss layers in it, by their tops' names, on what its data layers
    made.

    Args:
        net: it.
        watch: as for :class:`TailObjective`, where the net has cues.

    Raises:
        InputError: nothing to minimise; with several processes a layer that cannot be computed in parts.
    """

    def __init__(self, net: CaffeNet, watch: Watch | None = None) -> None:
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
            (lay.tops[1] for lay in net.data_layers if isinstance(net[lay.name], annotations)),
            "cues" if "cues" in net.inputs else None,
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
        extras = {name: batch[name] for name in EXTRAS if name in batch}
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


class TailObjective:
    """The losses behind the scores of a net that has none in it: a net of their own, as the train prototxts wire them.

    The batch holds ``images``, which the net gets, and what the tail reads besides, in any dtype.

    Args:
        layers: the tail; it reads ``scores`` of the net.
        inputs: a shape that each of its inputs may have; it runs on batches of any others.
        watch: is shown the batch's ``truth`` and ``cues``, and the grown cues with it; it changes nothing.
    """

    def __init__(
        self,
        layers: Sequence[LayerParameter],
        inputs: Mapping[str, Sequence[int]],
        watch: Watch | None = None,
    ) -> None:
        self._layers, self._watch = layers, watch
        self._made: dict[tuple[tuple[int, ...], ...], tuple[CaffeNet, NetObjective]] = {}
        self.inputs = tuple(inputs)
        self.columns = self._losses(tuple(tuple(shape) for shape in inputs.values()))[1].columns

    def __call__(self, net: Net, batch: Batch) -> Outcome:
        scores = net(batch["images"])
        given = {name: batch[name].to(scores.dtype) for name in self.inputs if name != "scores"}
        given["scores"] = scores
        tail, losses = self._losses(tuple(tuple(given[name].shape) for name in self.inputs))
        extras = {name: batch[name] for name in EXTRAS if name in batch}
        return losses(tail, {**given, **extras})

    def _losses(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[CaffeNet, NetObjective]:
        if shapes not in self._made:
            dims = [{"dim": shape} for shape in shapes]
            parameter = NetParameter(name="losses", input=self.inputs, input_shape=dims, layer=self._layers)
            tail = CaffeNet(parameter, phase="train")
            self._made[shapes] = tail, NetObjective(tail, self._watch)
        return self._made[shapes]


def stage1_objective(config: LossConfig, watch: Watch | None = None) -> TailObjective:
    """Seed, expand and constrain losses: on ``images`` (N, 3, h, w), ``labels`` (N, C) and ``cues`` (N, C, H, W).

    The CRF runs once and serves both the constrain loss and the growing; the release computes the same thing twice.
    """
    layers = stage1_losses("scores", **config.model_dump())
    shapes = {"scores": (1, 2, 3, 3), "images": (1, 3, 17, 17), "labels": (1, 2), "cues": (1, 2, 3, 3)}
    return TailObjective(layers, shapes, watch)


def stage2_objective(label_shrink: int) -> TailObjective:
    """``SoftmaxWithLoss`` (ignore 255, mean over valid cells) on labels shrunk by ``Interp``, and ``SegAccuracy``.

    On ``label`` (N, 1, S, S), class ids or 255.
    """
    side = 2 * label_shrink + 1
    layers = stage2_losses("scores", label_shrink=label_shrink)
    return TailObjective(layers, {"scores": (1, 2, 3, 3), "label": (1, 1, side, side)})


def classifier_objective() -> TailObjective:
    """Caffe's multi-label sigmoid loss on ``labels`` (N, C−1), for both classifiers; a mean over images."""
    layers = classifier_losses("scores", labels="labels")
    return TailObjective(layers, {"scores": (1, 2), "labels": (1, 2)})
