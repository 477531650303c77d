"""Is a VOC tree whole? Counts, every image and mask, the cues, and hashes.

The counts are the field's: 1,464 train, 1,449 val, 1,456 test (where VOC's test set is there), 10,582 train_aug.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from repro.constants import CLASS_NAMES
from repro.data.cues import CueFile
from repro.data.image_list import read_cue_indices, read_id_list
from repro.data.image_survey import is_turned
from repro.data.images import image_size, read_image_rgb
from repro.data.mask_set import MaskSet
from repro.data.voc import CUE_NAMES, INPUT_LIST_NAMES, VocLayout, data_folder, found_beside
from repro.errors import InputError
from repro.fetch.catalogue import LOCK_NAME, LockFile, Pin, check_file, read_catalogue
from repro.fetch.parallel import mapped
from repro.fetch.sbd import TRAIN_AUG
from repro.files import now

COUNTS = {"train": 1464, "val": 1449, "test": 1456, "train_aug": TRAIN_AUG}
"""Names in each list of ``ImageSets/Segmentation``."""

GRID = (41, 41)  # of the released cues
_MOST_STRANGERS = 0.05  # of the images may have a label that their mask lacks before it looks like a mix-up
_SHOWN = 5  # troubles of a check that the report spells out


@dataclass
class Check:
    """One line of the report. ``found`` of ``expected`` things are as they should be; ``troubles`` are the others."""

    name: str
    found: int = 0
    expected: int | None = None
    troubles: list[str] = field(default_factory=list)
    remark: str = ""

    @property
    def ok(self) -> bool:
        return not self.troubles and self.expected in (None, self.found)

    def __str__(self) -> str:
        count = f"{self.found}" if self.expected is None else f"{self.found} of {self.expected}"
        line = f"{'ok' if self.ok else 'FAILED':<8}{self.name:<24}{count}{f'  ({self.remark})' if self.remark else ''}"
        more = len(self.troubles) - _SHOWN
        shown = [f"\n        {trouble}" for trouble in self.troubles[:_SHOWN]]
        return line + "".join(shown) + (f"\n        and {more} more" if more > 0 else "")


@dataclass
class Report:
    """All checks of a tree."""

    root: str
    quick: bool
    checks: list[Check]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ``root``, ``quick``, ``ok``, and of each check its fields and ``ok``."""
        checks = [{**asdict(check), "ok": check.ok} for check in self.checks]
        return {"root": self.root, "quick": self.quick, "ok": self.ok, "checks": checks}


def verify(
    root: Path,
    *,
    cues: Path | None = None,
    input_list: Path | None = None,
    quick: bool = False,
    partial: bool = False,
    pin: bool = False,
) -> Report:
    """Check a VOC tree, its cues and the files that came with it.

    Args:
        root: …/VOCdevkit/VOC2012.
        cues, input_list: as ``repro data fetch`` places them by default.
        quick: lists, cues, hashes of single files, and only the headers of images and masks.
        partial: a part of the sets is expected: the lists decide how many there are.
        pin: remember in the data folder's lock file what all images and masks are, if all is well. Where that has
            been done before, every full check compares.

    Raises InputError when ``root`` is no VOC tree. All other trouble is in the report.
    """
    layout = VocLayout.open(root)
    cues = cues or found_beside(root, CUE_NAMES) or data_folder(root) / CUE_NAMES[0]
    input_list = input_list or found_beside(root, INPUT_LIST_NAMES) or data_folder(root) / INPUT_LIST_NAMES[0]
    lock = LockFile(data_folder(root) / LOCK_NAME)
    lists, checks = _lists(layout, partial)
    pictures = _Pictures(layout, lists, quick)
    checks += [pictures.images, pictures.masks]
    checks += _cues(lists, cues, input_list, pictures.classes, partial)
    checks += _hashes(root, lock, partial)
    report = Report(str(root), quick, checks)
    if not quick:
        checks.append(_unchanged(pictures, root, lock, pin and report.ok))
    return report


def _lists(layout: VocLayout, partial: bool) -> tuple[dict[str, list[str]], list[Check]]:
    lists: dict[str, list[str]] = {}
    checks = []
    for name, count in COUNTS.items():
        path = layout.image_set(name)
        if name in ("test", "train") and not path.is_file() and (name == "test" or partial):
            continue
        check = Check(f"list {name}", expected=None if partial else count)
        checks.append(check)
        try:
            lists[name] = read_id_list(path)
        except InputError as error:
            check.troubles.append(str(error))
            continue
        check.found = len(lists[name])
        if name == "train_aug":
            both = set(lists[name]) & set(lists.get("val", ()))
            check.troubles += [f"{path}: {image} is in val as well" for image in sorted(both)]
    return lists, checks


class _Picture(NamedTuple):
    """An image and the masks that must fit it. Travels to the workers."""

    image: Path
    masks: tuple[Path, ...]
    quick: bool


class _Finding(NamedTuple):
    image_trouble: str
    mask_troubles: tuple[str, ...]
    size: int
    digest: bytes
    read: MaskSet
    is_turned: bool


class _Pictures:
    """Looks at every image of the lists and at the masks that it must have."""

    def __init__(self, layout: VocLayout, lists: dict[str, list[str]], quick: bool) -> None:
        masked = {name: [layout.masks] for name in (*lists.get("train", ()), *lists.get("val", ()))}
        if layout.masks_aug.is_dir():
            for name in (*lists.get("train_aug", ()), *lists.get("val", ())):
                masked.setdefault(name, []).append(layout.masks_aug)
        names = sorted({name for members in lists.values() for name in members})
        work = [
            _Picture(
                layout.image(name), tuple(folder / f"{name}.png" for folder in masked.get(name, ())), quick
            )
            for name in names
        ]
        self.images = Check("images", expected=len(work))
        self.masks = Check("masks", expected=sum(len(picture.masks) for picture in work))
        self.classes: dict[str, frozenset[int]] = {}  # of each image's masks, unless quick
        self.size = 0
        digest, read, turned = hashlib.sha256(), MaskSet(len(CLASS_NAMES)), 0
        for name, picture, finding in zip(
            names, work, mapped(_look_at, work, "images and masks"), strict=True
        ):
            self.images.found += not finding.image_trouble
            self.images.troubles += [finding.image_trouble] * bool(finding.image_trouble)
            self.masks.found += len(picture.masks) - len(finding.mask_troubles)
            self.masks.troubles += finding.mask_troubles
            self.size += finding.size
            self.classes[name] = frozenset(finding.read.seen)
            read.add(finding.read)
            turned += finding.is_turned
            digest.update(finding.digest)
        self.sha256 = digest.hexdigest()
        self.masks.troubles += [read.trouble()] * bool(read.trouble())
        remarks = ["headers only"] * quick
        if turned:
            remarks.append(f"{turned} carry an EXIF orientation, which is not applied")
        self.images.remark = "; ".join(remarks)
        self.masks.remark = "headers only" if quick else "; ".join(read.lines())


def _look_at(picture: _Picture) -> _Finding:
    digest, total = hashlib.sha256(), 0
    size: tuple[int, ...] | None = None
    trouble, mask_troubles, read = "", [], MaskSet(len(CLASS_NAMES))
    try:
        size = image_size(picture.image) if picture.quick else read_image_rgb(picture.image).shape[:2]
    except InputError as error:
        trouble = str(error)
    for path in picture.masks:
        try:
            mask = None if picture.quick else read.read(path)
            found = image_size(path) if mask is None else mask.shape
            if size is not None and found != size:
                mask_troubles.append(
                    f"{path}: {found[0]}x{found[1]}, the {size[0]}x{size[1]} of its image expected"
                )
        except InputError as error:
            mask_troubles.append(str(error))
    if not picture.quick:
        for path in (picture.image, *picture.masks):
            content = path.read_bytes() if path.is_file() else b""
            total += len(content)
            digest.update(hashlib.sha256(content).digest())
    return _Finding(trouble, tuple(mask_troubles), total, digest.digest(), read, is_turned(picture.image))


def _cues(
    lists: dict[str, list[str]],
    cues: Path,
    input_list: Path,
    classes: dict[str, frozenset[int]],
    partial: bool,
) -> list[Check]:
    """Each training image has an index and each index usable cues, of classes that its mask has."""
    names = lists.get("train_aug", [])
    listed = Check("input_list", expected=None if partial else TRAIN_AUG)
    usable = Check("cues", expected=len(names))
    try:
        indices = read_cue_indices(input_list)
        listed.found = len(indices)
    except InputError as error:
        listed.troubles.append(str(error))
        return [listed]
    try:
        file = CueFile.open(cues)
        usable.remark = file.grid_doubt(*GRID)
    except InputError as error:
        usable.troubles.append(str(error))
        return [listed, usable]
    compared = strangers = 0
    for name in names:
        if name not in indices:
            usable.troubles.append(f"{input_list}: {name} of train_aug is not in it")
            continue
        index = indices[name]
        try:
            file.check(index, len(CLASS_NAMES), *GRID)
        except InputError as error:
            usable.troubles.append(f"{name}: {error}")
            continue
        labels = set(file.labels(index).tolist())
        if beyond := set(file.cues(index)[0].tolist()) - {0, *labels}:
            usable.troubles.append(
                f"{name}: {cues}: index {index} has cues of class {min(beyond)}, not in its labels"
            )
            continue
        usable.found += 1
        if masked := classes.get(name):
            compared += 1
            strangers += not labels <= masked
    if compared:
        lacking = f"labels that the mask lacks: {strangers} of {compared} images"
        usable.remark = f"{lacking}; {usable.remark}" if usable.remark else lacking
        if strangers > _MOST_STRANGERS * compared:
            usable.troubles.append(
                f"{cues} and {input_list}: the labels of {strangers} of {compared} images are not in their masks; "
                "do list and cues belong together?"
            )
    return [listed, usable]


def _hashes(root: Path, lock: LockFile, partial: bool) -> list[Check]:
    """The single files beside the tree against the catalogue and their first use; of a part, against that alone."""
    check = Check("hashes")
    for name, source in read_catalogue().items():
        if partial:
            if name not in lock.pins:
                continue
            source = source.model_copy(update={"size": None, "md5": None, "sha256": None})
        path = data_folder(root) / source.to.removeprefix("DATA/")
        if not source.to.startswith("DATA/") or not path.is_file():
            continue
        check.expected = (check.expected or 0) + 1
        try:
            check_file(path, name, source, lock)
            check.found += 1
        except InputError as error:
            check.troubles.append(str(error))
    return [check] if check.expected else []


def _unchanged(pictures: _Pictures, root: Path, lock: LockFile, pin: bool) -> Check:
    """All images and masks against the time that they were pinned: bits on a disk may change."""
    name = f"{pictures.images.expected} images, {pictures.masks.expected} masks"
    check = Check("unchanged", remark=f"sha256 {pictures.sha256}")
    if pinned := lock.pins.get(name):
        if pinned.sha256 != pictures.sha256:
            check.troubles.append(
                f"{root}: sha256 of all was {pinned.sha256} on {pinned.first_used} ({lock.path})"
            )
        return check
    if pin:
        lock.pin(name, Pin(url=str(root), size=pictures.size, sha256=pictures.sha256, first_used=now()))
        check.remark += f", now pinned in {lock.path}"
    return check
