"""Reading images, and making a net's input of them."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from repro.constants import MEAN_BGR
from repro.errors import InputError, line_of
from repro.layers.resize import ArrayT, zoom_linear
from weights_conversion.files import check_plain

MAX_PIXELS = 64 * 1024 * 1024
"""More pixels than this is taken for a damaged or hostile header (VOC and COCO stay below 0.5 M)."""

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""By which a folder's images are told from its other files, in any case."""

# The formats that image sets come in. Naming them keeps Pillow from trying its rarer decoders on a bad file.
_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "GIF", "WEBP")
# Modes that Pillow turns into RGB without a loss of range; 16-bit and float images are not among them.
_COLOUR_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})

log = logging.getLogger(__name__)


def find_images(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """The images of a folder (not of its sub-folders), name without suffix -> path, sorted by name.

    Hidden files (``.name``, as macOS leaves them) are none; other files and sub-folders are counted in the log.
    Raises InputError for a folder that is not there or has none, and for two images of one name.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder of images")
    found: dict[str, Path] = {}
    others: list[str] = []
    folders: list[str] = []
    for file in sorted(path.iterdir()):
        if file.name.startswith("."):
            continue
        if file.suffix.lower() in IMAGE_SUFFIXES:
            if file.stem in found:
                raise InputError(f"{path}: {found[file.stem].name} and {file.name} would share a mask")
            found[file.stem] = file
        elif file.is_file():
            others.append(file.name)
        elif file.is_dir():
            folders.append(file.name)
    if folders:
        log.info("%s: %d sub-folders are not looked into; the first: %s", path, len(folders), folders[0])
    if not found:
        raise InputError(f"{path}: no image ({', '.join(IMAGE_SUFFIXES)}) in it")
    if others:
        what = "are not taken for images by their names"
        log.info("%s: %d files %s; the first: %s", path, len(others), what, others[0])
    return found


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Open and fully decode an image file of any mode.

    Of an animation it is the first frame.
    Raises InputError naming the file for one that is missing, empty, truncated, damaged, of another format than
    JPEG, PNG, BMP, PPM, TIFF, GIF or WebP, or above `MAX_PIXELS` (seen in the header, before it is decoded).
    """
    return _opened(os.fspath(path), decode=True)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width as an image's header has them; the pixels are not looked at. Errors as `open_image`."""
    width, height = _opened(os.fspath(path), decode=False).size
    return height, width


def png_header(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Bits per channel and colour type of a PNG file that `open_image` has read: Pillow does not tell the bits."""
    with open(path, "rb") as file:
        # signature, and the chunk IHDR: length, name, width, height, bits, colour type
        header = file.read(26)
    return header[24], header[25]


def _opened(name: str, *, decode: bool, grey: bool = False) -> Image.Image:
    check_plain(name)
    if not os.path.isfile(name):
        raise InputError(f"{name}: no such image file")
    if os.path.getsize(name) == 0:
        raise InputError(f"{name}: the image file is empty (0 bytes)")
    try:
        with open_header(name) as image:
            width, height = image.size
            if decode and width * height <= MAX_PIXELS:
                if grey:
                    image.draft("L", image.size)  # of a JPEG the luma as it is stored
                image.load()
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"{name}: not an image of a known format ({', '.join(_FORMATS)} expected)"
        ) from error
    except Exception as error:  # damaged data makes the decoders raise OSError, SyntaxError, struct.error …
        raise InputError(
            f"{name}: the image file is damaged ({line_of(error)}), a whole one expected"
        ) from error
    if width * height > MAX_PIXELS:
        raise InputError(f"{name}: {width}x{height} pixels claimed, at most {MAX_PIXELS} in all expected")
    return image


def open_header(name: str) -> Image.Image:
    """An image whose pixels are still in the file. `MAX_PIXELS` is stricter than Pillow's own limit, and its
    refusal names width and height; Pillow's is of the whole process, so it is passed by here and not changed."""
    Image.init()
    with open(name, "rb") as file:
        prefix = file.read(16)
    for kind in _FORMATS:
        make, accepts = Image.OPEN[kind]
        if accepts is None or accepts(prefix) is True:
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # how Pillow's readers decline
                return make(name, name)  # type: ignore[arg-type]  # a path does, and the image closes its file
    raise Image.UnidentifiedImageError(name)


def read_image_rgb(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image as uint8 (H, W, 3) RGB. A grey image is repeated into three channels, alpha is dropped.

    Pixels are taken as stored: an EXIF orientation is not applied, because masks and cues carry none.
    Raises InputError as `open_image` does, and for a mode without 8-bit colours (16-bit or float images).
    """
    return np.array(_of_8_bits(os.fspath(path)).convert("RGB"), dtype=np.uint8)


def _of_8_bits(name: str, *, grey: bool = False) -> Image.Image:
    image = _opened(name, decode=True, grey=grey)
    if image.mode not in _COLOUR_MODES:
        raise InputError(f"{name}: image mode {image.mode!r}; expected 8-bit grey or colour")
    if image.format == "PNG" and (bits := png_header(name)[0]) > 8:
        raise InputError(f"{name}: a PNG of {bits} bits; expected 8-bit grey or colour")
    return image


def read_image_bgr(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image as uint8 (H, W, 3) BGR, the array ``cv2.imread(path, cv2.IMREAD_COLOR)`` gives.

    Equal bit for bit on the JPEGs of VOC and on PNGs. Known to differ: OpenCV 3.1 and later turn an image by
    its EXIF orientation (the releases' OpenCV 2.4 did not), convert CMYK JPEGs otherwise, and return a
    truncated JPEG half grey where this raises. Errors as in `read_image_rgb`.
    """
    return np.ascontiguousarray(read_image_rgb(path)[:, :, ::-1])


def read_image_grey(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image as uint8 (H, W), the array ``cv2.imread(path, cv2.IMREAD_GRAYSCALE)`` gives.

    A JPEG's grey is its luma as it is stored, a PNG's is libpng's (in linear light where the file states a gamma),
    that of other formats a rounded 0.299 R + 0.587 G + 0.114 B. Equal bit for bit but for WebP and GIF, where OpenCV 4
    has one more bit of these weights: at most 1 apart, in up to 1 % of the pixels. For the rest as `read_image_bgr`.
    """
    image = _of_8_bits(os.fspath(path), grey=True)
    if image.mode == "L":
        return np.array(image)
    rgb = np.array(image.convert("RGB"), np.int64)
    if image.format == "PNG":
        gamma = 0.45455 if "srgb" in image.info else image.info.get("gamma") or 1.0
        return _grey_of_png(rgb, gamma)
    return ((rgb @ (4899, 9617, 1868) + (1 << 13)) >> 14).astype(np.uint8)


def _grey_of_png(rgb: np.ndarray, gamma: float) -> np.ndarray:
    """``png_set_rgb_to_gray(png, 1, 0.299, 0.587)`` of libpng: without rounding, or with, on rounded linear values."""
    weights = np.array([9797, 19234, 3737])
    powers = round(1 / gamma, 5), gamma
    if all(map(_is_one, powers)):
        return ((rgb @ weights) >> 15).astype(np.uint8)
    linear, stored = (
        np.arange(256)
        if _is_one(power)
        else np.floor(255 * (np.arange(256) / 255) ** power + 0.5).astype(np.int64)
        for power in powers
    )
    grey = stored[(linear[rgb] @ weights + (1 << 14)) >> 15]
    return np.where((rgb == rgb[..., :1]).all(-1), rgb[..., 0], grey).astype(np.uint8)


def _is_one(power: float) -> bool:
    """Whether libpng takes a power for 1 (``png_gamma_significant``)."""
    return 0.95 <= power <= 1.05


# --- from image to blob -------------------------------------------------------------------------------------


def subtract_mean(image_bgr: np.ndarray, mean: Sequence[float] | np.ndarray = MEAN_BGR) -> np.ndarray:
    """(H, W, 3) BGR in 0–255 to the ``images`` blob's float32 (3, H, W): mean subtracted, nothing scaled."""
    blob = image_bgr.astype(np.float32) - np.asarray(mean, dtype=np.float32)
    return np.ascontiguousarray(blob.transpose(2, 0, 1))


def preprocess_zoomed(
    image_rgb: ArrayT, factors: tuple[float, float], mean: Sequence[float] = MEAN_BGR
) -> ArrayT:
    """``preprocess`` of the releases' test scripts: zoom the float RGB image, swap to BGR, subtract the mean.

    Args:
        image_rgb: (H, W, 3), 0–255; NumPy array or torch tensor on any device, which does the work there.
        factors: for height and width; the scripts give ``(size / H, size / W)`` or the scale twice.
    Returns: float32 (3, H', W') of the same kind, on the same device.
    """
    if not isinstance(image_rgb, torch.Tensor):
        pixels = torch.from_numpy(np.ascontiguousarray(image_rgb))
        return preprocess_zoomed(pixels, factors, mean).numpy()
    zoomed = zoom_linear(image_rgb.float(), (*factors, 1.0))
    planes = zip(reversed(zoomed.unbind(-1)), mean, strict=True)
    return torch.stack([plane - of_plane for plane, of_plane in planes])
