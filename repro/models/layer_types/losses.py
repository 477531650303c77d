"""Caffe's losses, as ``repro.layers.caffe_losses`` computes them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from repro.layers.caffe_losses import (
    Normalization,
    contrastive_loss,
    euclidean_loss,
    hinge_loss,
    infogain_loss,
    multinomial_logistic_loss,
    sigmoid_cross_entropy_loss,
    softmax_loss,
)
from repro.models.layer_types.reductions import check_labels
from repro.models.registry import Count, Layer, meta, register
from weights_conversion.caffe_pb2 import HingeLossParameter, LossParameter


class Loss(Layer):
    """A loss on scores or probabilities and labels, or on two blobs."""

    counts: ClassVar[Count] = 2
    is_loss = True
    one_size: ClassVar[bool] = False  # of both bottoms
    one_label: ClassVar[bool] = False  # an image

    def setup(self) -> None:
        """Caffe asks for as many items of every loss, whatever the sizes behind (``loss_layer.cpp``)."""
        scores, labels = self.shapes[:2]
        found, values = f"bottoms of the shapes {scores} and {labels}", torch.Size(labels).numel()
        if scores[:1] != labels[:1]:
            self.fail("", f"{found}, expected the same number of items in both")
        if self.one_size and torch.Size(scores).numel() != values:
            self.fail("", f"{found}, expected one size")
        if self.one_label and values != scores[0]:
            found = f"labels of shape {labels} for scores of shape {scores}"
            self.fail("", f"{found}, expected {scores[0]} labels")

    def infer(self, *bottoms: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A scalar, and probabilities in the shape of the scores where there is a second top."""
        return tuple(meta(bottoms[0].shape if index else ()) for index in range(len(self.layer.top)))

    def items(self, *bottoms: torch.Tensor) -> torch.Tensor | int | None:
        ignored, mode = self.arguments.get("ignore_label"), self.arguments.get("normalization")
        if mode == "NONE":
            return 0
        if mode == "VALID" and ignored is not None:
            return (bottoms[1] != ignored).sum()
        return len(bottoms[0])

    def normalization(self, mode: Normalization) -> dict[str, Any]:
        """``ignore_label`` and normalisation of loss_param, by default ``mode``, also from the old ``normalize``."""
        p = self.layer.loss_param
        if p.HasField("normalization"):
            mode = LossParameter.NormalizationMode.Name(p.normalization)
        elif p.HasField("normalize"):
            mode = "VALID" if p.normalize else "BATCH_SIZE"
        ignored = p.ignore_label if p.HasField("ignore_label") else None
        return {"ignore_label": ignored, "normalization": mode}


@register("SoftmaxWithLoss")
class SoftmaxWithLoss(Loss):
    """Softmax and the logarithm of the label's probability; a second top has the probabilities."""

    field = "softmax_param"
    top_counts = (1, 2)

    def setup(self) -> None:
        super().setup()
        self.along = self.axis(self.p.axis)
        self.arguments = {"axis": self.along, **self.normalization("VALID")}
        check_labels(self, self.along)

    def forward(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        loss = softmax_loss(scores, labels, **self.arguments)
        return loss if len(self.layer.top) == 1 else (loss, scores.detach().softmax(self.along))


@register("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(Loss):
    """Sigmoid and binary cross entropies."""

    function = sigmoid_cross_entropy_loss
    one_size = True

    def setup(self) -> None:
        super().setup()
        self.arguments = self.normalization("BATCH_SIZE")


@register("EuclideanLoss")
class EuclideanLoss(Loss):
    """Half the mean squared distance."""

    function = euclidean_loss
    one_size = True


@register("HingeLoss")
class HingeLoss(Loss):
    """One against all, L1 or L2."""

    field = "hinge_loss_param"
    function = hinge_loss
    one_label = True

    def setup(self) -> None:
        super().setup()
        self.arguments = {"norm": HingeLossParameter.Norm.Name(self.p.norm)}


@register("MultinomialLogisticLoss")
class MultinomialLogisticLoss(Loss):
    """The logarithm of the label's probability, of probabilities."""

    function = multinomial_logistic_loss
    one_label = True


@register("InfogainLoss")
class InfogainLoss(Loss):
    """Logarithms of probabilities weighed by a matrix, the third bottom (Caffe up to DeepLab-v2; no softmax inside)."""

    field = "infogain_loss_param"
    function = infogain_loss
    counts = (2, 3)
    one_label = True

    def setup(self) -> None:
        super().setup()
        if len(self.bottoms) < 3:
            self.fail("source", "a matrix from a file is not supported, give it as the third bottom")
        classes = torch.Size(self.shapes[0][1:]).numel()
        if torch.Size(self.shapes[2]).numel() != classes**2:
            self.fail("", f"a matrix of shape {self.shapes[2]} for {classes} classes")


@register("ContrastiveLoss")
class ContrastiveLoss(Loss):
    """Pairs: similar ones are drawn together, others pushed apart up to the margin."""

    field = "contrastive_loss_param"
    function = contrastive_loss
    counts = 3

    def setup(self) -> None:
        super().setup()
        first, second, similar = self.shapes
        flat = all(size == 1 for size in first[2:])
        if first != second or not flat or torch.Size(similar).numel() != first[0]:
            shapes = f"{first}, {second} and {similar}"
            self.fail(
                "", f"bottoms of the shapes {shapes}, expected (N, C) or (N, C, 1, 1) twice and N values"
            )
        self.arguments = {"margin": self.p.margin, "legacy_version": self.p.legacy_version}
