"""Masks that show classes as colours, or one object as 255, as masks of class indices.

    colours   RGB or RGBA in VOC's colours (also a palette whose order is not VOC's, read by its colours);
              (224, 224, 192), the border of VOC's objects, is void; what is transparent is background
    object    0 and another single value, 255 most often, or grey of 1, 2 or 4 bits with 0 and its brightest: class 1
    indices   what is there already, in grey of 2 or 4 bits, too

Which of these a set of masks is decides the whole set, not one mask: a mask that happens to hold 0 and 255 alone is one
of background and void where others show classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
from PIL import Image

from repro.constants import VOID
from repro.data.images import open_image, png_header
from repro.data.voc import colour_palette, grey_of_8_bits, write_mask
from repro.errors import InputError

Coding = Literal["colours", "object", "indices"]
CODINGS = get_args(Coding)


def recode_masks(
    source: Path, target: Path, num_classes: int, *, coding: Coding | None = None
) -> tuple[Coding, list[Path]]:
    """Write the masks of a folder as index masks of another, all or none.

    Args:
        source: a folder with masks in ``*.png`` (also BMP, TIFF, GIF).
        target: a new folder, or an empty one; never the source.
        num_classes: C, background included.
        coding: what the masks are; told by their pixels where it is not given.

    Returns:
        What they were taken for, and the new masks.

    Raises:
        InputError: no mask there, a target that holds something, a colour that is no class's (with file and place), a
            set that may be read in two ways, whatever cannot be read.
    """
    paths = _masks_in(source)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: exists already, a new folder for the masks expected")
    if target.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{target}: lies in {source}, a folder beside the masks expected")
    coding = coding or _coding(paths, num_classes)
    for path in paths:  # all are looked at before the first is written
        recoded(path, num_classes, coding)
    written = []
    for path in paths:
        written.append(target / f"{path.stem}.png")
        write_mask(written[-1], recoded(path, num_classes, coding))
    return coding, written


def _opened(path: str | os.PathLike[str]) -> Image.Image:
    """A mask; what is transparent in it is background, black."""
    image = open_image(path)
    if image.mode not in ("RGBA", "LA"):
        return image
    pixels = np.array(image.convert("RGBA"))
    alpha = pixels[:, :, 3]
    if ((alpha > 0) & (alpha < 255)).any():
        raise InputError(f"{os.fspath(path)}: half transparent pixels, opaque and transparent ones expected")
    pixels[alpha == 0, :3] = 0
    return Image.fromarray(pixels[:, :, :3].copy())


def recoded(path: str | os.PathLike[str], num_classes: int, coding: Coding) -> np.ndarray:
    """One mask as class indices, uint8 (H, W). Raises InputError as `recode_masks`."""
    image = _opened(path)
    if coding == "colours":
        return _indices_of_colours(path, image, num_classes)
    values = _grey_values(path, image)
    if coding == "object":
        present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
        if present.size > 2 or (present.size == 2 and present[0] != 0):
            raise InputError(
                f"{os.fspath(path)}: values {', '.join(map(str, present[:6]))}; expected 0 and one other for an object"
            )
        return (values > 0).astype(np.uint8)
    wrong = (values >= num_classes) & (values != VOID)
    if wrong.any():
        row, column = (int(at[0]) for at in np.nonzero(wrong))
        raise InputError(
            f"{os.fspath(path)}: class {values[row, column]} at row {row}, column {column}; expected "
            f"0 to {num_classes - 1} or {VOID}"
        )
    return values


def _masks_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of masks")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in (".png", ".bmp", ".tif", ".tiff", ".gif"):
            continue
        if path.stem in found:
            raise InputError(f"{folder}: {found[path.stem].name} and {path.name} would be one mask")
        found[path.stem] = path
    if not found:
        raise InputError(
            f"{folder}: no mask (*.png) in it; JPEG changes colours at every edge, so it cannot hold one"
        )
    return list(found.values())


def _coding(paths: Sequence[Path], num_classes: int) -> Coding:
    """What all masks of a set are."""
    kinds = {path: _colouring(path) for path in paths}
    if coloured := next((path for path, kind in kinds.items() if kind == "colours"), None):
        if plain := next((path for path, kind in kinds.items() if kind == "values"), None):
            raise InputError(
                f"{plain}: grey values, while {coloured} holds colours; a folder of one kind expected"
            )
        return "colours"
    seen: set[int] = set()
    for path in paths:
        seen.update(np.unique(_grey_values(path, _opened(path))).tolist())
    others = seen - {0, VOID}
    if not others - {1} and (VOID not in seen or 1 in seen):
        return "indices"
    if others and max(others) < num_classes:
        return "indices"
    if len(seen - {0}) == 1 and not (others and "either" in kinds.values()):
        return "object"
    values = ", ".join(map(str, sorted(seen)[:8]))
    others_of_it = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    raise InputError(
        f"{paths[0]}{others_of_it}: values {values} may be anything, indices below {num_classes} or 0 and 255 "
        f"expected; --coding {', '.join(CODINGS[:-1])} or {CODINGS[-1]} says what they are"
    )


def _colouring(path: Path) -> Literal["colours", "values", "either"]:
    """How a mask is to be read: by colours where it shows some, or has a palette that gives VOC's colours to other
    indices than VOC does. Black and grey pixels, and VOC's own palette, may go with either."""
    image = _opened(path)
    if image.mode == "RGB":
        pixels = np.asarray(image)
        return "either" if (pixels == pixels[:, :, :1]).all() else "colours"
    if image.mode != "P":
        return "values"
    palette = np.asarray(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    used = np.unique(np.asarray(image))
    used = used[used < len(palette)]
    index_of = _index_of_colour(256)
    of_voc = [index_of.get(tuple(palette[index].tolist())) for index in used.tolist()]
    if None in of_voc:
        return "values"
    return "either" if of_voc == used.tolist() else "colours"


def _index_of_colour(num_classes: int) -> dict[tuple[int, ...], int]:
    colours = [tuple(colour) for colour in colour_palette().tolist()]
    return {colour: index for index, colour in enumerate(colours) if index < num_classes or index == VOID}


def _indices_of_colours(path: str | os.PathLike[str], image: Image.Image, num_classes: int) -> np.ndarray:
    if image.mode not in ("RGB", "P", "L", "1"):
        raise InputError(f"{os.fspath(path)}: mode {image.mode!r}; expected colours (RGB)")
    pixels = np.asarray(image.convert("RGB"), np.int64)
    packed = (pixels[:, :, 0] << 16) | (pixels[:, :, 1] << 8) | pixels[:, :, 2]
    codes, places = np.unique(packed, return_inverse=True)
    index_of = _index_of_colour(num_classes)
    indices = [index_of.get((code >> 16, code >> 8 & 255, code & 255)) for code in codes.tolist()]
    if None in indices:
        unknown = indices.index(None)
        row, column = (int(at[0]) for at in np.nonzero(places.reshape(packed.shape) == unknown))
        code = int(codes[unknown])
        raise InputError(
            f"{os.fspath(path)}: colour ({code >> 16}, {code >> 8 & 255}, {code & 255}) at row {row}, column {column}, "
            f"one of VOC's colours of the {num_classes} classes expected"
        )
    return np.array(cast("list[int]", indices), np.uint8)[places].reshape(packed.shape)


def _grey_values(path: str | os.PathLike[str], image: Image.Image) -> np.ndarray:
    """The values of a mask as its file holds them: of grey below 8 bits before they are stretched to 255."""
    if image.mode == "1":
        return np.asarray(image, np.uint8)
    if image.mode == "RGB":
        pixels = np.asarray(image)
        if (pixels != pixels[:, :, :1]).any():
            raise InputError(f"{os.fspath(path)}: colours; expected grey values")
        return pixels[:, :, 0].copy()
    if image.mode not in ("P", "L", "I;16"):
        raise InputError(f"{os.fspath(path)}: mode {image.mode!r}; expected grey, a palette or RGB")
    values = grey_of_8_bits(os.fspath(path), np.array(image))
    if image.format == "PNG" and image.mode == "L" and (bits := png_header(path)[0]) < 8:
        values //= 255 // (2**bits - 1)
    return values
