"""Layers that change each value for itself: ReLU, Dropout, …"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from repro.models.registry import Layer, register


@register("ReLU")
class ReLU(Layer):
    """max(x, 0) + negative_slope · min(x, 0) (``relu_layer.cpp``)."""

    field = "relu_param"
    keeps_shape = True

    def setup(self) -> None:
        self.slope = self.p.negative_slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(x, self.slope) if self.slope else F.relu(x)

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        if self.slope:
            graph.emit("LeakyRelu", bottoms, tops[0], alpha=self.slope)
        else:
            graph.emit("Relu", bottoms, tops[0])


@register("Dropout")
class Dropout(Layer):
    """Element-wise dropout; in training what stays is divided by the share that stays, so that tests change nothing."""

    field = "dropout_param"
    keeps_shape = True

    def setup(self) -> None:
        self.ratio = self.p.dropout_ratio
        if not 0 <= self.ratio < 1:
            self.fail("dropout_ratio", f"{self.ratio:g}, expected 0 to less than 1")
        if not self.p.scale_train:
            self.fail("scale_train", "false is not supported")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.ratio, self.training)

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        # a test-time identity; as a node it keeps the layer's and the blob's names
        graph.emit("Identity", bottoms, tops[0])
