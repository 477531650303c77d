"""Cues from class activation maps that another project has made: thresholds, merging, our cue file.

Each image has a ``<name>.npy`` of one of these, as ``np.save`` writes a dict:

    class index -> map (h, w)
    keys -> class indices (K,), and high_res or cam -> maps (K, h, w); high_res is taken where both are there

Maps and indices are NumPy arrays or, as IRN writes some of them, PyTorch's tensors.

Maps may have any size; they are zoomed to the net's grid (order 1). Foreground is what exceeds a share of each map's
maximum. Background are the cells where the strongest of the maps, each divided by its maximum, is lowest, or where it
is below a threshold.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repro.config import Config, Mark, shaping
from repro.cues.generate import MadeCues, score_grid
from repro.data.cues import MAX_BYTES, cues_of_cells, write_cues
from repro.data.experiment import stage0_of
from repro.data.image_list import image_name, list_line
from repro.data.numbered_labels import first_index
from repro.errors import InputError
from repro.layers import foreground_cells, lowest_cells, merge_cells
from repro.layers.resize import zoom_to
from repro.run_folder import check_no_others, check_settings, write_settings
from weights_conversion import guard
from weights_conversion.files import write_text

log = logging.getLogger(__name__)

_EXPECTED = "a dict of class index to map, or of 'keys' and 'cam' or 'high_res'"


def cues_from_cams(
    config: Config,
    folder: Path,
    out: Path,
    *,
    names: Sequence[str] | None = None,
    first_class: int | None = None,
    background_below: float | None = None,
) -> MadeCues:
    """Make ``cues.h5`` and ``input_list.txt`` in ``out``.

    Args:
        config: ``stage0.cues`` has threshold, share of background and rule of merging; the model the grid.
        folder: of the maps.
        names: the images; all that have maps by default.
        first_class: which index the first class after background has, 0 or 1; None where the indices tell.
        background_below: background is what is below this, instead of the lowest ``background_share`` of the cells.

    Raises:
        InputError: an image without maps, what is no such file, indices out of range or that may count background or
            not; a folder with cues of other settings, or with files of these names that are not ours.
    """
    if config.stage1.data.layer == "AnnotationCOCO":
        raise InputError("a cue file is VOC's; COCO's layer reads PNGs")
    if background_below is not None and not 0 < background_below <= 1:
        raise InputError(f"--background-below {background_below}: expected more than 0, at most 1")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of class activation maps")
    found = {image_name(path.stem): path for path in sorted(folder.glob("[!.]*.npy"))}
    chosen = list(found if names is None else names)
    if not chosen:
        raise InputError(f"{folder}: no map (*.npy) in it")
    if absent := [name for name in chosen if name not in found]:
        raise InputError(f"{folder}: no maps of image {absent[0]}, {absent[0]}.npy expected")
    made = MadeCues(out / "cues.h5", out / "input_list.txt", len(chosen))
    check_no_others(out, made.cues.name, made.input_list.name)
    grid, settings, classes = score_grid(config), stage0_of(config).cues, config.model.num_classes
    maps = {name: read_maps(found[name], grid) for name in chosen}
    indices = {name: np.array(list(of_image)) for name, of_image in maps.items()}
    first = first_index(str(folder), indices, classes) if first_class is None else first_class
    entries = {}
    nowhere: list[str] = []  # maps that give no cue
    without_background = 0
    for number, (name, of_image) in enumerate(maps.items()):
        kept = {index + 1 - first: values for index, values in of_image.items() if first == 0 or index != 0}
        if not kept or min(kept) < 1 or max(kept) >= classes:
            shown = ", ".join(map(str, of_image)) or "none"
            raise InputError(
                f"{found[name]}: maps of the indices {shown}; expected {first} to {classes - 2 + first} for the "
                f"{classes} classes"
            )
        if empty := [index - 1 + first for index, values in kept.items() if values.max() <= 0]:
            nowhere.append(f"{found[name]}: index {empty[0]}")
        stacked = np.zeros((1, classes - 1, *grid), np.float32)
        labels = np.zeros((1, classes - 1), np.float32)
        for index, values in kept.items():
            stacked[0, index - 1], labels[0, index - 1] = values, 1
        heat = torch.from_numpy(stacked)
        foreground = foreground_cells(heat, torch.from_numpy(labels), threshold=settings.cam_threshold)
        strongest = (heat / heat.amax(dim=(2, 3), keepdim=True).clamp_min(1e-12)).amax(dim=1)
        background = (
            lowest_cells(strongest, share=settings.background_share)
            if background_below is None
            else strongest < background_below
        )
        cells = merge_cells(background, foreground, rule=settings.merge)[0].numpy()
        without_background += not (cells == 0).any()
        entries[number] = sorted(kept), cues_of_cells(cells)
    if nowhere:
        log.warning(
            "%d of %d images have a map that is nowhere above 0, so that it gives no cue of its class; the first: %s; "
            "maps that begin at 0 are expected, not scores before ReLU or softmax",
            len(nowhere),
            len(chosen),
            nowhere[0],
        )
    if without_background:
        log.warning(
            "%d of %d images get no cue of background: none of their cells is below the others, as where maps are 0 "
            "in many; --background-below 0.05 takes all cells below that share of each map's maximum",
            without_background,
            len(chosen),
        )
    if not any(cues.size for _, cues in entries.values()):
        raise InputError(
            f"{folder}: no map is above 0 anywhere, so there is no cue; maps that begin at 0 expected"
        )
    described: dict[str, Any] = {
        "first_class": first,
        "background_below": background_below,
        "grid": list(grid),
    }
    described |= {"classes": config.dataset.classes, **shaping(settings, Mark.EXTRA_INPUT)}
    check_settings(out, described)
    write_settings(out, described)
    write_cues(made.cues, entries, grid, chosen)
    write_text(made.input_list, "".join(list_line(name, number) for number, name in enumerate(chosen)))
    return made


def read_maps(path: Path, grid: tuple[int, int]) -> dict[int, np.ndarray]:
    """Index as the file has it -> its map on the grid, float32."""
    content = guard.read_pickle(path, most=MAX_BYTES, expected=_EXPECTED)
    arrays = {key: array.values for key, array in content.arrays.items()}
    if "keys" in arrays:
        keys = arrays["keys"]
        maps = arrays.get("high_res", arrays.get("cam"))
        if (
            keys is None
            or keys.ndim != 1
            or keys.dtype.kind not in "iu"
            or maps is None
            or len(maps) != len(keys)
        ):
            raise InputError(f"{path}: as many indices in 'keys' as maps in 'cam' or 'high_res' expected")
        pairs = list(zip(keys.tolist(), maps, strict=True))
    elif arrays and all(re.fullmatch(r"-?\d{1,9}", key) for key in arrays):
        pairs = [(int(key), values) for key, values in arrays.items()]
    else:
        raise InputError(
            f"{path}: keys {', '.join(map(repr, list(arrays)[:3])) or 'none'}; expected {_EXPECTED}"
        )
    if len({index for index, _ in pairs}) < len(pairs):
        raise InputError(f"{path}: an index comes twice in 'keys'; expected each once")
    return {index: _on_grid(path, index, values, grid) for index, values in pairs}


def _on_grid(path: Path, index: int, values: np.ndarray | None, grid: tuple[int, int]) -> np.ndarray:
    if values is None or values.ndim != 2 or not values.size:
        shape = None if values is None else values.shape
        raise InputError(f"{path}: index {index} has a map of shape {shape}, (rows, columns) expected")
    if not np.isfinite(values).all():
        raise InputError(f"{path}: NaN or infinity in the map of index {index}, finite values expected")
    values = values.astype(np.float64)
    return (values if values.shape == grid else zoom_to(values, *grid)).astype(np.float32)
