"""The releases' Python layers, by their own module and class names (``pylayers`` of SEC and DSRG).

Both releases call their module ``pylayers``. Where their layers of one name differ, the net tells which is meant: SEC's
CRF layer reads the scores, DSRG's the output of the softmax layer, and a constrain loss is the one of the CRF layer
that it reads.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from repro.layers.dense_crf import crf_log, refine
from repro.layers.losses import balanced_seed_loss, constrain_loss, expand_loss, seed_loss
from repro.layers.region_growing import RULES, grow_seeds
from repro.layers.softmax import MIN_PROB, caffe_softmax
from repro.models.registry import Called, Layer, meta, register


@register("pylayers.SoftmaxLayer")
class SoftmaxLayer(Called):
    """The min-prob softmax."""

    function = caffe_softmax
    keeps_shape = True

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        softmax = graph.step("softmax", "Softmax", bottoms, axis=1)
        floored = graph.step("floored", "Add", [softmax, graph.number(MIN_PROB)])
        total = graph.step("sum", "ReduceSum", [floored, graph.numbers(1)])
        graph.emit("Div", [floored, total], tops[0])


@register("pylayers.CRFLayer")
class CRFLayer(Layer):
    """The logarithm of the CRF's refinement of its first bottom; the second is the image blob.

    DSRG's also raises small probabilities of its bottom, for every later reader. The refinement itself is kept with the
    raised blob, for a DSRGLayer that reads it: the release computes it a second time.
    """

    counts = 2
    edits = (0,)

    def setup(self) -> None:
        name, shape = self.bottoms[1].name, self.shapes[1]
        if len(shape) != 4 or shape[1] != 3:
            self.fail("bottom", f"{name!r} of shape {shape}, expected images of 3 channels")
        reads_probs = isinstance(self.bottoms[0].maker, SoftmaxLayer)
        self.variant: Literal["dsrg", "sec"] = "dsrg" if reads_probs else "sec"

    def infer(self, *bottoms: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return meta(bottoms[0].shape), bottoms[0]

    def forward(self, x: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        refined = refine(x, images, variant=self.variant)
        log_result, raised = crf_log(x, images, variant=self.variant, refined=refined)
        raised.refined = refined  # type: ignore[attr-defined]
        return log_result, raised


@register("pylayers.DSRGLayer")
class DSRGLayer(Layer):
    """Region growing: labels, probabilities, cues, images -> grown cues. ``param_str`` holds th1 (θ_b) and th2 (θ_f).

    Of ours is ``rule``, ``paper`` for thresholds that are tested independently.
    """

    counts = 4

    def setup(self) -> None:
        same_shape(self, 1, 2)
        labels_of(self, 0, 1)
        settings = self.settings()
        for name in settings:
            if name not in ("th1", "th2", "rule"):
                self.fail("python_param.param_str", f"{name!r} is not a setting of this layer")
        self.theta_b, self.theta_f = (self._threshold(settings, name) for name in ("th1", "th2"))
        self.rule = settings.get("rule", "released")
        if self.rule not in RULES:
            self.fail("python_param.param_str", f"rule {self.rule!r}, expected one of {', '.join(RULES)}")

    def _threshold(self, settings: dict[str, Any], name: str) -> float:
        value = settings.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            self.fail("python_param.param_str", f"{name}: expected a number, found {value!r}")
        return float(value)

    def infer(self, *bottoms: torch.Tensor) -> torch.Tensor:
        return meta(bottoms[2].shape)

    def forward(
        self, labels: torch.Tensor, probs: torch.Tensor, cues: torch.Tensor, images: torch.Tensor
    ) -> torch.Tensor:
        refined = getattr(probs, "refined", None)
        if refined is None:
            refined = refine(probs, images, variant="dsrg")
        return grow_seeds(
            labels.flatten(1), refined, cues, theta_f=self.theta_f, theta_b=self.theta_b, rule=self.rule
        )


def same_shape(layer: Layer, first: int, second: int) -> None:
    """Refuse bottoms of different shapes."""
    if layer.shapes[first] != layer.shapes[second]:
        found = " and ".join(f"{layer.bottoms[i].name!r} of shape {layer.shapes[i]}" for i in (first, second))
        layer.fail("bottom", f"{found}, expected one shape")


def labels_of(layer: Layer, labels: int, probs: int) -> None:
    """Refuse labels that are not one number per image and class."""
    expected = layer.shapes[probs][:2]
    if torch.Size(layer.shapes[labels]).numel() != torch.Size(expected).numel():
        found = f"{layer.bottoms[labels].name!r} of shape {layer.shapes[labels]}"
        layer.fail("bottom", f"{found}, expected {expected[0]} x {expected[1]} labels")


class _Loss(Layer):
    """A loss of two bottoms of one shape, a scalar."""

    counts = 2
    is_loss = True

    def setup(self) -> None:
        same_shape(self, 0, 1)

    def infer(self, *bottoms: torch.Tensor) -> torch.Tensor:
        return meta(())

    def items(self, *bottoms: torch.Tensor) -> int:
        return len(bottoms[0])


@register("pylayers.SeedLossLayer")
class SeedLossLayer(_Loss):
    """SEC's seed loss of probabilities and cues."""

    function = seed_loss


@register("pylayers.BalancedSeedLossLayer")
class BalancedSeedLossLayer(_Loss):
    """DSRG's seed loss of probabilities and cues, background and foreground apart."""

    function = balanced_seed_loss


@register("pylayers.ConstrainLossLayer")
class ConstrainLossLayer(_Loss):
    """The constrain loss of probabilities and the CRF layer's logarithm; DSRG's clips their ratio."""

    function = constrain_loss

    def setup(self) -> None:
        super().setup()
        maker = self.bottoms[1].maker
        self.arguments = {"clip": not isinstance(maker, CRFLayer) or maker.variant == "dsrg"}


@register("pylayers.ExpandLossLayer")
class ExpandLossLayer(_Loss):
    """SEC's expand loss of probabilities and labels. Of ours is ``pooling`` in ``param_str``, for the ablation."""

    function = expand_loss

    def setup(self) -> None:
        labels_of(self, 1, 0)
        pooling = self.settings().get("pooling", "weighted_rank")
        if pooling not in ("weighted_rank", "max", "average"):
            reason = f"pooling {pooling!r}, expected weighted_rank, max or average"
            self.fail("python_param.param_str", reason)
        self.arguments = {"pooling": pooling}
