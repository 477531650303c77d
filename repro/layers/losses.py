"""The losses of SEC and DSRG (``pylayers.py`` of both releases), on probabilities (N, C, H, W).

Each function is one loss layer; the gradient is autograd's and equals the release's (theano's) on the
recordings. Cues are 0/1 maps (N, C, H, W), index 0 = background; log_result is the CRF layer's output.
"""

from __future__ import annotations

from typing import Literal

import torch

from repro.layers.softmax import MIN_PROB

Pooling = Literal["weighted_rank", "max", "average"]
# the decay d of rank pooling for foreground classes and background: SEC's own (ECCV 2016, sec. 4.1), and the two
# ends of its ablation, where d = 0 leaves the largest cell alone and d = 1 weighs all alike (sec. 3.3)
DECAYS: dict[Pooling, tuple[float, float]] = {
    "weighted_rank": (0.996, 0.999),
    "max": (0.0, 0.0),
    "average": (1.0, 1.0),
}
RATIO_MIN, RATIO_MAX = 0.05, 20.0  # DSRG's clip of q/p


def seed_loss(probs: torch.Tensor, cues: torch.Tensor) -> torch.Tensor:
    """SEC's ``SeedLossLayer``: -mean_n [ Σ cues·log p / Σ cues ]. Scalar; NaN if an image has no cue at all,
    as in the original.

    >>> probs = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    >>> cues = torch.tensor([[[[1, 0]], [[0, 1]]]])
    >>> round(seed_loss(probs, cues).item(), 4)  # -(log 0.75 + log 0.25) / 2
    0.837
    """
    picked = (cues * torch.log(probs)).sum(dim=(1, 2, 3))
    return -(picked / cues.sum(dim=(1, 2, 3))).mean()


def balanced_seed_loss(probs: torch.Tensor, cues: torch.Tensor) -> torch.Tensor:
    """DSRG's ``BalancedSeedLossLayer``: background and foreground averaged apart, then added.

    Σ over the part in {background, foreground} of -mean_n [ Σ cues·log p / max(Σ cues, MIN_PROB) ]. Scalar.

    >>> probs = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
    >>> cues = torch.tensor([[[[1, 1, 0]], [[0, 0, 1]]]])
    >>> round(balanced_seed_loss(probs, cues).item(), 4)  # -log 0.75 - log 0.25
    1.674
    """
    picked = (cues * torch.log(probs)).sum(dim=(2, 3))
    count = cues.sum(dim=(2, 3))
    background = picked[:, 0] / count[:, 0].clamp_min(MIN_PROB)
    foreground = picked[:, 1:].sum(dim=1) / count[:, 1:].sum(dim=1).clamp_min(MIN_PROB)
    return -background.mean() - foreground.mean()


def constrain_loss(probs: torch.Tensor, log_result: torch.Tensor, *, clip: bool) -> torch.Tensor:
    """``ConstrainLossLayer``: mean over N, H, W of Σ_c q·log(q/p) with q = exp(log_result). Scalar.

    Args:
        probs: (N, C, H, W), positive.
        log_result: (N, C, H, W), log of the refined probabilities; the gradient flows into it too.
        clip: DSRG clips q/p to [0.05, 20] before the logarithm (no gradient where clipped); SEC does not.

    >>> probs = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)
    >>> constrain_loss(probs, probs.log(), clip=True).item()
    0.0
    """
    q = torch.exp(log_result)
    ratio = q / probs
    if clip:
        ratio = ratio.clamp(RATIO_MIN, RATIO_MAX)
    return (q * torch.log(ratio)).sum(dim=1).mean()


def expand_loss(
    probs: torch.Tensor, labels: torch.Tensor, *, pooling: Pooling = "weighted_rank"
) -> torch.Tensor:
    """SEC's ``ExpandLossLayer`` with global weighted rank pooling G_c.

    G_c = Σ_i d^(n-1-i)·p_(i) / Σ_i d^(n-1-i), p_(i) ascending over the n = H·W cells.
    Loss: -mean_n [ average over present foreground classes of log G_c
                    + average over absent foreground classes of log(1 - max p_c) + log G_background ].

    Args:
        probs: (N, C, H, W).
        labels: (N, C) in {0, 1}; entry 0 (background) is not read. An image with no foreground class, or with
            all of them, makes the loss NaN, as in the original: one of the averages is over nothing.
        pooling: of present classes and background; ``max`` and ``average`` are those of the paper's ablation. Absent
            classes are always judged by their maximum.

    >>> probs = torch.tensor([0.5, 0.25, 0.25]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    >>> round(expand_loss(probs, torch.tensor([[1, 1, 0]])).item(), 4)  # -log 0.25 - log 0.75 - log 0.5
    2.3671
    """
    foreground_decay, background_decay = DECAYS[pooling]
    cells = probs.flatten(2)
    present = labels.reshape(cells.shape[:2])[:, 1:].to(cells.dtype)
    absent = 1 - present
    log_foreground = torch.log(_rank_pooling(cells[:, 1:], foreground_decay))
    log_absence = torch.log(1 - cells[:, 1:].amax(dim=2))
    log_background = torch.log(_rank_pooling(cells[:, 0], background_decay))
    loss_present = -((present * log_foreground).sum(dim=1) / present.sum(dim=1)).mean()
    loss_absent = -((absent * log_absence).sum(dim=1) / absent.sum(dim=1)).mean()
    return loss_present + loss_absent - log_background.mean()


def _rank_pooling(cells: torch.Tensor, decay: float) -> torch.Tensor:
    ascending = cells.sort(dim=-1).values
    exponents = torch.arange(cells.shape[-1] - 1, -1, -1, device=cells.device, dtype=torch.float64)
    weights = decay**exponents
    return (ascending * (weights / weights.sum()).to(cells.dtype)).sum(dim=-1)
