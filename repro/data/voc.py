"""The layout, classes and masks of PASCAL VOC 2012."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from repro.constants import CLASS_NAMES, VOID
from repro.data.images import open_image, png_header
from repro.errors import InputError
from weights_conversion.files import atomic_path


def colour_palette() -> np.ndarray:
    """The VOC colours, uint8 (256, 3) RGB, by the development kit's rule (``VOClabelcolormap``).

    Bits 0, 1, 2 of the index are bit 7 of red, green, blue; bits 3, 4, 5 their bit 6; and so on downwards.
    """
    index = np.arange(256)
    channels = [sum(((index >> (3 * k + c)) & 1) << (7 - k) for k in range(3)) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


@dataclass(frozen=True)
class VocLayout:
    """Where things are under ``root`` (…/VOCdevkit/VOC2012). Paths are named, not checked; see `open`."""

    root: Path

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> VocLayout:
        """The layout of an existing data set. Raises InputError when ``root`` has no folder JPEGImages."""
        layout = cls(Path(root))
        check_unpacked(layout.root)
        if not layout.images.is_dir():
            near = next((path for path in _nearby(layout.root) if (path / "JPEGImages").is_dir()), None)
            raise InputError(
                f"{layout.root}: no VOC data set, a folder with JPEGImages in it expected"
                + (f"; did you mean {near}?" if near else ", such as VOCdevkit/VOC2012")
            )
        return layout

    @property
    def images(self) -> Path:
        return self.root / "JPEGImages"

    @property
    def masks(self) -> Path:
        """Palette PNGs of VOC itself."""
        return self.root / "SegmentationClass"

    @property
    def masks_aug(self) -> Path:
        """Grey index PNGs of the augmented set (VOC and SBD together), for all of train_aug and val."""
        return self.root / "SegmentationClassAug"

    def image(self, name: str) -> Path:
        return self.images / f"{name}.jpg"

    def mask(self, name: str) -> Path:
        return self.masks / f"{name}.png"

    def mask_aug(self, name: str) -> Path:
        return self.masks_aug / f"{name}.png"

    def image_set(self, name: str) -> Path:
        """The list of an image set: ``train``, ``val``, ``trainval``, ``test``, ``train_aug``."""
        return self.root / "ImageSets" / "Segmentation" / f"{name}.txt"


def check_unpacked(root: Path) -> None:
    """Raise InputError where a file, such as the archive of a data set, is given for its folder."""
    if root.is_file():
        raise InputError(
            f"{root}: a file, a folder expected; an archive has to be unpacked first "
            f"(repro data fetch --from {root.parent} unpacks the papers' ones)"
        )


def _nearby(root: Path) -> Iterator[Path]:
    """Folders a level or two from ``root``, which people name in place of VOC2012."""
    yield from root.parents[:2]
    for level in ("*", "*/*"):
        yield from sorted(path.parent for path in root.glob(f"{level}/JPEGImages"))


CUE_NAMES = ("localization_cues.h5", "localization_cues.pickle", "localization_cues.pickle.gz")
INPUT_LIST_NAMES = ("input_list.txt",)


def data_folder(root: str | os.PathLike[str]) -> Path:
    """Where the cues, lists and weights of a VOC tree lie: beside ``VOCdevkit``, or in a tree of another name."""
    resolved = Path(root).resolve()
    return resolved.parent.parent if resolved.parent.name == "VOCdevkit" else resolved


def found_beside(root: str | os.PathLike[str], names: Sequence[str]) -> Path | None:
    """The first file of these names in a VOC tree or in its `data_folder`."""
    candidates = (folder / name for folder in (Path(root), data_folder(root)) for name in names)
    return next((path for path in candidates if path.is_file()), None)


# --- masks --------------------------------------------------------------------------------------------------


class MaskDoubt(NamedTuple):
    """What about a mask looks like another format than class indices: its kind, and a line's words for it."""

    kind: str
    words: str


def read_mask(path: str | os.PathLike[str], num_classes: int = len(CLASS_NAMES)) -> np.ndarray:
    """Read a mask's class indices, uint8 (H, W), from a palette PNG or a grey PNG; never its colours.

    Grey of 16 bits is read as its values, which have to be below 256. Raises InputError for a file that is no readable
    PNG, one that holds colours (RGB and the like), grey of 2 or 4 bits, and one with an index that is neither below
    ``num_classes`` nor 255.
    """
    return read_doubtful_mask(path, num_classes)[0]


def read_doubtful_mask(
    path: str | os.PathLike[str], num_classes: int = len(CLASS_NAMES)
) -> tuple[np.ndarray, MaskDoubt | None]:
    """`read_mask`, and what about the file looks like another format, if anything does."""
    name = os.fspath(path)
    image = open_image(path)
    if image.format != "PNG":
        raise InputError(f"{name}: a {image.format} image, a PNG of class indices expected")
    doubt: MaskDoubt | None = None
    if image.mode == "1":  # grey of one bit: its white is 255, as a PNG optimiser leaves it of {0, 255}
        image = image.convert("L")
        doubt = MaskDoubt("1 bit", "grey of 1 bit, whose white is read as void (255), not as class 1")
    if image.mode not in ("P", "L", "I;16"):
        raise InputError(
            f"{name}: mode {image.mode!r}; expected a palette or 8-bit grey PNG of indices (repro data masks)"
        )
    if image.mode == "L" and (bits := png_header(path)[0]) in (2, 4):
        raise InputError(
            f"{name}: grey of {bits} bits, whose 1 is class 1 to some tools and {255 // (2**bits - 1)} to others; "
            "a palette or 8-bit grey PNG of indices expected (repro data masks)"
        )
    mask = grey_of_8_bits(name, np.array(image))
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    beyond = present[(present >= num_classes) & (present != VOID)]
    if beyond.size:
        raise InputError(f"{name}: class {beyond[0]}; expected 0 to {num_classes - 1} or {VOID}")
    return mask, doubt or (_palette_doubt(image, present, num_classes) if image.mode == "P" else None)


def grey_of_8_bits(name: str, values: np.ndarray) -> np.ndarray:
    """The values of a mask as uint8. Raises InputError where they are of 16 bits and beyond 255."""
    if values.dtype != np.uint8 and (largest := int(values.max(initial=0))) > 255:
        raise InputError(
            f"{name}: grey of 16 bits with the value {largest}, class indices below 256 expected"
        )
    return values.astype(np.uint8, copy=False)


def _palette_doubt(image: Image.Image, present: np.ndarray, num_classes: int) -> MaskDoubt | None:
    """An index in the mask whose colour is the one that VOC gives to another class. Black is any tool's filling."""
    colours = np.asarray(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    class_of = {
        colour.tobytes(): index for index, colour in enumerate(colour_palette()[1:num_classes], start=1)
    }
    for index in present[present < min(len(colours), num_classes)].tolist():
        other = class_of.get(colours[index].tobytes(), index)
        if other != index:
            words = f"its index {index} has VOC's colour of class {other}; indices are read, not colours"
            return MaskDoubt("palette", words)
    return None


def write_mask(path: str | os.PathLike[str], mask: np.ndarray) -> None:
    """Write class indices, uint8 (H, W), as a PNG with the VOC palette, atomically."""
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise InputError(f"{os.fspath(path)}: mask of {mask.dtype} {mask.shape}, uint8 of (H, W) expected")
    image = Image.fromarray(mask)
    image.putpalette(colour_palette().tobytes())
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
