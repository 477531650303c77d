"""The mini-batches of a training, from any iteration on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from repro import distributed
from repro.config import Stage0Config, Stage1Config, Stage2Config
from repro.data import ItemSource, make_loader
from repro.errors import InputError
from repro.training.objectives import Batch


@dataclass(frozen=True)
class Batches:
    """The mini-batches of a data layer: a function of the seed and the place in the run alone.

    Of several ranks each gets its part of every mini-batch.
    """

    layer: ItemSource
    batch_size: int
    shuffle: bool
    seed: int
    workers: int
    iter_size: int

    @classmethod
    def of(cls, layer: ItemSource, section: Stage0Config | Stage1Config | Stage2Config, seed: int) -> Batches:
        """As a stage's section of the config says."""
        data = section.data
        return cls(layer, data.batch_size, data.shuffle, seed, data.workers, section.solver.iter_size)

    @property
    def images(self) -> int:
        """Images of an iteration, those of all ranks."""
        return self.batch_size * self.iter_size

    def load(
        self, iteration: int, count: int, *, workers: int | None = None, pin_memory: bool = False
    ) -> Iterator[Batch]:
        """``iter_size`` mini-batches for each of ``count`` iterations, this rank's part.

        Raises InputError for fewer images than ranks; while iterating as :func:`repro.data.make_loader`.
        """
        if self.batch_size < distributed.size():
            raise InputError(
                f"data.batch_size {self.batch_size}: expected at least one image for each of the "
                f"{distributed.size()} processes"
            )
        loader = make_loader(
            self.layer,
            self.batch_size,
            shuffle=self.shuffle,
            seed=self.seed,
            start_iteration=iteration * self.iter_size,
            iterations=count * self.iter_size,
            share=distributed.share(self.batch_size),
            workers=self.workers if workers is None else workers,
            pin_memory=pin_memory,
        )
        return iter(loader)

    def first(self, weights: torch.Tensor) -> torch.Tensor:
        """The images of the first mini-batch, for `fill_by_first_batch`."""
        loader = make_loader(self.layer, self.batch_size, self.shuffle, self.seed, iterations=1)
        return next(iter(loader))["images"].to(weights)
