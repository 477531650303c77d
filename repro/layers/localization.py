"""From a classifier's blobs to localization cues: which cells of the grid are seeds of which class.

Foreground (SEC, section 3.4; Zhou et al., "class activation maps"): a class's heat map is Σ_k w_k·fc7_CAM_k, w its row
of ``scores``. Its cells above 20 % of the map's maximum are seeds, if the class is among the image's labels.

Background (SEC, after Simonyan et al.): saliency is the gradient of the summed ``fc8`` at ``conv4_1``, absolute,
maximum over channels, 3×3 median (SciPy's default border, which repeats the edge). The lowest tenth are seeds: the
cells strictly below the sorted value number ⌊0.1·H·W⌋, so that ties at the threshold are none.
DSRG takes a saliency map made elsewhere (DRFI), normalised to 0–1, below 0.06.

Merging: a cell that several classes claim goes to the one that covers the fewest cells of the image
(``smaller_wins``, SEC), or background yields to every class and the smaller class wins among those
(``background_first``: third parties' DSRG, whose own generator was not released).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from repro.constants import VOID

CAM_THRESHOLD = 0.2  # of a heat map's maximum
BACKGROUND_SHARE = 0.1  # of the cells
SALIENCY_THRESHOLD = 0.06  # of a normalised map
MergeRule = Literal["smaller_wins", "background_first"]


def activation_maps(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Class activation maps (N, C, H, W) of ``fc7_CAM`` (N, K, H, W) and the weights of ``scores`` (C, K).

    >>> features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # two features of two cells
    >>> activation_maps(features, torch.tensor([[1.0, -1.0]])).tolist()
    [[[[-2.0, -2.0]]]]
    """
    return F.conv2d(features, weight[:, :, None, None])


def foreground_cells(
    maps: torch.Tensor, labels: torch.Tensor, *, threshold: float = CAM_THRESHOLD
) -> torch.Tensor:
    """Cells above ``threshold`` times their map's maximum, of the classes present.

    Args:
        maps: (N, C, H, W).
        labels: (N, C) in {0, 1}.

    Returns:
        (N, C, H, W) bool. A map without a positive value has none.

    >>> maps = torch.tensor([[[[10.0, 3.0, 1.0]], [[5.0, 5.0, 5.0]]]])
    >>> foreground_cells(maps, torch.tensor([[1, 0]])).int().tolist()
    [[[[1, 1, 0]], [[0, 0, 0]]]]
    """
    highest = maps.amax(dim=(2, 3), keepdim=True)
    return (maps > threshold * highest) & (highest > 0) & (labels > 0)[:, :, None, None]


def gradient_saliency(gradient: torch.Tensor) -> torch.Tensor:
    """Saliency (N, H, W) of the gradient at ``conv4_1`` (N, K, H, W): absolute, maximum over channels, 3×3 median.

    >>> gradient_saliency(torch.tensor([[[[-1.0, 5.0, 2.0]]]])).tolist()
    [[[1.0, 2.0, 2.0]]]
    """
    strongest = gradient.abs().amax(dim=1, keepdim=True)
    windows = F.unfold(F.pad(strongest, (1, 1, 1, 1), mode="replicate"), 3)
    return windows.median(dim=1).values.reshape(strongest[:, 0].shape)


def lowest_cells(saliency: torch.Tensor, *, share: float = BACKGROUND_SHARE) -> torch.Tensor:
    """The ``share`` of cells that are least salient, bool (N, H, W), of ``saliency`` (N, H, W).

    >>> lowest_cells(torch.arange(10.0).view(1, 2, 5), share=0.2).int().tolist()
    [[[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]]
    """
    ordered = saliency.flatten(1).sort(dim=1).values
    threshold = ordered[:, int(share * ordered.shape[1])]
    return saliency < threshold[:, None, None]


def merge_cells(background: torch.Tensor, foreground: torch.Tensor, *, rule: MergeRule) -> torch.Tensor:
    """One class per cell.

    Args:
        background: (N, H, W) bool.
        foreground: (N, C−1, H, W) bool, classes 1 to C−1.
        rule: ``smaller_wins`` or ``background_first``. Between classes of equal size the higher wins.

    Returns:
        (N, H, W) uint8: 0 background, 1 to C−1, 255 where there is no cue.

    >>> background = torch.tensor([[[True, True, True, False]]])
    >>> foreground = torch.tensor([[[[False, True, True, False]], [[False, False, True, False]]]])
    >>> merge_cells(background, foreground, rule="smaller_wins").tolist()
    [[[0, 1, 2, 255]]]
    """
    claims = torch.cat([background[:, None], foreground], dim=1)
    classes, cells = claims.shape[1], claims.shape[2] * claims.shape[3]
    size = claims.sum(dim=(2, 3))
    if rule == "background_first":
        size[:, 0] = cells + 1
    # smallest first, of equal ones the highest class
    order = size * classes + torch.arange(classes - 1, -1, -1, device=size.device)
    beyond = (cells + 2) * classes
    cost, winner = torch.where(claims, order[:, :, None, None], beyond).min(dim=1)
    return torch.where(cost < beyond, winner, VOID).to(torch.uint8)
