"""A look at the headers of a set of images: what in them is not used, told in a line each."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from repro.data.images import open_header

log = logging.getLogger(__name__)

_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
LOOKED_AT = 2000  # of a larger set so many, evenly: on a network 80,000 headers take minutes


def is_turned(path: str | os.PathLike[str]) -> bool:
    """Whether the file carries an EXIF orientation that readers here do not apply; False for one that is no image."""
    return _unused(path)[0]


def survey_images(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Log, and return, a line each for images that carry an EXIF orientation, for those of several frames and for PNGs
    with a palette.

    Pixels are taken as they are stored, because masks and cues carry no orientation (OpenCV before 3.1 and Pillow
    read so, too); of an animation the first frame is taken; a PNG with a palette, as masks have one, is read as an
    image of its colours. Files that are no images are left to their readers.
    """
    chosen = paths[:: -(-len(paths) // LOOKED_AT)] if paths else []
    found = [(path, *_unused(path)) for path in chosen]
    lines = []
    for what, those in (
        ("carry an EXIF orientation, which is not applied", [path for path, turned, *_ in found if turned]),
        (
            "have several frames, of which the first is taken",
            [path for path, _, frames, _ in found if frames],
        ),
        (
            "are PNGs with a palette, as masks are; they are read as photographs",
            [path for path, *_, mask in found if mask],
        ),
    ):
        if those:
            looked_at = "" if len(chosen) == len(paths) else f" looked at ({len(paths)} in all)"
            lines.append(
                f"{len(those)} of {len(chosen)} images{looked_at} {what}; the first: {os.fspath(those[0])}"
            )
            log.warning("%s", lines[-1])
    return lines


def _unused(path: str | os.PathLike[str]) -> tuple[bool, bool, bool]:
    """Whether there are an orientation, further frames, and a PNG's palette."""
    if not os.path.isfile(path):
        return False, False, False  # opening a pipe would wait for its writer
    try:
        with open_header(os.fspath(path)) as image:
            # Pillow turns TIFFs itself, and has their size after that
            turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) not in (0, 1)
            frames = bool(getattr(image, "is_animated", False))
            return turned, frames, image.format == "PNG" and image.mode == "P"
    except Exception:  # a damaged file raises whatever its decoder does; who reads it says so
        return False, False, False
