"""Images of the validation set with their masks: which are worst and best, and copies small enough to show."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from repro.config import Config, load_config
from repro.constants import VOID
from repro.data import colour_palette, read_image_rgb, read_mask
from repro.data.experiment import Experiment, open_experiment
from repro.errors import InputError
from repro.metrics import confusion_matrix, per_class_iou
from repro.report.page_summary import headline
from repro.run.scores import TRAINED, Entry, Scores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A validation image, its masks by method, ``iou`` of the album's method (see `image_iou`), and the ids of the
    classes in its ground truth."""

    name: str
    image: Path
    truth: Path
    masks: dict[str, Path]
    iou: float
    classes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Growing:
    """A training image whose seeds are shown growing: masks of the seeds by iteration, 0 being the cues, the mask that
    stage 2 learns from and the ground truth, where there are such. An iteration is ``epoch_length``-th of an epoch."""

    name: str
    image: Path
    seeds: dict[int, Path]
    epoch_length: float
    mask: Path | None = None
    truth: Path | None = None


@dataclass(frozen=True)
class Album:
    """The pictures of a run's validation set. Their ``iou`` is that of the last of ``methods``; ``seen`` are the
    classes in images or masks."""

    config: Config
    experiment: Experiment
    methods: list[str]
    seen: list[int]
    pictures: list[Picture]

    @property
    def method(self) -> str:
        """The method that the pictures are judged and ordered by."""
        return self.methods[-1]

    def ious(self, picture: Picture) -> dict[str, float]:
        """`image_iou` of each method's mask."""
        classes = self.experiment.num_classes
        truth = read_mask(picture.truth, classes)
        return {
            name: image_iou(truth, read_mask(path, classes), classes) for name, path in picture.masks.items()
        }

    @property
    def classes(self) -> list[str]:
        return self.config.dataset.classes

    @property
    def ordered(self) -> list[Picture]:
        """From the worst to the best."""
        return sorted(self.pictures, key=lambda picture: (picture.iou, picture.name))

    def selection(self, count: int) -> list[Picture]:
        """At most ``count`` of them, evenly from the worst to the best."""
        order = self.ordered
        if len(order) <= count:
            return order
        return [order[round(place)] for place in np.linspace(0, len(order) - 1, count)]


def principal(scores: Scores) -> list[Entry]:
    """The runs of Table 2's rows and SEC, of the lowest seed, in the tables' order; else whatever there is."""
    found = [runs[0] for _, runs in headline(scores)]
    return found or [entry for entry in scores.entries if entry["origin"] == TRAINED][:1]


def open_album(scores: Scores) -> Album | None:
    """The validation set of the principal runs with their masks; None where it may not be shown, or is not here."""
    entries = principal(scores)
    if not entries:
        return None
    last = entries[-1]
    try:
        config = load_config(str(last.folder / "config.yaml"))
        if not config.report.pictures:
            return None
        experiment = open_experiment(config, build=False)
    except InputError as error:
        log.warning("no pictures: %s", error)
        return None
    entries = [entry for entry in entries if entry["dataset"] == last["dataset"]]
    folders = {entry["method"]: entry.folder / "predictions" / entry.stage for entry in entries}
    method = last["method"]
    folders[method] = folders.pop(method)  # one run may answer several rows: the judge goes last all the same
    pictures = []
    for name in experiment.val:
        masks = {row: folder / f"{name}.png" for row, folder in folders.items()}
        truth = read_mask(experiment.truth(name), experiment.num_classes)
        predicted = read_mask(masks[method], experiment.num_classes)
        value = image_iou(truth, predicted, experiment.num_classes)
        present = [int(index) for index in np.unique(truth) if index < experiment.num_classes]
        pictures.append(Picture(name, experiment.image(name), experiment.truth(name), masks, value, present))
    seen = sorted({index for entry in entries for index in entry.seen})
    return Album(config, experiment, list(folders), seen, pictures)


def growing(scores: Scores, album: Album) -> list[Growing]:
    """The training images whose seeds a run has drawn; empty where none has."""
    done = (entry for entry in scores.entries if (entry.folder / "growth" / "done.json").exists())
    entry = next(done, None)
    if entry is None:
        return []
    found: dict[str, dict[int, Path]] = {}
    for path in sorted((entry.folder / "growth").glob("[!.]*.png")):
        name, _, iteration = path.stem.rpartition("_")
        if name in album.experiment.train:
            found.setdefault(name, {})[int(iteration)] = path
    folders = {"mask": entry.folder / "pseudo_labels", "truth": album.experiment.train_truth_root}
    roots = {
        what: root
        for what, root in folders.items()
        if root is not None and all((root / f"{name}.png").is_file() for name in found)
    }
    stage1 = load_config(str(entry.folder / "config.yaml")).stage1
    length = len(album.experiment.train) / (stage1.data.batch_size * stage1.solver.iter_size)
    return [
        Growing(
            name,
            album.experiment.image(name),
            dict(sorted(seeds.items())),
            length,
            **{what: root / f"{name}.png" for what, root in roots.items()},
        )
        for name, seeds in found.items()
    ]


def labelled(path: Path) -> float:
    """Percent of a seed mask's cells that have a label."""
    return 100 * float((read_mask(path, VOID) != VOID).mean())


def image_iou(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> float:
    """Mean IoU of one image, 0–1, over the classes that its ground truth or its mask holds; 0 where all is void."""
    iou = per_class_iou(confusion_matrix(truth, predicted, num_classes))
    present = iou[~np.isnan(iou)]
    return float(present.mean()) if present.size else 0.0


def shrunk(path: Path, side: int, *, mask: bool = False) -> Image.Image:
    """An image or a mask with no side longer than ``side``; a mask keeps its indices and the VOC palette."""
    if mask:
        picture = Image.fromarray(read_mask(path, VOID))
        picture.putpalette(colour_palette().tobytes())
    else:
        picture = Image.fromarray(read_image_rgb(path))
    factor = side / max(picture.size)
    if factor >= 1:
        return picture
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.NEAREST if mask else Image.Resampling.BILINEAR)


def coloured(mask: np.ndarray, unlabelled: Sequence[int] = (255, 255, 255)) -> np.ndarray:
    """A mask (H, W) in VOC's colours, uint8 (H, W, 3); void in a colour of its own."""
    colours = colour_palette().copy()
    colours[VOID] = unlabelled
    return colours[mask]
