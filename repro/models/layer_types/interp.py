"""DeepLab's Interp: resizing with aligned corners."""

from __future__ import annotations

import torch

from repro.layers.interp import interp, interp_size
from repro.models.registry import Layer, meta, register


@register("Interp")
class Interp(Layer):
    """To a size, or by a factor, after a crop (``interp_layer.cpp``)."""

    field = "interp_param"

    def setup(self) -> None:
        self.arguments = {field.name: value for field, value in self.p.ListFields()}
        if len(self.shapes[0]) != 4:
            self.fail("", f"a bottom of {len(self.shapes[0])} axes, expected 4")
        try:
            interp_size(*self.shapes[0][2:], **self.arguments)
        except ValueError as error:
            self.fail("", str(error))

    def infer(self, *bottoms: torch.Tensor) -> torch.Tensor:
        shape = bottoms[0].shape
        return meta((*shape[:2], *interp_size(*shape[2:], **self.arguments)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return interp(x, **self.arguments)
