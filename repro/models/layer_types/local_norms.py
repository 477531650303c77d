"""LRN, MVN and SSD's Normalize: a blob divided by what it holds itself."""

from __future__ import annotations

from typing import Any

import torch

from repro.layers.norms import lrn_across, lrn_within, mvn, normalize
from repro.models.registry import Layer, register
from weights_conversion.caffe_pb2 import FillerParameter, LRNParameter


@register("LRN")
class LRN(Layer):
    """Response normalisation across channels or within them."""

    field = "lrn_param"
    keeps_shape = True

    def setup(self) -> None:
        p = self.p
        self.size, self.alpha, self.beta, self.k = p.local_size, p.alpha, p.beta, p.k
        self.across = p.norm_region == LRNParameter.ACROSS_CHANNELS
        if self.size % 2 == 0:
            self.fail("local_size", f"{self.size}, expected an odd number")
        if len(self.shapes[0]) != 4:
            self.fail("", f"a bottom of {len(self.shapes[0])} axes, expected 4")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.across:
            return lrn_across(x, size=self.size, alpha=self.alpha, beta=self.beta, k=self.k)
        return lrn_within(x, size=self.size, alpha=self.alpha, beta=self.beta)

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        if not self.across:
            super().onnx(graph, bottoms, tops)
        graph.emit("LRN", bottoms, tops[0], size=self.size, alpha=self.alpha, beta=self.beta, bias=self.k)


@register("MVN")
class MVN(Layer):
    """Mean 0 and, unless ``normalize_variance: false``, variance 1, per channel or over all of them."""

    field = "mvn_param"
    keeps_shape = True

    def setup(self) -> None:
        p = self.p
        self.variance, self.across, self.eps = p.normalize_variance, p.across_channels, p.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return mvn(x, normalize_variance=self.variance, across_channels=self.across, eps=self.eps)


@register("Normalize")
class Normalize(Layer):
    """SSD's scaled L2 norm, over the channels of each cell or over a whole image."""

    field = "norm_param"
    keeps_shape = True

    def setup(self) -> None:
        p = self.p
        self.across, self.eps = p.across_spatial, p.eps
        filler = p.scale_filler if p.HasField("scale_filler") else FillerParameter(value=1.0)
        self.blob("weight", () if p.channel_shared else self.shapes[0][1:2], filler)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return normalize(x, self.weight, across_spatial=self.across, eps=self.eps)
