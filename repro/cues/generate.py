"""From classifiers of images to localization cues, and how good cues are.

    make     foreground cues by class activation maps, background cues by gradient saliency or from saliency maps made
             elsewhere, merged by a named rule
    score    precision, recall and IoU of cues against masks

The cues of an image are a PNG of classes on the score grid, 255 where there is none: COCO's layer reads them so.
For VOC's layer they are gathered into a cue file. Images whose PNG is there are not done again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from repro.config import Config, CuesConfig, Mark, Stage0Config, shaping
from repro.constants import VOID
from repro.cues.train_classifier import needed_classifiers
from repro.data import (
    CueFile,
    colour_palette,
    make_loader,
    preprocess_zoomed,
    read_image_rgb,
    read_mask,
    write_cues,
    write_mask,
)
from repro.data.cues import cell_counts, cues_of_cells, planes_of_cells
from repro.data.datasets import Item, tensor
from repro.data.experiment import LabelledSet, open_labelled, stage0_of
from repro.data.image_list import list_line
from repro.data.image_survey import survey_images
from repro.data.images import open_image
from repro.data.labels import CLASSIFIER_MEAN_BGR, present
from repro.data.mask_set import MaskSet
from repro.errors import InputError, damaged
from repro.files import json_sha256
from repro.inference.predict import load_model
from repro.layers import (
    activation_maps,
    foreground_cells,
    gradient_saliency,
    lowest_cells,
    merge_cells,
)
from repro.layers.resize import zoom_to
from repro.metrics import seed_matrix, seed_metrics
from repro.models import CaffeNet
from repro.run_folder import check_no_others, check_settings, keep_settings
from weights_conversion.files import atomic_path, file_sha256, no_such, write_text

_FILE_THREADS = 4


@dataclass(frozen=True)
class MadeCues:
    """What ``make_cues`` left: ``cues`` (a cue file, or the folder of PNGs), the list that goes with it, and how many
    images were done now."""

    cues: Path
    input_list: Path
    done: int


@dataclass(frozen=True, eq=False)
class CueImages:
    """What cues are made of: images zoomed to the classifiers' size, labels, and saliency where it is given.

    Items: ``images`` float32 (3, size, size), ``labels`` float32 (C−1,), ``saliency`` float32 (rows, columns), 0–1.
    """

    labelled: LabelledSet
    names: Sequence[str]
    _: KW_ONLY
    num_classes: int
    size: int
    grid: tuple[int, int]
    saliency: Mapping[str, Path] | None

    def __len__(self) -> int:
        return len(self.names)

    def item(self, index: int, rng: np.random.Generator) -> Item:
        name = self.names[index]
        image = read_image_rgb(self.labelled.images[name])
        height, width = image.shape[:2]
        images = preprocess_zoomed(image, (self.size / height, self.size / width), CLASSIFIER_MEAN_BGR)
        item = {
            "images": tensor(images),
            "labels": tensor(present(self.labelled.labels[name], self.num_classes)),
        }
        if self.saliency is not None:
            item["saliency"] = tensor(read_saliency(self.saliency[name], (height, width), self.grid))
        return item


def read_saliency(path: Path, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """A saliency map, normalised to 0–1 by its smallest and largest value, zoomed (order 1) to the grid.

    Args:
        path: a grey image, or ``.npy`` with a real array (H, W).
        size: the image's rows and columns, which the map must have.

    Raises:
        InputError: a map that cannot be read, of another size, constant, or with NaN or infinity.
    """
    if path.suffix == ".npy":
        with damaged(path, "a NumPy array"):
            values = np.load(
                path, mmap_mode="r", allow_pickle=False
            )  # mapped: its size is compared with the file's
        if not isinstance(values, np.ndarray):
            raise InputError(f"{path}: an archive of arrays (.npz), one NumPy array expected")
        if values.dtype.kind not in "fiu":
            raise InputError(f"{path}: {values.dtype}; expected real numbers")
    else:
        picture = open_image(path)
        if picture.mode not in ("L", "I;16", "F"):
            raise InputError(f"{path}: image mode {picture.mode!r}; expected a grey map")
        values = np.asarray(picture)
    if values.shape != size:
        found = "x".join(map(str, values.shape))
        raise InputError(f"{path}: a map of {found}, the image's {size[0]}x{size[1]} expected")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{path}: NaN or infinity in the saliency map, finite values expected")
    low, high = values.min(), values.max()
    if low == high:
        raise InputError(f"{path}: constant ({low:g}), so it tells nothing apart; varied values expected")
    return zoom_to((values - low) / (high - low), *grid).astype(np.float32)


def make_cues(
    config: Config,
    weights: Mapping[str, Path],
    out: Path,
    device: torch.device,
    *,
    pickled: bool = False,
    overlays: bool = False,
) -> MadeCues:
    """Make the cues of every labelled image in ``out``: a PNG each, and for VOC's layer the file ``cues.h5``.

    Args:
        config: ``stage0.cues`` says how; ``stage1.data`` the grid and which layer will read the cues.
        weights: of ``cam``, and of ``bg`` unless ``stage0.cues.saliency`` is given.
        out: holds ``png/``, ``cues.h5``, ``input_list.txt`` and ``settings.json``.
        pickled: write ``localization_cues.pickle`` too, which the original code reads.
        overlays: draw the cues over each image, in ``overlays/``.

    Raises:
        InputError: as ``open_labelled``; saliency maps or weights that are missing or do not fit; a folder made with
            other settings.
    """
    if pickled and config.stage1.data.layer == "AnnotationCOCO":
        raise InputError("a pickle of cues is VOC's; COCO's layer reads the PNGs")
    section, labelled = stage0_of(config), open_labelled(config)
    grid = score_grid(config)
    saliency = _saliency_files(section.cues, labelled) if section.cues.saliency else None
    nets = {net: weights[net] for net in needed_classifiers(section.cues)}
    described = _cue_settings(config, section, labelled, nets, grid)
    check_settings(out, described)
    check_no_others(out, "png", "overlays", "cues.h5", "input_list.txt", "localization_cues.pickle")
    survey_images(list(labelled.images.values()))
    models = {net: load_model(config, path, device, f"vgg16_{net}") for net, path in nets.items()}

    folder = out / "png"
    missing = [name for name in labelled.images if not (folder / f"{name}.png").exists()]
    layer = CueImages(
        labelled,
        missing,
        num_classes=config.model.num_classes,
        size=section.data.input_size,
        grid=grid,
        saliency=saliency,
    )
    total = len(labelled.images)
    bar = tqdm(
        desc="cues", unit="image", total=total, initial=total - len(missing), disable=None, dynamic_ncols=True
    )
    with bar, ThreadPoolExecutor(_FILE_THREADS) as pool:
        for names, cues in _batches(layer, section, models, grid, device):
            keep_settings(out, described)
            list(
                pool.map(
                    lambda pair: write_mask(folder / f"{pair[0]}.png", pair[1]), zip(names, cues, strict=True)
                )
            )
            bar.update(len(names))
    if overlays:
        for name, path in tqdm(labelled.images.items(), desc="overlays", unit="image", disable=None):
            _write_overlay(
                out / "overlays" / f"{name}.png", path, folder / f"{name}.png", config.model.num_classes
            )
    return _gathered(config, labelled, out, len(missing), pickled)


def _batches(
    layer: CueImages,
    section: Stage0Config,
    models: Mapping[str, CaffeNet],
    grid: tuple[int, int],
    device: torch.device,
) -> Iterator[tuple[Sequence[str], np.ndarray]]:
    """Names and cues (n, rows, columns) uint8, batch by batch."""
    size, count = section.cues.batch_size, len(layer)
    if not count:
        return
    loader = make_loader(
        layer,
        size,
        shuffle=False,
        seed=0,
        iterations=-(-count // size),
        workers=section.data.workers,
        pin_memory=device.type == "cuda",
    )
    for index, batch in enumerate(loader):
        names = layer.names[index * size : (index + 1) * size]
        # the last batch runs on into the list's beginning
        given = {key: values[: len(names)].to(device, non_blocking=True) for key, values in batch.items()}
        yield names, localize(models, section.cues, grid, **given).cpu().numpy()


def localize(
    models: Mapping[str, CaffeNet],
    settings: CuesConfig,
    grid: tuple[int, int],
    *,
    images: torch.Tensor,
    labels: torch.Tensor,
    saliency: torch.Tensor | None = None,
) -> torch.Tensor:
    """The cues of a batch on its device.

    Args:
        models: ``cam``, and ``bg`` where there is no ``saliency``; in evaluation mode.
        grid: rows and columns of the cues; maps of another size are zoomed (order 1).
        images: (N, 3, S, S), mean-subtracted BGR.
        labels: (N, C−1) in {0, 1}, without background.
        saliency: (N, rows, columns), 0–1.

    Returns:
        (N, rows, columns) uint8 classes, 255 where there is no cue.
    """
    cam = models["cam"]
    images = images.to(next(cam.parameters()))
    with torch.inference_mode():
        (features,) = cam.forward_some(images, "fc7_CAM")
        maps = activation_maps(features, cam.get_submodule("scores").weight)  # type: ignore[arg-type]
        foreground = foreground_cells(_on_grid(maps, grid), labels, threshold=settings.cam_threshold)
    if saliency is None:
        gradient = models["bg"].gradient_at(images, "conv4_1")
        lowest = _on_grid(gradient_saliency(gradient), grid)
        background = lowest_cells(lowest, share=settings.background_share)
    else:
        background = saliency < settings.saliency_threshold
    return merge_cells(background, foreground, rule=settings.merge)


def _on_grid(maps: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    return maps if tuple(maps.shape[-2:]) == grid else zoom_to(maps, *grid)


def score_grid(config: Config) -> tuple[int, int]:
    """Rows and columns of the score grid that stage 1 will train on."""
    data = config.stage1.data
    return config.build_net().grid_size(data.new_height, data.new_width)


def _saliency_files(settings: CuesConfig, labelled: LabelledSet) -> dict[str, Path]:
    folder = Path(str(settings.saliency))
    if not folder.is_dir():
        raise InputError(f"stage0.cues.saliency: {no_such('folder', folder)}")
    found = {
        path.stem: path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and path.suffix.lower() in (".png", ".bmp", ".npy", ".tif", ".tiff")
    }
    if absent := [name for name in labelled.images if name not in found]:
        raise InputError(f"{folder}: no saliency map for image {absent[0]}, {absent[0]}.png or .npy expected")
    return {name: found[name] for name in labelled.images}


def _cue_settings(
    config: Config,
    section: Stage0Config,
    labelled: LabelledSet,
    nets: Mapping[str, Path],
    grid: tuple[int, int],
) -> dict[str, Any]:
    """The settings that decide the cues of an image."""
    for net, path in nets.items():
        if not path.exists():
            raise InputError(
                f"{path}: no such weights of vgg16_{net}; repro seeds train --net vgg16_{net} makes them"
            )
    return {
        "classes": config.dataset.classes,
        "precision": config.precision,
        "input_size": section.data.input_size,
        "width_divisor": config.model.width_divisor,
        "grid": list(grid),
        **shaping(section.cues, Mark.EXTRA_INPUT),
        "saliency": section.cues.saliency is not None,
        "weights_sha256": {net: file_sha256(path) for net, path in nets.items()},
        "labels_sha256": json_sha256(labelled.labels),
    }


def _gathered(config: Config, labelled: LabelledSet, out: Path, done: int, pickled: bool) -> MadeCues:
    """The list for stage 1, and the PNGs as one cue file where its layer wants that."""
    folder, classes = out / "png", config.model.num_classes
    input_list = out / "input_list.txt"
    if config.stage1.data.layer == "AnnotationCOCO":
        lines = [list_line(path.name, f"{name}.png") for name, path in labelled.images.items()]
        write_text(input_list, "".join(lines))
        return MadeCues(folder, input_list, done)
    made = MadeCues(out / "cues.h5", input_list, done)
    pickle = out / "localization_cues.pickle"
    if not done and made.cues.exists() and input_list.exists() and (pickle.exists() or not pickled):
        return made
    entries = {}
    for index, (name, labels) in enumerate(labelled.labels.items()):
        entries[index] = np.asarray(labels), cues_of_cells(read_mask(folder / f"{name}.png", classes))
    write_cues(made.cues, entries, score_grid(config))
    if pickled:
        write_cues(pickle, entries)
    lines = [list_line(path.name, index) for index, path in enumerate(labelled.images.values())]
    write_text(input_list, "".join(lines))
    return made


def _write_overlay(path: Path, image_path: Path, cue_path: Path, num_classes: int) -> None:
    """The image with its cells half covered by their class's colour; cells without a cue are darkened."""
    image, cues = read_image_rgb(image_path), read_mask(cue_path, num_classes)
    height, width = image.shape[:2]
    enlarged = np.asarray(Image.fromarray(cues).resize((width, height), Image.Resampling.NEAREST))
    colours = np.where((enlarged == VOID)[:, :, None], 0, colour_palette()[enlarged])
    colours[enlarged == 0] = (255, 255, 255)  # the palette's black would look like no cue
    with atomic_path(path) as temporary:
        Image.fromarray(((image.astype(np.int64) + colours) // 2).astype(np.uint8)).save(
            temporary, format="PNG"
        )


# --- quality ------------------------------------------------------------------------------------------------


def score_seeds(
    config: Config, cues: Path, masks: Path, *, input_list: Path | None, ids: Sequence[str] | None
) -> dict[str, Any]:
    """Precision, recall and IoU of cues against masks, over all pixels, the cells enlarged by nearest neighbour.

    Args:
        config: gives the classes and the grid.
        cues: a cue file with its ``input_list`` (lines ``image index``), or a folder of PNGs on the grid.
        masks: folder of ground-truth masks, ``<image>.png``, 255 is void.
        ids: the images to score; by default all that have cues.

    Returns:
        ``images`` and what ``seed_metrics`` gives.

    Raises:
        InputError: an image without cues or without a mask, and whatever is wrong with the files.
    """
    classes, grid = config.model.num_classes, score_grid(config)
    if cues.is_dir():
        names = list(ids) if ids else sorted(path.stem for path in cues.glob("[!.]*.png"))

        def blob(name: str) -> np.ndarray:
            label = read_mask(cues / f"{name}.png", classes)
            if label.shape != grid:
                raise InputError(
                    f"{cues / name}.png: {label.shape[0]}x{label.shape[1]}, the grid's {grid[0]}x{grid[1]} expected"
                )
            return planes_of_cells(label, classes)
    else:
        file = CueFile.open(cues)
        file.check_whole(*grid)
        indices = file.images(input_list)
        names = list(ids or indices)
        if unknown := [name for name in names if name not in indices]:
            raise InputError(f"{input_list or cues}: image {unknown[0]} is not in it")

        def blob(name: str) -> np.ndarray:
            return file.cues_blob(indices[name], classes, *grid)

    if not names:
        raise InputError(f"{cues}: no cues to score")
    matrix = torch.zeros(classes, classes + 1, dtype=torch.float64)
    truth = MaskSet(classes)
    for name in tqdm(names, desc="score", unit="image", disable=None, dynamic_ncols=True):
        counts = cell_counts(truth.read(masks / f"{name}.png"), classes, *grid)
        matrix += seed_matrix(torch.from_numpy(counts)[None], torch.from_numpy(blob(name))[None])
    truth.check()
    return {"images": len(names), **seed_metrics(matrix)}
