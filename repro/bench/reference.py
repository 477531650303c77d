"""What the originals computed with, to compare speeds with: region growing in plain Python, cell by cell.

The dense CRF's counterpart is ``repro.layers.mean_field(…, engine="pydensecrf")``.
"""

from __future__ import annotations

import numpy as np

Cell = tuple[int, int]


def grow_seeds_in_python(
    labels: np.ndarray, refined: np.ndarray, cues: np.ndarray, theta_f: float = 0.85, theta_b: float = 0.99
) -> np.ndarray:
    """:func:`repro.layers.grow_seeds` under the released rule, step by step as SPEC and release have it.

    Args:
        labels: (N, C). refined: (N, C, H, W). cues: (N, C, H, W) in {0, 1}.

    Returns:
        Grown cues (N, C, H, W).
    """
    grown = cues.copy()
    for image in range(len(cues)):
        present = [k for k in range(labels.shape[1]) if labels[image, k] > 0.5]
        class_map = _class_map(present, refined[image], cues[image], theta_f, theta_b)
        for k in present:
            for component in _components(class_map == k):
                if any(cues[image, k, row, column] > 0.5 for row, column in component):
                    for row, column in component:
                        seeds = cues[image, :, row, column]
                        if seeds[k] > 0.5 or np.count_nonzero(seeds > 0.5) != 1:
                            grown[image, k, row, column] = 1
    return grown


def _class_map(
    present: list[int], refined: np.ndarray, cues: np.ndarray, theta_f: float, theta_b: float
) -> np.ndarray:
    """(H, W) class of each cell, -1 unlabelled."""
    height, width = refined.shape[1:]
    class_map = np.full((height, width), -1)
    for row in range(height):
        for column in range(width):
            for k in np.flatnonzero(cues[:, row, column] > 0.5).tolist():
                class_map[row, column] = k
            best, top = -1, -np.inf
            for k in present:
                if refined[k, row, column] > top:
                    best, top = k, refined[k, row, column]
            if top > theta_f and (best > 0 or top > theta_b):
                class_map[row, column] = best
    return class_map


def _components(region: np.ndarray) -> list[list[Cell]]:
    """The 8-connected components of a bool map, as lists of cells."""
    height, width = region.shape
    seen = np.zeros_like(region)
    components = []
    for row in range(height):
        for column in range(width):
            if not region[row, column] or seen[row, column]:
                continue
            component, waiting = [], [(row, column)]
            seen[row, column] = True
            while waiting:
                r, c = waiting.pop()
                component.append((r, c))
                for i in range(max(r - 1, 0), min(r + 2, height)):
                    for j in range(max(c - 1, 0), min(c + 2, width)):
                        if region[i, j] and not seen[i, j]:
                            seen[i, j] = True
                            waiting.append((i, j))
            components.append(component)
    return components
