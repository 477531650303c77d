"""The embedded set: a small generated data set in VOC layout, so that every stage runs without any download.

Each image shows one to three objects of six classes on a ground of one or two materials, with clutter that
belongs to the ground, uneven light and noise. An object has a telling part in its class's colour and a second part,
whose hue lies between its class's and the next one's. The cue is one compact blob on 15-30 % of the telling part and
never on the second: precise and incomplete, as a classifier's are. A net that sees the cues alone cannot know whose
the second part is; it learns that from seeds that grow, as they grow into none but the image's classes. Nothing here
is taken from VOC, and no score on this set can be compared with a published one.

How the colours, the cues and the profile's schedule were chosen stands in ``docs/embedded_set.md``.

On disk (``root``)::

    JPEGImages/<id>.jpg
    SegmentationClass/<id>.png            palette masks, 255 on the borders of objects
    ImageSets/Segmentation/train_aug.txt  val.txt
    input_list.txt                        "<id>.jpg <cue index>", training images
    localization_cues.pickle              "<index>_labels", "<index>_cues" as in the SEC release
    mini.json                             parameters, class names and a hash of all the rest
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported when they are first used: no verb waits for more than it needs
from PIL import Image, ImageDraw

from repro.constants import VOID
from repro.data.voc import VocLayout, colour_palette
from repro.errors import InputError
from repro.files import write_json

log = logging.getLogger(__name__)

CLASSES = ("background", "fish", "mushroom", "house", "tree", "wheel", "bottle")
GRID = 15  # cells a side of the score grid for the 113×113 input of profile mini
MARKER = "mini.json"
GENERATOR = 5  # raised whenever the same seed gives other files, so that sets on disk are rebuilt

_FILES = (
    "JPEGImages/*.jpg",
    "SegmentationClass/*.png",
    "ImageSets/Segmentation/*.txt",
    "input_list.txt",
    "localization_cues.pickle",
)
_OWN_NAME = re.compile(
    r"(JPEGImages|SegmentationClass)/mini_(train|val)_\d{4,}\.(jpg|png)|ImageSets/Segmentation/(train_aug|val)\.txt|"
    r"input_list\.txt|localization_cues\.pickle|mini\.json"
)
_SCALE = 2  # drawn this much larger, then averaged, for smooth edges
# of images in pixels, the upper bound excluded: as VOC's, half as large again as in stage 1
_SIDES = (120, 217)

Points = npt.NDArray[np.float64]
Texture = Callable[[np.random.Generator, npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[Any]]


def build_mini(root: str | Path, *, seed: int = 0, train: int = 200, val: int = 40) -> VocLayout:
    """Build the embedded set under ``root`` unless it is there already, in a few seconds.

    The same arguments give the same images, masks and cues, and an image depends on the seed and its number
    alone: a larger set holds the smaller one. The set appears whole or not at all.

    Args:
        root: folder to hold the set. A set with other parameters, or one whose files were changed, is
            replaced, and whatever else lies in its folder stays; any other folder that is not empty is refused.
        seed: from 0.
        train, val: number of images, from 1.

    Returns:
        The layout under ``root``; cues and input list lie in ``root`` itself.

    Raises:
        InputError: ``root`` holds something else, or a number out of range.
    """
    for name, value, least in (("seed", seed, 0), ("train", train, 1), ("val", val, 1)):
        if value < least:
            raise InputError(f"embedded set: {name}={value}, expected {least} or more")
    target = Path(root).resolve() if Path(root).is_symlink() else Path(root)
    parameters = {"generator": GENERATOR, "seed": seed, "train": train, "val": val, "classes": list(CLASSES)}
    if _is_built(target, parameters):
        return VocLayout(target)
    if target.exists() and not (target / MARKER).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: expected a new or empty folder for the embedded set, or the set itself")

    how_long = "some seconds" if train + val < 100 else "half a minute or more"
    log.info("drawing the embedded set of %d images in %s, %s", train + val, target, how_long)
    target.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(dir=target.parent, prefix=".sec-dsrg-mini-"))
    try:
        fresh = workshop / "set"
        _write_set(VocLayout(fresh), seed, train, val)
        write_json(fresh / MARKER, {**parameters, "sha256": _content_hash(fresh)})
        if target.exists():
            target.rename(workshop / "old")
        try:
            fresh.rename(target)
        except OSError:
            if not _is_built(target, parameters):  # otherwise another process was faster
                raise
        _move_others(workshop / "old", target)
    finally:
        if not (workshop / "old").exists():
            shutil.rmtree(workshop)
    return VocLayout(target)


def _move_others(old: Path, target: Path) -> None:
    """Move what is not the set's from the old set's folder to the new one's, and remove the old set."""
    if not old.exists():
        return
    for folder, folders, files in os.walk(old):
        place = target / Path(folder).relative_to(old)
        for name in (*files, *folders):
            path = Path(folder, name)
            if (path.is_symlink() or not path.is_dir()) and not _OWN_NAME.fullmatch(
                path.relative_to(old).as_posix()
            ):
                place.mkdir(parents=True, exist_ok=True)
                path.rename(place / name)
    shutil.rmtree(old)


def _is_built(root: Path, parameters: dict[str, Any]) -> bool:
    try:
        marker = json.loads((root / MARKER).read_text(encoding="utf-8"))
        return bool(marker == {**parameters, "sha256": _content_hash(root)})
    except (OSError, ValueError):
        return False


def _content_hash(root: Path) -> str:
    """SHA-256 over names and bytes of the set's files; what others put beside them does not count."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _FILES for path in root.glob(pattern)):
        digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _write_set(layout: VocLayout, seed: int, train: int, val: int) -> None:
    for folder in (layout.images, layout.masks, layout.image_set("val").parent):
        folder.mkdir(parents=True)
    cues: dict[str, npt.NDArray[np.int64]] = {}
    for split, (name, image_set, count) in enumerate((("train", "train_aug", train), ("val", "val", val))):
        ids = [f"mini_{name}_{index:04d}" for index in range(count)]
        for index, image_id in enumerate(ids):
            rng = np.random.default_rng([seed, split, index])
            image, mask, instances, parts = _draw_scene(rng)
            Image.fromarray(image).save(layout.image(image_id), quality=92)
            picture = Image.fromarray(mask)
            picture.putpalette(colour_palette().tobytes())
            picture.save(layout.mask(image_id))
            if name == "train":
                cues[f"{index}_labels"] = np.setdiff1d(mask, [0, VOID]).astype(np.int64)
                cues[f"{index}_cues"] = _draw_cues(rng, mask, instances, parts)
        layout.image_set(image_set).write_text("".join(f"{i}\n" for i in ids), encoding="ascii")
        if name == "train":
            lines = (f"{image_id}.jpg {index}\n" for index, image_id in enumerate(ids))
            (layout.root / "input_list.txt").write_text("".join(lines), encoding="ascii")
    with (layout.root / "localization_cues.pickle").open("wb") as file:
        pickle.dump(cues, file, protocol=2)  # what Python 2, and so the originals, can read


# Colours and textures. A texture is a field in −1…1 over object coordinates that blends two colours.


def _colour(rng: np.random.Generator, hue: float, saturation: float, value: float) -> Points:
    """RGB 0–255 near an HSV colour."""
    jitter = rng.normal(0, [0.02, 0.06, 0.06])
    h = (hue + jitter[0]) % 1
    s, v = np.clip([saturation + jitter[1], value + jitter[2]], 0, 1)
    return 255 * np.array(colorsys.hsv_to_rgb(h, float(s), float(v)))


def _noise(rng: np.random.Generator, shape: tuple[int, ...], cell: float) -> npt.NDArray[Any]:
    """Smooth noise of unit variance; ``cell`` is the size of a blotch in pixels."""
    field = scipy.ndimage.gaussian_filter(rng.normal(size=shape).astype(np.float32), cell, mode="reflect")
    return (field - field.mean()) / max(float(field.std()), 1e-6)


def _stripes(angle: float, count: float) -> Texture:
    def texture(rng: np.random.Generator, u: npt.NDArray[Any], v: npt.NDArray[Any]) -> npt.NDArray[Any]:
        turned = angle + rng.normal(0, 0.12)
        along = u * np.cos(turned) + v * np.sin(turned)
        return np.sin(np.pi * count * rng.uniform(0.8, 1.25) * along + rng.uniform(0, 2 * np.pi))

    return texture


def _dots(count: float) -> Texture:
    def texture(rng: np.random.Generator, u: npt.NDArray[Any], v: npt.NDArray[Any]) -> npt.NDArray[Any]:
        k = np.pi * count * rng.uniform(0.8, 1.25)
        a, b = rng.uniform(0, 2 * np.pi, 2)
        return np.clip(2.5 * np.sin(k * u + a) * np.sin(k * v + b), -1, 1)

    return texture


def _bricks(count: float) -> Texture:
    def texture(rng: np.random.Generator, u: npt.NDArray[Any], v: npt.NDArray[Any]) -> npt.NDArray[Any]:
        k = count * rng.uniform(0.8, 1.25)
        row = np.floor(k * v)
        joint = np.minimum((k * v) % 1, (0.5 * k * u + 0.5 * (row % 2)) % 1 * 2)
        return np.where(joint < 0.3, 1.0, -1.0)

    return texture


def _spokes(count: int) -> Texture:
    def texture(rng: np.random.Generator, u: npt.NDArray[Any], v: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.clip(2 * np.sin(count * np.arctan2(v, u) + rng.uniform(0, 2 * np.pi)), -1, 1)

    return texture


def _blotches(size: float) -> Texture:
    def texture(rng: np.random.Generator, u: npt.NDArray[Any], v: npt.NDArray[Any]) -> npt.NDArray[Any]:
        pixel = abs(float(u[0, 1] - u[0, 0])) + abs(float(v[0, 1] - v[0, 0]))  # in object units
        return np.clip(_noise(rng, u.shape, size / pixel), -1, 1)

    return texture


# Objects: parts as polygons in a box of −1…1 (v down), the telling one drawn last, each with its colour (HSV).


@dataclass(frozen=True)
class _Part:
    outline: Points
    colour: tuple[float, float, float]
    second: tuple[float, float, float]  # the texture blends into this colour
    texture: Texture
    strength: float = 0.45


def _ellipse(cu: float, cv: float, ru: float, rv: float, start: float = 0, stop: float = 2) -> Points:
    """Points of an elliptic arc; angles in units of π, clockwise from the right."""
    angle = np.pi * np.linspace(start, stop, 48)
    return np.stack([cu + ru * np.cos(angle), cv + rv * np.sin(angle)], 1)


def _polygon(*points: tuple[float, float]) -> Points:
    return np.array(points, np.float64)


_RED, _YELLOW, _GREEN = (0.0, 0.9, 0.8), (0.16, 0.85, 0.9), (0.33, 0.85, 0.65)
_CYAN, _BLUE, _MAGENTA = (0.5, 0.85, 0.8), (0.63, 0.7, 0.95), (0.83, 0.75, 0.75)
# of second parts: 0.05 of the circle beyond their class's hue, a third of the way to the next class's
_ORANGE, _LIME, _TEAL = (0.05, 0.8, 0.8), (0.21, 0.8, 0.85), (0.38, 0.75, 0.65)
_AZURE, _VIOLET, _PINK = (0.55, 0.75, 0.8), (0.7, 0.65, 0.95), (0.88, 0.75, 0.75)
_WHITE, _GREY, _DARK = (0.1, 0.04, 0.95), (0.6, 0.06, 0.62), (0.65, 0.15, 0.2)
_STRAW, _SAND, _CREAM = (0.2, 0.25, 0.5), (0.1, 0.28, 0.75), (0.11, 0.15, 0.88)
_SNOW, _BROWN, _SOIL = (0.12, 0.05, 0.85), (0.07, 0.4, 0.4), (0.08, 0.3, 0.25)

_FAINT = 0.25  # of a second part's texture: its second colour may be a ground's

_OBJECTS: tuple[tuple[_Part, _Part], ...] = (
    (  # fish
        _Part(_polygon((0, 0), (1, -0.7), (0.9, 0), (1, 0.7)), _VIOLET, _WHITE, _stripes(1.57, 7), _FAINT),
        _Part(_ellipse(-0.3, 0, 0.7, 0.5), _BLUE, _WHITE, _stripes(0.0, 5)),
    ),
    (  # mushroom
        _Part(
            _polygon((-0.4, -0.1), (0.4, -0.1), (0.55, 0.95), (-0.55, 0.95)),
            _ORANGE,
            _WHITE,
            _blotches(0.08),
            _FAINT,
        ),
        _Part(_ellipse(0, 0.1, 0.95, 0.95, 1, 2), _RED, _WHITE, _dots(4)),
    ),
    (  # house
        _Part(
            _polygon((-0.8, -0.2), (0.8, -0.2), (0.8, 0.9), (-0.8, 0.9)), _AZURE, _BROWN, _bricks(6), _FAINT
        ),
        _Part(_polygon((-1, -0.05), (0, -0.98), (1, -0.05)), _CYAN, _DARK, _stripes(1.57, 9)),
    ),
    (  # tree
        _Part(
            _polygon((-0.45, 0), (0.45, 0), (0.55, 0.98), (-0.55, 0.98)),
            _TEAL,
            _BROWN,
            _stripes(0.0, 9),
            _FAINT,
        ),
        _Part(_ellipse(0, -0.3, 0.8, 0.68), _GREEN, _WHITE, _blotches(0.1)),
    ),
    (  # wheel
        _Part(_ellipse(0, 0, 0.95, 0.95), _LIME, _GREY, _blotches(0.05), _FAINT),
        _Part(_ellipse(0, 0, 0.6, 0.6), _YELLOW, _DARK, _spokes(6)),
    ),
    (  # bottle
        _Part(
            _polygon((-0.45, -0.98), (0.45, -0.98), (0.6, 0.1), (-0.6, 0.1)), _PINK, _WHITE, _dots(6), _FAINT
        ),
        _Part(
            _polygon((-0.5, -0.1), (0.5, -0.1), (0.6, 0.1), (0.6, 0.98), (-0.6, 0.98), (-0.6, 0.1)),
            _MAGENTA,
            _WHITE,
            _stripes(1.57, 4),
        ),
    ),
)

# Grounds: two colours blended by noise whose blotches are stretched (rows, columns), in parts of the image.
_GROUNDS = (
    (_STRAW, (0.18, 0.2, 0.65), (0.02, 0.008)),  # dry grass
    (_SAND, _CREAM, (0.01, 0.01)),
    (_SNOW, (0.1, 0.08, 0.7), (0.01, 0.06)),
    (_GREY, (0.1, 0.1, 0.45), (0.05, 0.05)),  # stone
    (_BROWN, _SOIL, (0.03, 0.03)),
)


def _draw_ground(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[Any]:
    """One or two materials, divided by a wavy line, and a few things that are no objects; float RGB."""
    kinds = rng.choice(len(_GROUNDS), 2, replace=False)
    fields = []
    for kind in kinds:
        first, second, (rows, columns) = _GROUNDS[kind]
        white = rng.normal(size=(height, width)).astype(np.float32)
        noise = scipy.ndimage.gaussian_filter(white, (rows * height, columns * height))
        blend = 1 / (1 + np.exp(-1.5 * noise / noise.std()))[..., None]
        fields.append(_colour(rng, *first) * (1 - blend) + _colour(rng, *second) * blend)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    if rng.random() < 0.4:
        ground = fields[0]
    else:
        wave = 0.03 * height * np.sin(columns / width * rng.uniform(4, 12) + rng.uniform(0, 6))
        line = rng.uniform(0.25, 0.75) * height + rng.uniform(-0.3, 0.3) * (columns - width / 2) + wave
        ground = np.where((rows < line)[..., None], fields[0], fields[1])
    colours = (_CREAM, _GREY, _DARK, _WHITE, _STRAW, _BROWN, _SNOW)
    for _ in range(rng.integers(0, 5)):
        size = rng.uniform(0.03, 0.08) * min(height, width)
        stretch = rng.uniform(0.6, 1.6)
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        inside = ((rows - y) / stretch) ** 2 + ((columns - x) * stretch) ** 2 < size**2
        ground[inside] = _colour(rng, *colours[rng.integers(len(colours))])
    return ground


def _draw_scene(
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Image (H, W, 3) and mask (H, W) uint8, number of the object at each pixel (0 = ground) and of its part."""
    height, width = (int(side) for side in rng.integers(*_SIDES, 2))
    h, w = _SCALE * height, _SCALE * width
    image = _draw_ground(rng, h, w)
    labels, instances, parts = (np.zeros((h, w), np.int64) for _ in range(3))
    classes = rng.choice(len(_OBJECTS), 2, replace=False) + 1
    wanted = rng.choice(3, p=[0.45, 0.4, 0.15]) + 1
    areas: list[int] = []
    for _ in range(12):
        class_id = int(classes[len(areas) % 2])
        window, drawn = _place_object(rng, class_id, h, w)
        shape = np.any([inside for inside, _ in drawn], 0)
        # A little overlap, as in photographs: what it covers must leave every object most of its area.
        covered = np.bincount(instances[window][shape], minlength=len(areas) + 1)[1:]
        if any(hidden > 0.2 * area for hidden, area in zip(covered, areas, strict=True)):
            continue
        areas.append(int(np.count_nonzero(shape)))
        labels[window][shape], instances[window][shape] = class_id, len(areas)
        for number, (inside, colours) in enumerate(drawn):
            image[window][inside], parts[window][inside] = colours[inside], number
        if len(areas) == wanted:
            break
    light = rng.normal(0, 0.16, 2)
    rows, columns = np.mgrid[:h, :w]
    image *= (rng.uniform(0.85, 1.1) + light[0] * (rows / h - 0.5) + light[1] * (columns / w - 0.5))[
        ..., None
    ]
    image = image.reshape(height, _SCALE, width, _SCALE, 3).mean((1, 3))
    image += rng.normal(0, rng.uniform(3, 9), image.shape)
    half = _SCALE // 2
    labels, instances, parts = (field[half::_SCALE, half::_SCALE] for field in (labels, instances, parts))
    border = scipy.ndimage.maximum_filter(instances, 3) != scipy.ndimage.minimum_filter(instances, 3)
    mask = np.where(border, VOID, labels).astype(np.uint8)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask, instances, parts


def _place_object(
    rng: np.random.Generator, class_id: int, height: int, width: int
) -> tuple[tuple[slice, slice], list[tuple[npt.NDArray[np.bool_], npt.NDArray[Any]]]]:
    """An object at a random place: a window of the image, and where in it each part is, with its colours."""
    size = rng.uniform(0.27, 0.42) * min(height, width) * rng.uniform(0.85, 1.2, 2)
    centre = rng.uniform([0.22 * width, 0.22 * height], [0.78 * width, 0.78 * height])
    angle, flip = rng.normal(0, 0.25), rng.choice([-1, 1])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    reach = np.abs(turn) @ size  # of the turned box around it
    left, top = (int(edge) for edge in np.maximum(centre - reach, 0))
    right, bottom = (int(edge) + 1 for edge in np.minimum(centre + reach, [width - 1, height - 1]))
    rows, columns = np.mgrid[top:bottom, left:right]
    offset = np.stack([columns - centre[0], rows - centre[1]]).reshape(2, -1)
    u, v = ((turn.T @ offset) / size[:, None]).reshape(2, *rows.shape)
    u = u * flip
    drawn = []
    for part in _OBJECTS[class_id - 1]:
        corners = (part.outline * [flip, 1] * size) @ turn.T + centre - [left, top]
        canvas = Image.new("1", (right - left, bottom - top))
        ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in corners], fill=1)
        blend = (0.5 + 0.5 * part.texture(rng, u, v))[..., None] * part.strength
        base = _colour(rng, *part.colour)
        drawn.append((np.array(canvas), base * (1 - blend) + _colour(rng, *part.second) * blend))
    return (slice(top, bottom), slice(left, right)), drawn


def _draw_cues(
    rng: np.random.Generator,
    mask: npt.NDArray[np.uint8],
    instances: npt.NDArray[np.int64],
    parts: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Cues (3, K) of (class, row, column): a blob in each object and two to four on the ground.

    The score grid is corner-aligned with the image: its first and last cells stand for the outermost pixels.
    """
    at = np.ix_(*(np.rint(np.linspace(0, side - 1, GRID)).astype(int) for side in mask.shape))
    labels, instances, parts = mask[at], instances[at], parts[at]
    cues = np.full((GRID, GRID), VOID)
    for instance in range(1, int(instances.max()) + 1):
        cells = (instances == instance) & (labels != VOID)
        if not cells.any():
            continue
        telling = cells & (parts == parts[cells].max())  # the second part where that is all one sees
        blob = _blob(rng, telling, rng.uniform(0.15, 0.3))
        cues[blob] = labels[blob]
    ground = labels == 0
    away = scipy.ndimage.distance_transform_cdt(instances == 0, "chessboard") * ground
    far = ground & (away >= min(2, away.max()))
    for _ in range(rng.integers(5, 9)):
        if far.any():
            cues[_blob(rng, far, rng.uniform(0.06, 0.12))] = 0
    rows, columns = np.nonzero(cues != VOID)
    order = np.argsort(cues[rows, columns], kind="stable")
    return np.stack([cues[rows, columns], rows, columns])[:, order].astype(np.int64)


def _blob(rng: np.random.Generator, cells: npt.NDArray[np.bool_], share: float) -> npt.NDArray[np.bool_]:
    """A compact, ragged piece around a random one of ``cells``, of that share of them if so many hang together."""
    row, column = rng.permutation(np.argwhere(cells))[0]
    rows, columns = np.mgrid[:GRID, :GRID]
    distance = np.hypot(rows - row, columns - column) + rng.uniform(0, GRID / 28, (GRID, GRID))
    distance[row, column] = -1
    region, _ = scipy.ndimage.label(cells, np.ones((3, 3)))
    piece = region == region[row, column]
    wanted = max(1, round(share * int(np.count_nonzero(cells))))
    return piece & (distance <= np.sort(distance[piece])[:wanted][-1])
