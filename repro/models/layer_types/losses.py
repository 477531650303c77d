"""Caffe's losses, as ``repro.layers.caffe_losses`` computes them."""

from __future__ import annotations

from typing import ClassVar

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

    def setup(self) -> None:
        """Caffe asks it of every loss, whatever the sizes behind (``loss_layer.cpp``)."""
        first, second = (shape[:1] for shape in self.shapes[:2])
        if first != second:
            self.fail(
                "",
                f"bottoms of the shapes {self.shapes[0]} and {self.shapes[1]}, expected as many items in both",
            )

    def infer(self, *bottoms: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A scalar, and probabilities in the shape of the scores where there is a second top."""
        return tuple(meta(bottoms[0].shape if index else ()) for index in range(len(self.layer.top)))

    def items(self, *bottoms: torch.Tensor) -> torch.Tensor | int | None:
        ignored, mode = getattr(self, "ignored", None), getattr(self, "mode", "BATCH_SIZE")
        if mode == "NONE":
            return 0
        if mode == "VALID" and ignored is not None:
            return (bottoms[1] != ignored).sum()
        return len(bottoms[0])

    def normalization(self, default: Normalization) -> tuple[int | None, Normalization]:
        """``ignore_label`` and the normalisation mode of loss_param, with the old ``normalize`` as Caffe reads it."""
        p = self.layer.loss_param
        ignored = p.ignore_label if p.HasField("ignore_label") else None
        if p.HasField("normalization"):
            return ignored, LossParameter.NormalizationMode.Name(p.normalization)
        if p.HasField("normalize"):
            return ignored, "VALID" if p.normalize else "BATCH_SIZE"
        return ignored, default

    def same_size(self) -> None:
        """Refuse bottoms of different sizes."""
        if torch.Size(self.shapes[0]).numel() != torch.Size(self.shapes[1]).numel():
            self.fail("", f"bottoms of the shapes {self.shapes[0]} and {self.shapes[1]}, expected one size")


@register("SoftmaxWithLoss")
class SoftmaxWithLoss(Loss):
    """Softmax and the logarithm of the label's probability; a second top has the probabilities."""

    field = "softmax_param"
    top_counts = (1, 2)

    def setup(self) -> None:
        super().setup()
        self.along = self.axis(self.p.axis)
        self.ignored, self.mode = self.normalization("VALID")
        check_labels(self, self.along)

    def forward(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        loss = softmax_loss(
            scores, labels, axis=self.along, ignore_label=self.ignored, normalization=self.mode
        )
        return loss if len(self.layer.top) == 1 else (loss, scores.detach().softmax(self.along))


@register("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(Loss):
    """Sigmoid and binary cross entropies."""

    def setup(self) -> None:
        super().setup()
        self.ignored, self.mode = self.normalization("BATCH_SIZE")
        self.same_size()

    def forward(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return sigmoid_cross_entropy_loss(scores, targets, ignore_label=self.ignored, normalization=self.mode)


@register("EuclideanLoss")
class EuclideanLoss(Loss):
    """Half the mean squared distance."""

    def setup(self) -> None:
        super().setup()
        self.same_size()

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return euclidean_loss(first, second)


@register("HingeLoss")
class HingeLoss(Loss):
    """One against all, L1 or L2."""

    field = "hinge_loss_param"

    def setup(self) -> None:
        super().setup()
        one_label_an_image(self)
        self.norm = HingeLossParameter.Norm.Name(self.p.norm)

    def forward(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return hinge_loss(scores, labels, norm=self.norm)


@register("MultinomialLogisticLoss")
class MultinomialLogisticLoss(Loss):
    """The logarithm of the label's probability, of probabilities."""

    def setup(self) -> None:
        super().setup()
        one_label_an_image(self)

    def forward(self, probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return multinomial_logistic_loss(probs, labels)


@register("InfogainLoss")
class InfogainLoss(Loss):
    """Logarithms of probabilities weighed by a matrix, the third bottom (Caffe up to DeepLab-v2; no softmax inside)."""

    field = "infogain_loss_param"
    counts = (2, 3)

    def setup(self) -> None:
        super().setup()
        one_label_an_image(self)
        if len(self.bottoms) < 3:
            self.fail("source", "a matrix from a file is not supported, give it as the third bottom")
        classes = torch.Size(self.shapes[0][1:]).numel()
        if torch.Size(self.shapes[2]).numel() != classes**2:
            self.fail("", f"a matrix of shape {self.shapes[2]} for {classes} classes")

    def forward(self, probs: torch.Tensor, labels: torch.Tensor, infogain: torch.Tensor) -> torch.Tensor:
        return infogain_loss(probs, labels, infogain)


@register("ContrastiveLoss")
class ContrastiveLoss(Loss):
    """Pairs: similar ones are drawn together, others pushed apart up to the margin."""

    field = "contrastive_loss_param"
    counts = 3

    def setup(self) -> None:
        super().setup()
        first, second, similar = self.shapes
        flat = all(size == 1 for size in first[2:])
        if first != second or not flat or torch.Size(similar).numel() != first[0]:
            self.fail(
                "",
                f"bottoms of the shapes {first}, {second} and {similar}, expected (N, C) or (N, C, 1, 1) twice and N "
                "values",
            )
        self.margin, self.legacy = self.p.margin, self.p.legacy_version

    def forward(self, first: torch.Tensor, second: torch.Tensor, similar: torch.Tensor) -> torch.Tensor:
        return contrastive_loss(first, second, similar, margin=self.margin, legacy_version=self.legacy)


def one_label_an_image(layer: Layer) -> None:
    scores, labels = layer.shapes[:2]
    if torch.Size(labels).numel() != scores[0]:
        layer.fail("", f"labels of shape {labels} for scores of shape {scores}, expected {scores[0]} labels")
