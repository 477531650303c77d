"""Segmenting many image files: one mechanism for every engine.

Files are read ahead and masks are written behind in threads, images of equal size go to the engine together, masks
that are there already are kept, and an image that cannot be used does not stop the others.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from repro import distributed
from repro.data import read_image_rgb, write_mask
from repro.data.image_survey import survey_images
from repro.errors import InputError
from repro.run_folder import check_no_others, check_settings, keep_settings

log = logging.getLogger(__name__)

_FILE_THREADS = 4  # decoding and PNG compression leave the interpreter's lock alone
_SILENCE = 30.0  # seconds at least between two lines where no bar is shown
_GROUPS_HELD = 8  # batches' worth of images that may wait for others of their size


class Segmenter(Protocol):
    """An engine that turns images into masks."""

    @property
    def batch_size(self) -> int:
        """The most images that one call takes."""

    def masks(self, images: np.ndarray, labels: Sequence[Sequence[int]] | None = None) -> np.ndarray:
        """Masks (N, H, W) uint8 of images (N, H, W, 3) uint8 RGB; ``labels`` restrict each image's classes.

        Raises InputError for images that this engine cannot take.
        """


def check_masks_folder(out_dir: Path, images: Mapping[str, Path]) -> None:
    """Raise InputError where masks of ``images`` (id -> path) would not stand alone: the images' own folder, whose next
    reader would take them for images; files under their names that are not known to be masks (no ``settings.json``:
    photographs, ground truth); a file in the folder's place."""
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError(f"{out_dir}: a file, a folder for the masks expected")
    if os.path.realpath(out_dir) in map(os.path.realpath, {path.parent for path in images.values()}):
        raise InputError(f"{out_dir}: the images are in this folder, another one for the masks expected")
    check_no_others(out_dir, *(f"{name}.png" for name in images))


@dataclass
class FolderResult:
    """``written`` masks are new, ``kept`` were there; ``failures`` maps an id to the one line that says why."""

    written: int = 0
    kept: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def predict_folder(
    segmenter: Segmenter,
    images: Mapping[str, Path],
    out_dir: Path,
    *,
    described: dict[str, Any],
    labels: Callable[[str], Sequence[int]] | None = None,
    title: str = "predict",
) -> FolderResult:
    """Segment images into palette PNGs ``<out_dir>/<id>.png``; those already there are kept, so it resumes.

    Several ranks share the images that are missing and write their own masks; each returns the result of all.

    Args:
        segmenter: the engine.
        images: id -> path of the image.
        out_dir: made when the first mask is ready.
        described: settings of the masks (``describe``); kept in the folder, and others are refused there.
        labels: class ids of an image, by its id; where given, they restrict the argmax.
        title: of the progress bar.

    Raises:
        InputError: a folder of masks made with other settings; as `check_masks_folder`. An image that cannot be read
            or segmented is no error here: the others are segmented, and the result names it.
    """
    check_masks_folder(out_dir, images)
    if distributed.is_first():
        survey_images(list(images.values()))
    described = json.loads(json.dumps(described))
    check_settings(out_dir, described)
    absent = [name for name in images if not os.path.exists(out_dir / f"{name}.png")]
    absent = distributed.from_first(absent)  # another rank may be writing already
    kept = len(images) - len(absent)
    missing = {name: images[name] for name in absent[distributed.rank() :: distributed.size()]}
    result = FolderResult(kept=kept)
    bar = tqdm(
        desc=title,
        unit="image",
        total=kept + len(missing),
        initial=kept,
        disable=None if distributed.is_first() else True,
        dynamic_ncols=True,
    )
    writes: deque[tuple[str, Future[None]]] = deque()
    told = time.monotonic()

    def finish_write() -> None:
        name, write = writes.popleft()
        try:
            write.result()
            result.written += 1
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            result.failures[name] = f"{images[name]}: its mask {name}.png: {error.strerror}"

    with bar, ThreadPoolExecutor(_FILE_THREADS) as pool:
        try:
            for batch in _batches(missing, segmenter.batch_size, pool, result.failures):
                names, pictures = list(batch), np.stack(list(batch.values()))
                try:
                    masks = segmenter.masks(pictures, [labels(name) for name in names] if labels else None)
                except InputError as error:
                    result.failures.update({name: f"{images[name]}: {error}" for name in names})
                    continue
                keep_settings(out_dir, described)
                for name, mask in zip(names, masks, strict=True):
                    writes.append((name, pool.submit(write_mask, out_dir / f"{name}.png", mask)))
                while len(writes) > 2 * segmenter.batch_size:
                    finish_write()
                done = result.kept + result.written + len(writes) + len(result.failures)
                bar.update(done - bar.n)
                if bar.disable and distributed.is_first() and time.monotonic() - told > _SILENCE:
                    log.info("%s: %d of %d images", title, done, kept + len(missing))
                    told = time.monotonic()
            while writes:
                finish_write()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        bar.update(kept + len(missing) - bar.n)
    parts = distributed.gathered(result)
    failures = {name: reason for part in parts for name, reason in part.failures.items()}
    return FolderResult(
        sum(part.written for part in parts),
        kept,
        {name: failures[name] for name in images if name in failures},
    )


def _batches(
    images: Mapping[str, Path], size: int, pool: ThreadPoolExecutor, failures: dict[str, str]
) -> Iterator[dict[str, np.ndarray]]:
    """Decoded images in batches of one shape, by id; nothing waits for others longer than ``_GROUPS_HELD`` batches."""
    groups: dict[tuple[int, ...], dict[str, np.ndarray]] = {}
    for name, reading in _read_ahead(images, 2 * size, pool):
        try:
            image = reading.result()
        except InputError as error:
            failures[name] = str(error)
            continue
        groups.setdefault(image.shape, {})[name] = image
        if len(groups[image.shape]) == size:
            yield groups.pop(image.shape)
        elif sum(map(len, groups.values())) >= _GROUPS_HELD * size:
            yield groups.pop(max(groups, key=lambda shape: len(groups[shape])))
    yield from groups.values()


def _read_ahead(
    images: Mapping[str, Path], depth: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[str, Future[np.ndarray]]]:
    reading: deque[tuple[str, Future[np.ndarray]]] = deque()
    for name, path in images.items():
        reading.append((name, pool.submit(read_image_rgb, path)))
        if len(reading) > depth:
            yield reading.popleft()
    yield from reading
