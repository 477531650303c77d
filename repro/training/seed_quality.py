"""Metrics while a net trains: average precision on held-out images (stage 0), quality of seeds (stage 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from repro import distributed
from repro.data import make_loader
from repro.data.labels import LabelledImages
from repro.metrics import seed_matrix, seed_metrics
from repro.models import CaffeNet
from repro.training.csv_log import CsvLog
from repro.training.loop import Hook, SolverLoop, Sums
from repro.training.objectives import Batch


class SeedQuality(Hook):
    """``seed_quality.csv``: precision, recall and IoU of the seeds that stage 1 trains on, and the share of the pixels
    that they label, after each pass through the images (Fig. 4 of the DSRG paper).

    A pass's metrics are over the seeds that each of its batches was trained on, so over the growth of the whole pass.
    Epoch 0 is the cues as they are given. Counts are added up on the device; the host asks for them once a pass.

    Args:
        images: of a pass.
        batch: images of an iteration.
    """

    columns = ("epoch", "iteration", "precision", "recall", "iou", "labelled")

    def __init__(self, images: int, batch: int) -> None:
        self.images, self.batch = images, batch
        self._counts: dict[str, torch.Tensor] = {}

    def watch(self, batch: Batch, cues: torch.Tensor) -> None:
        """Add a batch with its ``truth`` and given ``cues``, and the ``cues`` that were grown of them."""
        for name, seeds in (("grown", cues), *((("given", batch["cues"]),) if self._epoch == 0 else ())):
            matrix = distributed.add_up(seed_matrix(batch["truth"], seeds))
            self._counts[name] = (
                self._counts[name].to(matrix.device) + matrix if name in self._counts else matrix
            )

    def before_training(self, loop: SolverLoop) -> None:
        iteration = loop.solver.iteration
        self._epoch = iteration * self.batch // self.images
        if distributed.is_first():
            # a row's iteration counts what is done; those of a run that was killed after the first pass, and resumes
            # from within it, are written again
            kept_before = iteration + 1 if self._epoch else 0
            self._log = CsvLog(loop.folder / "seed_quality.csv", self.columns, kept_before)

    def after_iteration(self, loop: SolverLoop, sums: Sums) -> None:
        done = loop.solver.iteration
        epoch = done * self.batch // self.images
        if epoch == self._epoch:
            return
        if distributed.is_first():
            if "given" in self._counts:
                self._write(0, 0, self._counts["given"])
            loop.measured("seeds", self._write(epoch, done, self._counts["grown"]))
        self._counts, self._epoch = {}, epoch

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self._counts)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self._counts = {name: state[name] for name in ("given", "grown") if name in state}

    def _write(self, epoch: int, iteration: int, counts: torch.Tensor) -> dict[str, float]:
        metrics = seed_metrics(counts.cpu())
        named = {name: metrics[name] for name in self.columns[2:]}
        self._log.write({"epoch": epoch, "iteration": iteration, **named})
        return named


def average_precision(scores: npt.NDArray[np.floating], present: npt.NDArray[np.bool_]) -> float | None:
    """VOC's average precision since 2010: the area under the precision–recall curve made monotone.

    Args:
        scores: (n,) of the images; equal ones are taken in the images' order.
        present: (n,) whether the class is in the image.

    Returns:
        0–1; None where the class is in no image.
    """
    if not present.any():
        return None
    hits = present[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    best_beyond = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_beyond[hits].mean())


class HeldOutPrecision(Hook):
    """``average_precision.csv``: mean and per class, every ``interval`` iterations and after the last.

    The mean is over the classes that the held-out images show; the cells of the others are empty.
    """

    def __init__(
        self,
        model: CaffeNet,
        images: LabelledImages,
        classes: Sequence[str],
        *,
        interval: int,
        batch_size: int,
    ) -> None:
        self.model, self.images, self.classes = model, images, list(classes)
        self.interval, self.batch_size = interval, batch_size

    def before_training(self, loop: SolverLoop) -> None:
        if not distributed.is_first():
            return  # the others wait for its next gradients
        iteration = loop.solver.iteration
        # a row's iteration counts what is done: the one written at a snapshot stays
        columns = ("iteration", "mean", *self.classes)
        self._log = CsvLog(loop.folder / "average_precision.csv", columns, iteration + 1 if iteration else 0)

    def after_iteration(self, loop: SolverLoop, sums: Sums) -> None:
        done, last = loop.solver.iteration, loop.solver.config.max_iter
        if distributed.is_first() and (done == last or (self.interval and done % self.interval == 0)):
            scores, present = self._scores()
            found = {
                name: average_precision(scores[:, index], present[:, index] > 0)
                for index, name in enumerate(self.classes)
            }
            known = [value for value in found.values() if value is not None]
            metrics = {"mean": sum(known) / len(known), **found}
            self._log.write({"iteration": done, **metrics})
            loop.measured("average_precision", metrics)

    @torch.inference_mode()
    def _scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and labels (n, C−1) of the held-out images."""
        parameter = next(self.model.parameters())
        batches = make_loader(
            self.images,
            self.batch_size,
            shuffle=False,
            seed=0,
            iterations=-(-len(self.images) // self.batch_size),
        )
        scores, labels = [], []
        self.model.eval()
        for batch in batches:
            images = batch["images"].to(parameter)
            scores.append(self.model(images).double().cpu())
            labels.append(batch["labels"])
        self.model.train()
        count = len(self.images)  # the last batch runs on into the list's beginning
        return torch.cat(scores)[:count].numpy(), torch.cat(labels)[:count].numpy()
