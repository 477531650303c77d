"""What TensorBoard shows of a training, where ``tensorboard=true``: losses, rate, quality of the seeds, a few masks.

    repro train … tensorboard=true
    tensorboard --logdir runs/a

The files lie in ``<stage>/tensorboard``. They are a second view of ``log.csv`` and of what other hooks measure; no
weight depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from repro import distributed
from repro.constants import MEAN_BGR
from repro.data import colour_palette
from repro.errors import InputError
from repro.training.loop import Hook, SolverLoop, Sums, on_device
from repro.training.rows import Row

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_PICTURES = 4


class TensorBoard(Hook):
    """Writes event files; of several ranks the first does.

    Rows give ``lr`` and ``loss/<name>``, what other hooks measure ``<what>/<name>``, snapshots the images that the run
    began with beside the masks that the net now gives them. A step is the iteration that has just been trained, as in
    ``log.csv``.
    """

    writer: SummaryWriter | None = None

    def __init__(self) -> None:
        self._writer_class = _summary_writer()

    def before_training(self, loop: SolverLoop) -> None:
        if distributed.is_first():
            # what an earlier call wrote after the snapshot that this one resumes from is not shown
            folder, begun = loop.folder / "tensorboard", loop.solver.iteration
            self.writer = self._writer_class(str(folder), purge_step=begun or None)

    def after_row(self, loop: SolverLoop, row: Row) -> None:
        if self.writer:
            self.writer.add_scalar("lr", row.rate, row.iteration)
            for name, value in row.metrics.items():
                self.writer.add_scalar("loss" if name == "loss" else f"loss/{name}", value, row.iteration)

    def after_measurement(self, loop: SolverLoop, what: str, metrics: Mapping[str, float | None]) -> None:
        if self.writer:
            for name, value in metrics.items():
                if value is not None:
                    self.writer.add_scalar(f"{what}/{name}", value, loop.solver.iteration - 1)

    def before_snapshot(self, loop: SolverLoop, sums: Sums) -> None:
        if self.writer:
            pictures = _pictures(loop)
            if pictures is not None:
                self.writer.add_images("masks", pictures, loop.solver.iteration - 1, dataformats="NHWC")
            self.writer.flush()

    def after_training(self, loop: SolverLoop) -> None:
        if self.writer:
            self.writer.close()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "tensorboard=true: needs the package tensorboard, the extra of that name: pip install tensorboard"
        ) from None
    return SummaryWriter


@torch.no_grad()
def _pictures(loop: SolverLoop) -> np.ndarray | None:
    """The first images of the run beside their masks, (n, h, 2w, 3) uint8; None where a net gives no map of scores."""
    batch = next(loop.batches.load(0, 1, workers=0))
    if "images" not in batch:
        return None
    batch = {name: values[:_PICTURES] for name, values in batch.items()}
    images = on_device(batch, next(loop.net.parameters()))["images"]
    was_training = loop.net.training
    scores = loop.net.eval()(images)
    loop.net.train(was_training)
    if scores.dim() != 4:
        return None
    classes = F.interpolate(scores.float(), images.shape[2:], mode="nearest").argmax(dim=1).cpu().numpy()
    mean = torch.tensor(MEAN_BGR).reshape(3, 1, 1)
    shown = (batch["images"] + mean).clamp(0, 255).flip(1).permute(0, 2, 3, 1).to(torch.uint8).numpy()
    return np.concatenate([shown, colour_palette()[classes]], axis=2)
