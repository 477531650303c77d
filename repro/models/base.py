"""What every net here has: Caffe's fillers and Caffe's per-parameter multipliers."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn as nn

Filler = Literal["gaussian", "msra"]
GAUSSIAN_STD = 0.01  # weight_filler of the new layers in both releases


class CaffeNet(nn.Module):
    """A net whose sub-modules carry Caffe layer names; ``classifiers`` names its last, score-giving layers."""

    classifiers: tuple[str, ...] = ()

    @staticmethod
    def grid_size(height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the scores for an input of this size (321x321 -> 41x41).

        Every net here halves three times (kernel 3, stride 2, pad 1, rounded up), and each halving gives n // 2 + 1.
        """
        for _ in range(3):
            height, width = height // 2 + 1, width // 2 + 1
        return height, width

    def fill(self, filler: Filler = "gaussian", generator: torch.Generator | None = None) -> None:
        """Fill every parameter as Caffe does for a layer that no weight file holds; biases become 0.

        Args:
            filler: ``gaussian`` is N(0, 0.01), the releases' for new layers. ``msra`` is N(0, sqrt(2 / fan_in))
                for every layer but the classifiers, for nets trained from scratch: at VGG16's depth the signal
                of N(0, 0.01) dies.
            generator: the source of randomness; PyTorch's global one by default.
        """
        for name, module in self.named_modules():
            if not isinstance(module, (nn.Conv2d, nn.Linear)):
                continue
            std = GAUSSIAN_STD
            if filler == "msra" and name not in self.classifiers:
                std = (2.0 / module.weight[0].numel()) ** 0.5
            with torch.no_grad():
                module.weight.normal_(0.0, std, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters in Caffe's order with their multipliers, one group a parameter.

        ``lr_mult``/``decay_mult``: weights 1/1, biases 2/0; classifiers 10/1 and 20/0 (train-s.prototxt).
        """
        groups = []
        for name, parameter in self.named_parameters():
            layer, _, kind = name.rpartition(".")
            lr_mult = (2.0 if kind == "bias" else 1.0) * (10.0 if layer in self.classifiers else 1.0)
            decay_mult = 0.0 if kind == "bias" else 1.0
            groups.append({"params": [parameter], "lr_mult": lr_mult, "decay_mult": decay_mult, "name": name})
        return groups
