"""The fully connected CRF of both releases: the engine, the refinement, and the CRF layer (``CRFLayer``).

The engine is mean-field inference on a dense CRF (Krähenbühl & Koltun, NIPS 2011) with a Potts model and two
Gaussian kernels, each normalised symmetrically and filtered on the permutohedral lattice:

    spatial     weight 3,  sd 3/s  pixels
    bilateral   weight 10, sd 80/s pixels, sd 13 in each colour

``s`` (``scale``) is 12 where the CRF runs on the 41x41 grid and 1 on full-size images. Ten iterations.
The log-potentials ("unary", energy = -unary) are the oddity of the releases:

    DSRG   the softmax probabilities themselves, not their logarithm, raised to at least ``MIN_PROB`` in place
    SEC    the raw scores fc8-SEC
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from repro.constants import MEAN_BGR
from repro.layers.crf_params import CRFParams
from repro.layers.mean_field_engine import mean_field_lattice
from repro.layers.resize import zoom_to
from repro.layers.softmax import MIN_PROB, RaiseToFloor

Variant = Literal["dsrg", "sec"]
TRAINING_SCALE = 12  # `scale_factor=12.0` in both CRFLayers: 321 / 41 is 8, but 12 is what they pass


@torch.no_grad()
def mean_field(
    images_u8: torch.Tensor,
    unary: torch.Tensor,
    params: CRFParams,
    *,
    engine: Literal["lattice", "pydensecrf"] = "lattice",
) -> torch.Tensor:
    """Mean-field marginals of the dense CRF.

    Args:
        images_u8: (N, H, W, 3) uint8, any colour order.
        unary: (N, C, H, W) float, log-potentials (minus the energies); they need not be normalised.
        params: see :class:`CRFParams`.
        engine: our own (:mod:`repro.layers.mean_field_engine`), on the device of ``unary``; or ``pydensecrf``, the
            library that it is held to, on the CPU (package pydensecrf2, the extra of that name).

    Returns:
        Marginals (N, C, H, W) float32 on the device of ``unary``, summing to 1 over C; no gradient.

    Raises:
        ValueError: shapes or dtype that do not fit.
        ImportError: ``pydensecrf`` is not installed.

    >>> images = torch.zeros(1, 4, 6, 3, dtype=torch.uint8)
    >>> unary = torch.zeros(1, 2, 4, 6)
    >>> unary[:, 1, 1, 1] = 3  # one pixel for class 1 in an even picture: its neighbours follow
    >>> mean_field(images, unary, CRFParams(iterations=2)).argmax(dim=1).unique()
    tensor([1])
    """
    count, _, height, width = unary.shape
    if images_u8.dtype != torch.uint8 or images_u8.shape != (count, height, width, 3):
        raise ValueError(
            f"mean_field: images must be uint8 {(count, height, width, 3)} for a unary of shape "
            f"{tuple(unary.shape)}, got {images_u8.dtype} {tuple(images_u8.shape)}"
        )
    run = mean_field_lattice if engine == "lattice" else _mean_field_pydensecrf
    return run(images_u8, unary, params)


def _mean_field_pydensecrf(images_u8: torch.Tensor, unary: torch.Tensor, params: CRFParams) -> torch.Tensor:
    from pydensecrf import densecrf

    count, classes, height, width = unary.shape
    images = np.ascontiguousarray(images_u8.cpu().numpy())
    energies = np.ascontiguousarray(-unary.float().cpu().numpy().reshape(count, classes, -1))
    kernel = {"kernel": densecrf.DIAG_KERNEL, "normalization": densecrf.NORMALIZE_SYMMETRIC}
    marginals = np.empty((count, classes, height, width), dtype=np.float32)
    for image, energy, out in zip(images, energies, marginals, strict=True):
        crf = densecrf.DenseCRF2D(width, height, classes)
        crf.setUnaryEnergy(energy)
        crf.addPairwiseGaussian(sxy=params.spatial_xy / params.scale, compat=params.spatial_weight, **kernel)
        crf.addPairwiseBilateral(
            sxy=params.bilateral_xy / params.scale,
            srgb=params.bilateral_rgb,
            rgbim=image,
            compat=params.bilateral_weight,
            **kernel,
        )
        out[:] = np.asarray(crf.inference(params.iterations)).reshape(classes, height, width)
    return torch.from_numpy(marginals).to(unary.device)


def images_for_crf(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The 8-bit picture that the CRF layer makes of its image blob.

    Args:
        images: mean-subtracted BGR blob (N, 3, h, w), float.

    Returns:
        (N, height, width, 3) uint8 BGR: zoomed (order 1), mean added back, rounded half to even.
    """
    zoomed = zoom_to(images.detach(), height, width)
    # plane by plane: a tensor of the three means would have to be copied to the device, which waits for it
    planes = [plane + mean for plane, mean in zip(zoomed.unbind(1), MEAN_BGR, strict=True)]
    # pictures stay within 0–255; the clamp is for blobs that never were one, whose cast would differ by device
    return torch.stack(planes, dim=1).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _check(variant: str) -> None:
    if variant not in ("dsrg", "sec"):
        raise ValueError(f"CRF variant {variant!r}: expected 'dsrg' or 'sec'")


@torch.no_grad()
def refine(x: torch.Tensor, images: torch.Tensor, *, variant: Variant) -> torch.Tensor:
    """CRF-refined probabilities, as region growing reads them.

    Args:
        x: (N, C, H, W); probabilities for ``dsrg`` (raised to ``MIN_PROB`` first, ``x`` itself is left alone),
            raw scores for ``sec``.
        images: the net's input blob (N, 3, h, w), mean-subtracted BGR.
        variant: which release.

    Returns:
        (N, C, H, W) in ``x``'s dtype, marginals raised to at least ``MIN_PROB`` and divided by their sum; no gradient.

    >>> probs = torch.tensor([0.6, 0.4]).view(1, 2, 1, 1).expand(1, 2, 5, 5)
    >>> refined = refine(probs, torch.zeros(1, 3, 33, 33), variant="dsrg")
    >>> refined.shape, bool((refined[:, 0] > 0.6).all())  # alike pixels agree, and more firmly
    (torch.Size([1, 2, 5, 5]), True)
    """
    _check(variant)
    unary = x.clamp_min(MIN_PROB) if variant == "dsrg" else x
    pictures = images_for_crf(images, *x.shape[-2:])
    marginals = mean_field(pictures, unary, CRFParams(scale=TRAINING_SCALE)).to(x.dtype).clamp_min(MIN_PROB)
    return marginals / marginals.sum(dim=1, keepdim=True)


class CRFLog(torch.autograd.Function):
    """``log(refined)`` with the backward pass that each release wrote for its CRF layer.

    DSRG passes (1 - refined)·top_diff to its input, SEC nothing.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, refined: torch.Tensor, variant: Variant) -> torch.Tensor:
        ctx.variant = variant
        ctx.save_for_backward(refined)
        return torch.log(refined)

    @staticmethod
    def backward(ctx: Any, top_diff: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        (refined,) = ctx.saved_tensors
        return ((1 - refined) * top_diff if ctx.variant == "dsrg" else None), None, None


def crf_log(
    x: torch.Tensor, images: torch.Tensor, *, variant: Variant, refined: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The CRF layer: logarithm of the refined probabilities, and its input as later layers see it.

    Args:
        x, images, variant: as in :func:`refine`.
        refined: the result of :func:`refine` for the same arguments, where the caller has it already.

    Returns:
        ``log_result`` (N, C, H, W), differentiable with respect to ``x`` as the original is, and ``x_raised``:
        for ``dsrg`` the probabilities raised to ``MIN_PROB`` (their gradient passes unchanged), for ``sec`` ``x``.

    >>> probs = torch.tensor([0.6, 0.4]).view(1, 2, 1, 1).repeat(1, 1, 5, 5).requires_grad_()
    >>> log_result, raised = crf_log(probs, torch.zeros(1, 3, 33, 33), variant="dsrg")
    >>> log_result.sum().backward()
    >>> torch.equal(probs.grad, 1 - log_result.detach().exp())
    True
    """
    _check(variant)
    x_raised = RaiseToFloor.apply(x) if variant == "dsrg" else x
    if refined is None:
        refined = refine(x, images, variant=variant)
    return CRFLog.apply(x_raised, refined, variant), x_raised
