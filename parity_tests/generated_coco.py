"""A small set in COCO's layout: every class among its objects, polygons of one and two parts, crowds of both kinds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from repro.constants import VOID
from repro.data import COCO_CLASS_NAMES, write_mask

# COCO numbers its 80 classes 1 to 90; these numbers are not used
_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CATEGORY_IDS = [number for number in range(1, 91) if number not in _GAPS]


def write_coco(root: Path, *, train: int = 40, val: int = 4, grid: int = 41) -> None:
    """``train2014``, ``val2014``, ``annotations`` and ``cues`` under ``root``; two objects of two classes an image."""
    rng = np.random.default_rng(5)
    for split, count in (("train2014", train), ("val2014", val)):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for index in range(count):
            number, name = 7 * index + 3, f"COCO_{split}_{7 * index + 3:012d}"
            width, height = (int(side) for side in rng.integers(50, 90, 2))
            picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            images.append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
            cues = np.full((grid, grid), VOID, np.uint8)
            cues[-4:] = 0
            for part, class_index in enumerate((2 * index % 80 + 1, (2 * index + 1) % 80 + 1)):
                left, top = 4 + part * width // 2, int(rng.integers(3, height // 3))
                box = (left, top, left + width // 3, top + height // 2)
                ImageDraw.Draw(picture).rectangle(box, fill=tuple(3 * class_index + k for k in range(3)))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": CATEGORY_IDS[class_index - 1],
                        "iscrowd": int(index % 4 >= 2),
                        "segmentation": _outline(box, height, width, index % 4),
                    }
                )
                cues[10:16, 10 + 20 * part : 15 + 20 * part] = class_index
            picture.save(root / split / f"{name}.jpg")
            if split == "train2014":
                write_mask(root / "cues" / split / f"{name}.png", cues)
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": n, "name": name} for n, name in zip(CATEGORY_IDS, COCO_CLASS_NAMES[1:], strict=True)
            ],
        }
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))


def _outline(box: tuple[int, int, int, int], height: int, width: int, form: int):
    """The box as a polygon, as two polygons, as run lengths, as COCO's compressed run lengths."""
    left, top, right, bottom = box
    middle = (top + bottom) // 2
    if form == 0:
        return [[left, top, right, top, right, bottom, left, bottom]]
    if form == 1:
        return [
            [left, top, right, top, right, middle, left, middle],
            [left, middle, right, middle, right, bottom, left, bottom],
        ]
    inside = np.zeros((height, width), np.uint8, order="F")
    inside[top:bottom, left:right] = 1
    if form == 2:
        runs = np.flatnonzero(np.diff(inside.ravel(order="F"), prepend=0, append=0))
        return {
            "size": [height, width],
            "counts": [*np.diff(runs, prepend=0).tolist(), inside.size - int(runs[-1])],
        }
    packed = coco_mask.encode(inside)
    return {"size": [height, width], "counts": packed["counts"].decode()}
