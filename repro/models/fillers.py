"""Caffe's fillers (``filler.hpp``), and the ways to fill a net that learns from nothing.

    constant, gaussian (sparse), uniform, positive_unitball, xavier, msra (FAN_IN, FAN_OUT, AVERAGE), bilinear

Distributions are Caffe's, not its draws.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

from weights_conversion.caffe_pb2 import FillerParameter

if TYPE_CHECKING:
    from repro.models.net import CaffeNet

Filler = Literal["gaussian", "msra", "lsuv", "looks_linear"]
Scheme = Literal["file"] | Filler
GAUSSIAN_STD = 0.01  # weight_filler of the new layers in both releases
_LOOKS_LINEAR_GAIN, _LOOKS_LINEAR_NOISE = 0.75, 0.5
TYPES = ("constant", "gaussian", "uniform", "positive_unitball", "xavier", "msra", "bilinear")


@torch.no_grad()
def fill_(blob: torch.Tensor, filler: FillerParameter, generator: torch.Generator | None = None) -> None:
    """Fill a blob in place as its filler says.

    Raises:
        ValueError: an unknown type, or one that the blob's shape does not suit.
    """
    if filler.sparse != -1 and filler.type in TYPES and (filler.type != "gaussian" or filler.sparse < -1):
        raise ValueError(
            f"sparse {filler.sparse}, expected none" + " or 0 or more" * (filler.type == "gaussian")
        )
    if filler.type == "constant":
        blob.fill_(filler.value)
    elif filler.type == "gaussian":
        _normal_(blob, filler.mean, filler.std, generator)
        if filler.sparse >= 0:
            # each input counts for `sparse` outputs on average
            keep = min(1.0, filler.sparse / blob.shape[0])
            blob.mul_(torch.empty_like(blob).bernoulli_(keep, generator=generator))
    elif filler.type == "uniform":
        blob.uniform_(filler.min, filler.max, generator=generator)
    elif filler.type == "positive_unitball":
        blob.uniform_(0, 1, generator=generator)
        rows = blob.view(blob.shape[0], -1) if blob.ndim else blob.view(1, 1)
        rows.div_(rows.sum(dim=1, keepdim=True))
    elif filler.type in ("xavier", "msra"):
        fan = _fan(blob, filler)
        if filler.type == "xavier":
            bound = math.sqrt(3.0 / fan)
            blob.uniform_(-bound, bound, generator=generator)
        else:
            _normal_(blob, 0.0, math.sqrt(2.0 / fan), generator)
    elif filler.type == "bilinear":
        if blob.ndim != 4 or blob.shape[2] != blob.shape[3]:
            raise ValueError(f"bilinear fills blobs of 4 axes with square kernels, not {tuple(blob.shape)}")
        side = blob.shape[3]
        factor = math.ceil(side / 2.0)
        centre = (2 * factor - 1 - factor % 2) / (2.0 * factor)
        row = 1 - (torch.arange(side, dtype=torch.float32) / factor - centre).abs()
        blob.copy_((row[:, None] * row[None, :]).expand_as(blob))
    else:
        raise ValueError(f"unknown filler {filler.type!r}, expected one of {', '.join(TYPES)}")


def _fan(blob: torch.Tensor, filler: FillerParameter) -> float:
    """``fan_in`` is the count behind the first axis, ``fan_out`` that behind the second; Caffe's for every layer."""
    fan_in = blob.numel() / (blob.shape[0] if blob.ndim else 1)
    fan_out = blob.numel() / blob.shape[1] if blob.ndim > 1 else blob.numel()
    norms = {FillerParameter.FAN_IN: fan_in, FillerParameter.FAN_OUT: fan_out}
    return norms.get(filler.variance_norm, (fan_in + fan_out) / 2)


@torch.no_grad()
def fill_weight_(
    weight: torch.Tensor,
    scheme: Scheme,
    generator: torch.Generator | None,
    *,
    is_classifier: bool,
    reads_image: bool,
) -> None:
    """Fill the weight of a convolution or inner product for a net that learns from nothing.

    ``gaussian`` is N(0, 0.01), the releases' for new layers: at VGG16's depth the signal dies in it, so it takes
    pre-trained weights below. ``msra`` is Caffe's N(0, sqrt(2 / fan_in)). ``looks_linear`` mirrors each filter, so that
    the net starts out as a linear map and deep gradients carry (Balduzzi et al., ICML 2017, "The shattered gradients
    problem"). ``lsuv`` draws as ``msra``; training then scales the layers on its first batch
    (``repro/training/measured_filler.py``). Classifiers are N(0, 0.01) always, N(0, 0.001) under
    ``looks_linear``. Inner products, which read all cells at once, are filled as under ``msra`` there.
    """
    if is_classifier:
        std = GAUSSIAN_STD / 10 if scheme == "looks_linear" else GAUSSIAN_STD
    elif scheme == "looks_linear" and weight.ndim == 4:
        _looks_linear_(weight, generator, reads_image=reads_image)
        return
    else:
        std = GAUSSIAN_STD if scheme == "gaussian" else (2.0 / weight[0].numel()) ** 0.5
    _normal_(weight, 0.0, std, generator)


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


def _normal_(blob: torch.Tensor, mean: float, std: float, generator: torch.Generator | None) -> None:
    """One without values, of a net that is only measured, gets none: PyTorch would import its compiler for that."""
    if not blob.is_meta:
        blob.normal_(mean, std, generator=generator)


def fill_net(net: CaffeNet, scheme: Scheme, generator: torch.Generator | None) -> None:
    """:meth:`repro.models.CaffeNet.fill`."""
    from_file = scheme == "file"
    classifiers = () if from_file else net.classifiers
    blocks = [
        layer.name for layer in net.layers if layer.type == "Scale" and layer.name.endswith("_branch2c")
    ]
    filled: set[int] = set()
    for layer in net.layers:
        for kind, blob in net[layer.name].caffe_blobs().items():
            if id(blob) in filled:
                continue
            filled.add(id(blob))
            filler = net[layer.name].fillers[kind]
            if not from_file and kind == "weight" and blob.ndim > 1:
                is_classifier, reads_image = (
                    layer.name in classifiers,
                    bool({*net.inputs} & {*layer.bottoms}),
                )
                fill_weight_(blob, scheme, generator, is_classifier=is_classifier, reads_image=reads_image)
            else:
                try:
                    fill_(blob, filler, generator)
                except ValueError as error:
                    net[layer.name].fail(f"{kind}_filler", str(error))
            if scheme not in ("file", "gaussian") and kind == "weight" and layer.name in blocks:
                with torch.no_grad():
                    blob.fill_(len(blocks) ** -0.5)
