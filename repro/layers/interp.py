"""DeepLab's ``Interp`` layer (``interp_layer.cpp``): corner-aligned bilinear resizing with padding and cropping.

With H' = H + pad_beg + pad_end (pads are zero or negative, that is, crops) the output size is

    shrink_factor s            (H' - 1) // s + 1
    zoom_factor z              H' + (H' - 1)·(z - 1)
    both                       zoom applied to the shrunk size
    height, width              as given

and output row i samples the cropped input at i·(H' - 1)/(H_out - 1). Stage 2 shrinks its labels by 8 with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from repro.layers.sizes import interpolated_size


def interp(
    x: torch.Tensor,
    *,
    zoom_factor: int = 1,
    shrink_factor: int = 1,
    height: int | None = None,
    width: int | None = None,
    pad_beg: int = 0,
    pad_end: int = 0,
) -> torch.Tensor:
    """Resize ``x`` (N, C, H, W), float, as Caffe's Interp layer with the same ``interp_param`` does.

    Differentiable. ``height`` and ``width`` go together and exclude the factors.

    Raises:
        ValueError: a factor below 1, a positive pad, only one of height and width, or an empty result.
    """
    if zoom_factor < 1 or shrink_factor < 1:
        raise ValueError(
            f"zoom_factor and shrink_factor must be at least 1, not {zoom_factor}, {shrink_factor}"
        )
    if pad_beg > 0 or pad_end > 0:
        raise ValueError(f"Interp only supports non-positive pads (cropping), not {pad_beg}, {pad_end}")
    if (height is None) != (width is None):
        raise ValueError("height and width must be given together")
    if height is not None and (zoom_factor, shrink_factor) != (1, 1):
        raise ValueError("give either height and width or the factors, not both")

    cropped_height, cropped_width = (size + pad_beg + pad_end for size in x.shape[-2:])
    if cropped_height < 1 or cropped_width < 1:
        raise ValueError(f"pads {pad_beg}, {pad_end} leave nothing of a {x.shape[-2]}x{x.shape[-1]} input")
    x = x[..., -pad_beg : -pad_beg + cropped_height, -pad_beg : -pad_beg + cropped_width]
    if height is None or width is None:
        height = interpolated_size(cropped_height, zoom_factor, shrink_factor)
        width = interpolated_size(cropped_width, zoom_factor, shrink_factor)
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)
