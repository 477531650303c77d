"""DSRG's seeded region growing (``DSRGLayer``, layer ``update-seed`` of ``train-s.prototxt``).

Per image, with ``present`` the classes of its label, and p, c the maximum and argmax of the refined
probabilities over ``present``:

1. A label map: 0 unlabelled; a seed cell takes its seed class (the highest of several); then every cell with
   p > theta_f takes c if c is foreground, or if c is background and p > theta_b. This may overwrite a seed cell.
2. For each present class k, every 8-connected component of the cells mapped to k that holds a cell which is also
   a seed of k is accepted: its cells become seeds of k, but for cells that are seeds of exactly one class other
   than k. The original seeds stay.

As each cell is mapped to one class, the components of all classes lie side by side in one map, and step 2 is a flood:
start from the cells that are seeds of the class they are mapped to, and spread to neighbours mapped to the same.
On the CPU that is ``region_growing_numba.py``, on CUDA ``region_growing_triton.py``.

The released code nests the background test inside the foreground one, so background needs p > theta_f as well
(``rule="released"``); the paper's equation 2 tests the two thresholds independently (``rule="paper"``).
The layer has no gradient.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from repro.errors import chosen
from repro.layers.triton_support import has_triton

RULES = ("released", "paper")
UNLABELLED = -1
STEPS_UNSEEN = 16  # of the flood in PyTorch's operations, between two looks at whether it has ended


@torch.no_grad()
def grow_seeds(
    labels: torch.Tensor,
    refined: torch.Tensor,
    cues: torch.Tensor,
    *,
    theta_f: float = 0.85,
    theta_b: float = 0.99,
    rule: str = "released",
) -> torch.Tensor:
    """Grow the seeds of each image into the confident regions around them.

    Args:
        labels: (N, C), 1 for each class present in the image (index 0, background, included in DSRG).
        refined: (N, C, H, W), the CRF-refined probabilities (not their logarithm).
        cues: (N, C, H, W) in {0, 1}, the original seeds.
        theta_f: foreground threshold, ``th2`` of the prototxt.
        theta_b: background threshold, ``th1`` of the prototxt.
        rule: ``released`` or ``paper``, see above.

    Returns:
        Grown cues (N, C, H, W), of the dtype and on the device of ``cues``; no gradient.

    Raises:
        ValueError: another rule, or a threshold that is neither a probability nor infinite (never reached).

    >>> refined = torch.tensor([0.1, 0.9]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    >>> cues = torch.zeros(1, 2, 1, 4)
    >>> cues[0, 1, 0, 0] = 1  # a seed of class 1 at the end of a confident row
    >>> grow_seeds(torch.tensor([[1, 1]]), refined, cues)[0, 1].tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """
    chosen("growing rule", rule, RULES)
    for name, threshold in (("theta_f", theta_f), ("theta_b", theta_b)):
        if not (0 <= threshold <= 1 or threshold == math.inf):
            raise ValueError(f"{name} {threshold}: expected a probability of at most 1, or infinity")
    count, classes = cues.shape[:2]
    present = labels.reshape(count, classes) > 0.5
    seeds = cues > 0.5
    top, best = refined.masked_fill(~present[:, :, None, None], -torch.inf).max(dim=1)
    confident = (top > theta_f) & (best > 0)
    background = (top > theta_b) & (best == 0)
    confident |= background & (top > theta_f) if rule == "released" else background

    class_ids = torch.arange(classes, device=cues.device)[:, None, None]
    seed_class = torch.where(seeds, class_ids, UNLABELLED).amax(dim=1)
    mapped = torch.where(confident, best, seed_class)

    own_class = mapped.clamp_min(0).unsqueeze(1)
    own_seed = seeds.gather(1, own_class)[:, 0] & (mapped >= 0)
    start = own_seed & present.gather(1, own_class.flatten(1)).view_as(mapped)
    reached = flood(mapped, start)
    grows = reached & (own_seed | (seeds.sum(dim=1) != 1))
    grown = seeds.scatter(1, own_class, (grows | own_seed).unsqueeze(1))
    return grown.to(cues.dtype)


def flood(mapped: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """The cells of the 8-connected components of equal class that hold a cell of ``start``.

    Args:
        mapped: (N, H, W) int64. start: (N, H, W) bool.

    Returns:
        (N, H, W) bool, on the same device.
    """
    if mapped.device.type == "cpu":
        # Numba takes a second to import
        from repro.layers.region_growing_numba import flood as flood_on_cpu

        reached = start.contiguous().clone()
        flood_on_cpu(mapped.contiguous().numpy(), reached.numpy())
        return reached
    if has_triton(mapped.device.type):
        from repro.layers import region_growing_triton

        if mapped[0].numel() <= region_growing_triton.LARGEST:
            return region_growing_triton.flood(mapped, start)
    return flood_by_steps(mapped, start)


def flood_by_steps(mapped: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """``flood`` in PyTorch's operations, for other devices. It waits for the device every ``STEPS_UNSEEN`` steps."""
    height, width = mapped.shape[1:]
    shifts = [(row, column) for row in range(3) for column in range(3) if (row, column) != (1, 1)]
    around = F.pad(mapped, (1, 1, 1, 1), value=UNLABELLED)
    same = [around[:, row : row + height, column : column + width] == mapped for row, column in shifts]
    reached = start
    while True:
        before = reached
        for _ in range(STEPS_UNSEEN):
            padded = F.pad(reached, (1, 1, 1, 1))
            for equal, (row, column) in zip(same, shifts, strict=True):
                reached = reached | (equal & padded[:, row : row + height, column : column + width])
        if torch.equal(reached, before):
            return reached
