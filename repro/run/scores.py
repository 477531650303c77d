"""What finished runs say of themselves: their ``scores_<stage>.json``, and which of them answer a cell."""

from __future__ import annotations

import logging
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeInt

from repro.config.validation import validated
from repro.errors import InputError
from repro.files import read_json
from repro.metrics import RULES, Rule
from repro.paper.experiments import PAPER, Cell, PaperTable, experiments
from weights_conversion.files import is_plain_name

log = logging.getLogger(__name__)

TRAINED, ORIGINAL = "trained here", "original weights"


class _Base(BaseModel):
    profile: str
    sha256: str


class _Figures(BaseModel):
    """What `repro.metrics.summarize` gives."""

    mean_iou: dict[Rule, float]
    per_class_iou: list[float | None]
    pixel_accuracy: float | None
    classes_counted: int
    absent_classes: list[NonNegativeInt]
    matrix: list[list[int]]


class _ScoresFile(BaseModel):
    """What a scores file must have; it may hold more."""

    run: str
    family: str
    base: _Base
    settings_sha256: str
    changed: dict[str, Any]
    seed: int
    pretrained: bool
    origin: str
    method: str
    answers: list[str]
    dataset: str
    images: int
    train_images: int
    classes: list[str]
    scores: _Figures
    seed_quality: list[dict[str, float]]


@dataclass(frozen=True)
class Entry:
    """A scores file: its fields, and the folder of its run."""

    fields: dict[str, Any]
    folder: Path
    stage: str

    def __getitem__(self, key: str) -> Any:
        return self.fields[key]

    @property
    def seen(self) -> list[int]:
        """The classes that the ground truth or the masks show, ascending."""
        return [index for index, iou in enumerate(self["scores"]["per_class_iou"]) if iou is not None]

    @property
    def data(self) -> str:
        """The validation set in words."""
        if self["dataset"] == "mini":
            return "the embedded set"
        return re.sub("^voc2012-", "VOC 2012 ", re.sub("^coco-", "COCO ", self["dataset"]))

    def value(self, cell: Cell, rule: Rule | None = None) -> float | None:
        """What it has for a cell, percent, by the cell's rule or another; None where that epoch was not reached or its
        seeds not compared."""
        if cell.epoch is None:
            return 100 * float(self["scores"]["mean_iou"][rule or cell.rule])
        rows = [row for row in self["seed_quality"] if row["epoch"] == cell.epoch]
        return 100 * rows[0][str(cell.figure)] if rows else None


@dataclass(frozen=True)
class Estimate:
    """Mean, sample standard deviation (None for one value) and number of values."""

    mean: float
    sd: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        if not values:
            return None
        return cls(
            statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)
        )

    def shown(self, decimals: int) -> str:
        """``58.43 ± 0.21``, or the mean alone."""
        return f"{self.mean:.{decimals}f}" + ("" if self.sd is None else f" ± {self.sd:.{decimals}f}")


# data set -> number of images, of those that the papers' numbers were measured on
PAPERS_IMAGES = {"voc2012-val": 1449, "coco-val2014": 40504}


def incomparable(entry: Entry, *, validated: bool = True) -> str | None:
    """Why a run's scores may not be set against the papers' number; None where they may.

    The papers' numbers are of the whole validation sets, from ImageNet's weights, with the papers' settings. Without
    ``validated`` the validation set does not matter: the quality of seeds is of the training images.
    """
    expected = PAPERS_IMAGES.get(entry["dataset"])
    if validated and expected is None:
        return f"measured on {entry['images']} images of {entry.data}"
    if validated and entry["images"] != expected:
        return f"measured on {entry['images']} of the {expected} images of {entry.data}"
    profile, found = entry["base"]["profile"], experiments()
    family = found.family(found.stands_for.get(profile, profile))
    if family is None:
        return f"of {profile}, which is no profile of the papers' settings"
    if family != PAPER:
        return f"trained on {entry['train_images']} images that are not the papers'"
    if entry["changed"]:
        return (
            f"changed from the profile: {', '.join(f'{k}={v}' for k, v in sorted(entry['changed'].items()))}"
        )
    if not entry["pretrained"]:
        return "began with random weights, not with ImageNet's"
    return None


class Scores:
    """The scores of several runs.

    Raises:
        InputError: runs that answer the same cell without being repetitions of each other, or an experiment whose
            runs were measured on different images.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = sorted(entries, key=lambda entry: (entry["run"], entry.stage))
        by_cell: dict[str, list[Entry]] = {}
        for entry in self.entries:
            for name in entry["answers"]:
                by_cell.setdefault(name, []).append(entry)
        self._by_cell = {
            name: sorted(found, key=lambda entry: (entry["seed"], entry["run"]))
            for name, found in by_cell.items()
        }
        for name, found in self._by_cell.items():
            for origin in (TRAINED, ORIGINAL):
                _same_but_for_the_seed(name, [entry for entry in found if entry["origin"] == origin])
        by_experiment: dict[str, Entry] = {}
        for name, found in self._by_cell.items():
            for entry in found:
                first = by_experiment.setdefault(name.partition("/")[0], entry)
                for key in ("dataset", "images", "classes"):
                    if entry[key] != first[key]:
                        raise InputError(
                            f"{entry['run']}: {key} differs from {first['run']}'s; "
                            "tables set runs on the same images side by side"
                        )

    @property
    def generated(self) -> bool:
        """Whether the images are drawn by this project, not photographs."""
        return any(entry["dataset"] == "mini" for entry in self.entries)

    @property
    def tables(self) -> dict[str, PaperTable]:
        """The experiments that the runs can answer, by name; the papers' own where there is no run."""
        return experiments().tables(entry["base"]["profile"] for entry in self.entries)

    def of(self, cell: Cell, origin: str = TRAINED) -> list[Entry]:
        """The runs that answer a cell, by seed."""
        return [
            entry
            for entry in self._by_cell.get(cell.name, [])
            if entry["origin"] == origin and entry.value(cell) is not None
        ]

    def estimate(self, cell: Cell, origin: str = TRAINED, rule: Rule | None = None) -> Estimate | None:
        return Estimate.of(
            [value for entry in self.of(cell, origin) if (value := entry.value(cell, rule)) is not None]
        )


def read_scores(runs: Iterable[Path]) -> list[Entry]:
    """The scores of run folders, or ``scores_*.json`` files.

    Raises:
        InputError: a folder without scores, no run at all, or a damaged file.
    """
    files: list[Path] = []
    for run in runs:
        if not run.exists():
            raise InputError(f"{run}: no such run folder")
        found = sorted(run.glob("scores_*.json")) if run.is_dir() else [run]
        if not found:
            raise InputError(f"{run}: no scores_*.json, so no finished run")
        files += found
    if not files:
        raise InputError("tables: no run given")
    # a run named twice is still one
    return [_read(file) for file in {file.resolve(): file for file in files}.values()]


def family_scores(
    runs_dir: Path, family: str | None = None, bases: Mapping[str, str] | None = None
) -> dict[str, list[Entry]]:
    """The scores of all finished runs in a folder, by the results folder that they belong to.

    Args:
        runs_dir: such as ``results/runs``.
        family: only this one.
        bases: profile -> hash of the settings that the tables are about; runs of the profile with others are left
            out, with a word.
    """
    families: dict[str, list[Entry]] = {}
    for file in sorted(runs_dir.glob("[!.]*/scores_*.json")):
        entry = _read(file)
        if family not in (None, entry["family"]):
            continue
        if (bases or {}).get(entry["base"]["profile"], entry["base"]["sha256"]) != entry["base"]["sha256"]:
            log.info("%s: of other settings, so not in these tables", file.parent)
            continue
        families.setdefault(entry["family"], []).append(entry)
    return families


def _read(file: Path) -> Entry:
    fields = read_json(file, "a scores file")
    if not isinstance(fields, dict):
        raise InputError(f"{file}: a {type(fields).__name__}, a scores file expected")
    found = validated(_ScoresFile, fields, f"{file}: no scores file")
    stage = file.stem.removeprefix("scores_")
    for what, name in (("run", fields["run"]), ("family", fields["family"]), ("its own name", stage)):
        if not is_plain_name(name):
            raise InputError(
                f"{file}: {what} {name[:80]!r}: expected a plain name, as a file or folder has it"
            )
    figures, count = found.scores, len(found.classes)
    if (
        len(figures.per_class_iou) != count
        or [len(row) for row in figures.matrix] != [count] * count
        or not all(index < count for index in figures.absent_classes)
        or figures.mean_iou.keys() != set(RULES)
    ):
        raise InputError(f"{file}: its scores are not those of evaluate for {count} classes")
    return Entry(fields, file.parent, stage)


def _same_but_for_the_seed(cell: str, entries: Sequence[Entry]) -> None:
    for index, entry in enumerate(entries):
        for other in entries[:index]:
            if entry["settings_sha256"] != other["settings_sha256"] or entry["seed"] == other["seed"]:
                raise InputError(
                    f"{entry['run']} and {other['run']} both answer {cell} but are no repetitions of each other "
                    "(other settings, or the same seed); name the runs to set side by side"
                )
