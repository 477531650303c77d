"""What every net here has: Caffe's fillers and Caffe's per-parameter multipliers."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn as nn

Filler = Literal["gaussian", "msra", "looks_linear"]
GAUSSIAN_STD = 0.01  # weight_filler of the new layers in both releases
_LOOKS_LINEAR_GAIN, _LOOKS_LINEAR_NOISE = 0.75, 0.5


class CaffeNet(nn.Module):
    """A net whose sub-modules carry Caffe layer names; ``classifiers`` names its last, score-giving layers."""

    classifiers: tuple[str, ...] = ()
    scores_blob: str = "fc8-SEC"
    autocast: torch.dtype | None = None  # of convolutions under `precision=fast`; see repro/precision.py

    def forward_blobs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every blob by its Caffe name, as Caffe leaves it: after the in-place ReLU and dropout.

        Args:
            images: mean-subtracted BGR (N, 3, H, W).
        """
        raise NotImplementedError

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores, the blob ``scores_blob``, of mean-subtracted BGR images (N, 3, H, W), in their dtype."""
        if self.autocast is None:
            return self.forward_blobs(images)[self.scores_blob]
        with torch.autocast(images.device.type, self.autocast):
            return self.forward_blobs(images)[self.scores_blob].to(images.dtype)

    @staticmethod
    def grid_size(height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the scores for an input of this size (321x321 -> 41x41).

        Every net here halves three times (kernel 3, stride 2, pad 1, rounded up), and each halving gives n // 2 + 1.
        """
        for _ in range(3):
            height, width = height // 2 + 1, width // 2 + 1
        return height, width

    def fill(self, filler: Filler = "gaussian", generator: torch.Generator | None = None) -> None:
        """Fill every parameter as for a layer that no weight file holds; biases become 0.

        Args:
            filler: ``gaussian`` is N(0, 0.01), the releases' for new layers: at VGG16's depth the signal dies in
                it, so it takes pre-trained weights below. For nets trained from scratch: ``msra`` is Caffe's
                N(0, sqrt(2 / fan_in)); ``looks_linear`` mirrors each filter, so that the net starts out as a
                linear map and deep gradients carry (Balduzzi et al., ICML 2017, "The shattered gradients
                problem"). The classifiers are N(0, 0.01) always, N(0, 0.001) under ``looks_linear``.
            generator: the source of randomness; PyTorch's global one by default.
        """
        for name, module in self.named_modules():
            if not isinstance(module, (nn.Conv2d, nn.Linear)):
                continue
            weight = module.weight
            with torch.no_grad():
                if name in self.classifiers:
                    std = GAUSSIAN_STD / 10 if filler == "looks_linear" else GAUSSIAN_STD
                    weight.normal_(0.0, std, generator=generator)
                elif filler == "looks_linear":
                    _looks_linear_(weight, generator, reads_image=name == "conv1_1")
                else:
                    std = GAUSSIAN_STD if filler == "gaussian" else (2.0 / weight[0].numel()) ** 0.5
                    weight.normal_(0.0, std, generator=generator)
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


def _looks_linear_(weight: torch.Tensor, generator: torch.Generator | None, *, reads_image: bool) -> None:
    """Filters in pairs w, -w that read their input in pairs likewise, around an orthogonal map at the centre tap.

    ReLU(x) - ReLU(-x) = x, so that a net of such layers is linear at first. Noise of half the msra size on all
    taps lets filters of one orientation differ; the gain keeps 8-bit images from growing on their way up.
    """
    outputs, inputs, height, width = weight.shape
    half, sources = (outputs + 1) // 2, inputs if reads_image else (inputs + 1) // 2
    side = max(half, sources)
    square = torch.randn(side, side, generator=generator, dtype=weight.dtype, device="cpu")
    filters = torch.randn(half, sources, height, width, generator=generator, dtype=weight.dtype, device="cpu")
    filters *= _LOOKS_LINEAR_NOISE / (sources * height * width) ** 0.5
    filters[:, :, height // 2, width // 2] += torch.linalg.qr(square)[0][:half, :sources]
    paired = filters if reads_image else torch.cat([filters, -filters], dim=1)[:, :inputs]
    weight.copy_(_LOOKS_LINEAR_GAIN * torch.cat([paired, -paired])[:outputs])
