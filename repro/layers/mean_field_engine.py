"""Mean field on the dense CRF (Krähenbühl & Koltun, NIPS 2011), batched, on the CPU and on CUDA.

    Q_0 = softmax(unary)
    Q_{t+1} = softmax(unary + Σ_m w_m·Λ_m·K_m·Λ_m·Q_t),   Λ_m = diag(1 / sqrt(K_m·1 + 1e-20))

The kernels K_m are filters on the permutohedral lattice (``permutohedral.py``): the spatial one and the bilateral one,
added in this order. The Potts term leaves the class itself out of the sum over the other classes, which shifts all
logits of a pixel alike and drops out in the softmax; what remains is the sum above.

A mean field is a strongly coupled iteration: where a pixel is undecided, a difference in the last bit of a float32
grows by some orders of magnitude in ten iterations (see docs/performance.md). An engine that is to agree with densecrf
to 2e-5 for any input must therefore do the same float32 operations in the same order, and these do:

    numba   the CPU's (``mean_field_cpu.py``)
    triton  CUDA's, where Triton can be imported (``permutohedral_triton.py``)
    torch   any other device's; what Triton's kernels are compared with (``permutohedral_torch.py``)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import torch

from repro.layers import permutohedral_torch
from repro.layers.crf_params import CRFParams
from repro.layers.permutohedral import features
from repro.layers.permutohedral_torch import Geometry, TorchLattice
from repro.layers.triton_support import has_triton

Path = Literal["numba", "torch", "triton"]
LATTICES_KEPT = 8  # sizes; the largest, of a 375x500 image, takes 5 MB on the CPU
CORNERS_AT_ONCE = 2**21  # of pixels' simplices in one lattice on a device: 0.6 kB each with 21 classes


def mean_field_lattice(
    images_u8: torch.Tensor, unary: torch.Tensor, params: CRFParams, *, path: Path | None = None
) -> torch.Tensor:
    """Marginals of a batch.

    Args:
        images_u8: (N, H, W, 3) uint8.
        unary: (N, C, H, W) float, log-potentials.
        params: see :class:`repro.layers.CRFParams`.
        path: which implementation; by default the one for ``unary``'s device.

    Returns:
        (N, C, H, W) float32 on ``unary``'s device.

    Raises:
        ValueError: a standard deviation too small for the lattice's keys.
    """
    unary = unary.detach().float()
    images = images_u8.to(unary.device)
    if unary.numel() == 0:
        return torch.empty_like(unary)
    if path is None:
        path = (
            "numba" if unary.device.type == "cpu" else "triton" if has_triton(unary.device.type) else "torch"
        )
    if path == "numba":
        return on_cpu(images, unary, params)
    pixels = unary.shape[2] * unary.shape[3]
    at_once = max(1, CORNERS_AT_ONCE // (6 * pixels))
    parts = zip(images.split(at_once), unary.split(at_once), strict=True)
    return torch.cat([on_device(*part, params, path) for part in parts])


def on_cpu(images: torch.Tensor, unary: torch.Tensor, params: CRFParams) -> torch.Tensor:
    # Numba takes a second to import, which nothing else in the project needs
    from repro.layers.mean_field_cpu import mean_field_cpu

    height, width = unary.shape[2:]
    marginals = mean_field_cpu(
        images.contiguous().numpy(),
        unary.contiguous().numpy(),
        spatial_lattice_cpu(height, width, params.spatial_xy / params.scale),
        features(height, width, params.bilateral_xy / params.scale, params.bilateral_rgb),
        (params.spatial_weight, params.bilateral_weight),
        params.iterations,
        torch.get_num_threads(),
    )
    return torch.from_numpy(marginals)


def on_device(images: torch.Tensor, unary: torch.Tensor, params: CRFParams, path: Path) -> torch.Tensor:
    operations: Any = permutohedral_torch
    if path == "triton":
        from repro.layers import permutohedral_triton

        operations = permutohedral_triton
    size = (unary.shape[2], unary.shape[3])
    return permutohedral_torch.mean_field_torch(
        images,
        unary,
        spatial_lattice(*size, params.spatial_xy / params.scale, unary.device),
        geometry(*size, params.bilateral_xy / params.scale, params.bilateral_rgb, unary.device),
        (params.spatial_weight, params.bilateral_weight),
        params.iterations,
        operations,
    )


@lru_cache(LATTICES_KEPT)
def spatial_lattice_cpu(height: int, width: int, sd_xy: float) -> Any:
    from repro.layers.permutohedral_numba import spatial_lattice

    return spatial_lattice(features(height, width, sd_xy))


@lru_cache(LATTICES_KEPT)
def spatial_lattice(height: int, width: int, sd_xy: float, device: torch.device) -> TorchLattice:
    # on the CPU, where its vertices can be counted without waiting for the device
    host = torch.device("cpu")
    any_picture = torch.zeros(height * width, 1, 3, dtype=torch.uint8)
    lattice = permutohedral_torch.build(geometry(height, width, sd_xy, None, host), any_picture, trim=True)
    return TorchLattice._make(part.to(device) if isinstance(part, torch.Tensor) else part for part in lattice)


@lru_cache(2 * LATTICES_KEPT)
def geometry(height: int, width: int, sd_xy: float, sd_rgb: float | None, device: torch.device) -> Geometry:
    return permutohedral_torch.geometry(features(height, width, sd_xy, sd_rgb), device)
