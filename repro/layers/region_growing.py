"""DSRG's seeded region growing (``DSRGLayer``, layer ``update-seed`` of ``train-s.prototxt``).

Per image, with ``present`` the classes of its label, and p, c the maximum and argmax of the refined
probabilities over ``present``:

1. A label map: 0 unlabelled; a seed cell takes its seed class (the highest of several); then every cell with
   p > theta_f takes c if c is foreground, or if c is background and p > theta_b. This may overwrite a seed cell.
2. For each present class k, every 8-connected component of the cells mapped to k that holds a cell which is also
   a seed of k is accepted: its cells become seeds of k, but for cells that are seeds of exactly one class other
   than k. The original seeds stay.

The released code nests the background test inside the foreground one, so background needs p > theta_f as well
(``rule="released"``); the paper's equation 2 tests the two thresholds independently (``rule="paper"``).
The layer has no gradient.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

RULES = ("released", "paper")
# 8-connected within a plane, no connection between planes: one labelling call serves all images and classes
_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[1] = True


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
    """
    if rule not in RULES:
        raise ValueError(f"growing rule {rule!r}: expected one of {', '.join(RULES)}")
    count, classes = cues.shape[:2]
    present = labels.reshape(count, classes).cpu().numpy() > 0.5
    seeds = cues.cpu().numpy() > 0.5
    probs = np.where(present[:, :, None, None], refined.detach().cpu().numpy(), -np.inf)

    best, top = probs.argmax(axis=1), probs.max(axis=1)
    background = (best == 0) & (top > theta_b)
    if rule == "released":
        background &= top > theta_f
    confident = background | ((best > 0) & (top > theta_f))

    class_ids = np.arange(classes)[None, :, None, None]
    seed_class = np.where(seeds, class_ids, -1).max(axis=1)
    mapped = np.where(confident, best, seed_class)  # -1 = unlabelled

    image, klass = np.nonzero(present)
    if not len(image):
        return cues.clone()
    region = mapped[image] == klass[:, None, None]
    own_seed = seeds[image, klass]
    component, components = ndimage.label(region, structure=_IN_PLANE)
    accepted = np.zeros(components + 1, dtype=bool)
    accepted[component[own_seed]] = True
    accepted[0] = False  # a seed cell that was mapped to another class lies in no component
    seeds_per_cell = seeds.sum(axis=1)[image]
    grown_region = accepted[component] & (own_seed | (seeds_per_cell != 1))

    grown = seeds.copy()
    grown[image, klass] |= grown_region
    return torch.from_numpy(grown).to(device=cues.device, dtype=cues.dtype)
