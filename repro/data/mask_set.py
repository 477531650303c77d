"""Masks that belong together: whether they hold any class at all, and what about them looks like another format.

Most tools write one object class as 0 and 255. Here 255 is void, so such masks hold nothing but background, of which
a prediction of background alone is a perfect one. A single mask may be like that; a whole set is not what was meant.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

import numpy as np

from repro.constants import VOID
from repro.data.voc import read_doubtful_mask
from repro.errors import InputError

log = logging.getLogger(__name__)


class MaskSet:
    """Reads masks and remembers what they hold.

    Args:
        num_classes: C, background included.

    Attributes:
        seen: the values that the masks read so far hold, 0 to C−1 and 255.

    Example:
        >>> import tempfile
        >>> from repro.data import write_mask
        >>> masks = MaskSet(num_classes=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mask.png"
        ...     write_mask(path, np.array([[0, 2, 255]], np.uint8))
        ...     masks.read(path).tolist(), sorted(masks.seen), masks.trouble()
        ([[0, 2, 255]], [0, 2, 255], '')
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.seen: set[int] = set()
        self._doubts: dict[str, tuple[str, str, int]] = {}  # by kind: first file, words, how many
        self._first, self._count = "", 0

    def read(self, path: str | os.PathLike[str]) -> np.ndarray:
        """As `read_mask`."""
        mask, doubt = read_doubtful_mask(path, self.num_classes)
        self.seen.update(np.flatnonzero(np.bincount(mask.ravel())).tolist())
        if doubt is not None:
            self._doubt(doubt.kind, os.fspath(path), doubt.words, 1)
        self._first = self._first or os.fspath(path)
        self._count += 1
        return mask

    def add(self, other: MaskSet) -> None:
        """Take in what another process has read."""
        self.seen |= other.seen
        for kind, found in other._doubts.items():
            self._doubt(kind, *found)
        self._first = self._first or other._first
        self._count += other._count

    def _doubt(self, kind: str, path: str, words: str, count: int) -> None:
        first, first_words, before = self._doubts.get(kind, (path, words, 0))
        self._doubts[kind] = first, first_words, before + count

    @property
    def holds_a_class(self) -> bool:
        """Whether there is more than background and void."""
        return not self.seen <= {0, VOID}

    def trouble(self) -> str:
        """What makes the set useless as ground truth, in one line; empty where nothing does."""
        if self.holds_a_class or not self._count:
            return ""
        which = f"{self._first}" + (f" and {self._count - 1} more" if self._count > 1 else "")
        if self.seen == {VOID}:
            return f"{which}: all void, expected pixels of a class"
        hint = ""
        if VOID in self.seen:
            hint = "; for object masks of 0 and 255 the object has to be 1, as 255 is void (repro data masks)"
        return f"{which}: no class but background{hint}"

    def lines(self) -> list[str]:
        """A line for each thing that looks like another format than indices, with the first file and how many."""
        return [
            f"{first}{f' and {count - 1} more' if count > 1 else ''}: {words}"
            for first, words, count in self._doubts.values()
        ]

    def log_lines(self) -> None:
        """Log the `lines`."""
        for line in self.lines():
            log.warning("%s", line)

    def check(self) -> None:
        """Log the `lines`. Raises InputError where there is `trouble`."""
        self.log_lines()
        if trouble := self.trouble():
            raise InputError(trouble)


def check_masks(
    paths: Iterable[str | os.PathLike[str]], num_classes: int, *, are_predicted: bool = False
) -> None:
    """Read masks up to the first that holds a class.

    Args:
        are_predicted: a net that has hardly learnt may give background alone: that is logged, no error.

    Raises InputError where none holds a class, and as `read_mask`.
    """
    masks = MaskSet(num_classes)
    for path in paths:
        masks.read(path)
        if masks.holds_a_class:
            break
    if are_predicted and masks.seen == {0}:
        log.warning("%s", masks.trouble())
        return
    masks.check()
