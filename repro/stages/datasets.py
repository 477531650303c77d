"""Where an experiment's images, lists and cues are: a real VOC tree, or the embedded set built on demand."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from repro.config import Config
from repro.data import CueFile, VocLayout, read_id_list, read_pairs_list
from repro.data.mini import build_mini
from repro.errors import InputError

log = logging.getLogger(__name__)

MINI_ROOT = Path("data") / "mini"
_CUE_NAMES = ("localization_cues.h5", "localization_cues.pickle", "localization_cues.pickle.gz")
_VOC_HINT = (
    "it is the folder VOCdevkit/VOC2012 of VOCtrainval_11-May-2012.tar; get it with: "
    "curl -LO http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar "
    "&& tar xf VOCtrainval_11-May-2012.tar, then pass VOC_ROOT=VOCdevkit/VOC2012 (dataset.root=…)"
)
_CUES_HINT = (
    "it comes with the SEC release (github.com/kolesman/SEC, folder training); "
    "put it beside VOCdevkit, or pass dataset.{key}=FILE"
)


@dataclass(frozen=True)
class Experiment:
    """The resolved data set of an experiment.

    Attributes:
        layout: the VOC tree.
        train: id -> index of its cues, in list order. val: ids in list order.
        cues: path of the cue file.
        name: how tables call the validation set.
    """

    layout: VocLayout
    train: dict[str, int]
    val: list[str]
    cues: Path
    name: str

    def labels(self) -> dict[str, list[int]]:
        """The class ids of each training image, as its cue file lists them."""
        file = CueFile.open(self.cues)
        return {name: [int(label) for label in file.labels(index)] for name, index in self.train.items()}


def open_experiment(config: Config) -> Experiment:
    """Find every file that the experiment needs, building the embedded set if it is that.

    Raises:
        InputError: what is missing, and how to get it.
    """
    dataset = config.dataset
    if dataset.kind == "mini":
        root = Path(dataset.root) if dataset.root else MINI_ROOT
        build_mini(root)
    elif dataset.root is None:
        raise InputError(f"dataset.root: no VOC 2012 given; {_VOC_HINT}")
    else:
        root = Path(dataset.root)
        if not root.is_dir():
            raise InputError(f"dataset.root: no such folder: {root}; {_VOC_HINT}")
    layout = VocLayout.open(root)
    cues = _found(dataset.cues, "cues", _CUE_NAMES, root)
    input_list = _found(dataset.input_list, "input_list", ("input_list.txt",), root)

    indices = {Path(line.image).stem: line.cue_index for line in read_pairs_list(input_list)}
    train_list = layout.image_set(dataset.train)
    if train_list.is_file():
        names = read_id_list(train_list)
        if unknown := [name for name in names if name not in indices]:
            raise InputError(f"{train_list}: {unknown[0]} is not in {input_list}, so it has no cues")
    elif (
        dataset.train != "train_aug"
    ):  # VOC's own archive has no train_aug list: its images are those with cues
        raise InputError(f"dataset.train {dataset.train!r}: no such list: {train_list}")
    else:
        log.info("%s is not there: training on all %d images of %s", train_list, len(indices), input_list)
        names = list(indices)
    names = names[: dataset.train_limit]
    val = read_id_list(layout.image_set(dataset.val))[: dataset.val_limit]
    for kind, files in (
        ("training image", map(layout.image, names)),
        ("validation image", map(layout.image, val)),
        ("validation mask", (layout.root / dataset.masks / f"{name}.png" for name in val)),
    ):
        if absent := next((file for file in files if not file.is_file()), None):
            raise InputError(f"{absent}: no such {kind}, though the lists of {root} name it")
    name = "mini" if dataset.kind == "mini" else f"voc2012-{dataset.val}"
    return Experiment(layout, {name: indices[name] for name in names}, val, cues, name)


def _found(given: str | None, key: str, names: tuple[str, ...], root: Path) -> Path:
    """The file given, or the first of ``names`` in ``root`` or beside ``VOCdevkit``."""
    if given is not None:
        if not Path(given).is_file():
            raise InputError(f"dataset.{key}: no such file: {given}")
        return Path(given)
    folders = (root, root.resolve().parent.parent)
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    places = " or ".join(str(folder) for folder in folders)
    raise InputError(f"dataset.{key}: no {' or '.join(names)} in {places}; {_CUES_HINT.format(key=key)}")
