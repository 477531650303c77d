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

    >>> interp(torch.tensor([[[[0.0, 1.0]]]]), zoom_factor=2).tolist()
    [[[[0.0, 0.5, 1.0]]]]
    """
    size = interp_size(
        *x.shape[-2:],
        zoom_factor=zoom_factor,
        shrink_factor=shrink_factor,
        height=height,
        width=width,
        pad_beg=pad_beg,
        pad_end=pad_end,
    )
    rows, columns = (slice(-pad_beg, length + pad_end) for length in x.shape[-2:])
    return F.interpolate(x[..., rows, columns], size=size, mode="bilinear", align_corners=True)


def interp_size(
    rows: int,
    columns: int,
    *,
    zoom_factor: int = 1,
    shrink_factor: int = 1,
    height: int | None = None,
    width: int | None = None,
    pad_beg: int = 0,
    pad_end: int = 0,
) -> tuple[int, int]:
    """Rows and columns that ``interp`` makes of ``rows`` and ``columns``; raises what it raises.

    >>> interp_size(321, 321, shrink_factor=8), interp_size(41, 41, zoom_factor=8)
    ((41, 41), (321, 321))
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

    cropped = [size + pad_beg + pad_end for size in (rows, columns)]
    if min(cropped) < 1:
        raise ValueError(f"pads {pad_beg}, {pad_end} leave nothing of a {rows}x{columns} input")
    if height is not None and width is not None:
        return height, width
    shrunk = [(size - 1) // shrink_factor + 1 for size in cropped]
    high, wide = (size + (size - 1) * (zoom_factor - 1) for size in shrunk)
    return high, wide
