"""The whole experiment: train, label, retrain, predict, score. A second call does what is missing.

Each row of the paper's Table 2 is a run. ``+DSRG`` and ``+Retrain`` share one (the second stage starts from the
first); ``baseline`` and ``+BSL`` are runs of their own beside it, with the losses that the row names:

    baseline    plain seed loss on the cues as they are, constrain loss
    +BSL        balanced seed loss on the cues as they are, constrain loss
    +DSRG       balanced seed loss on the grown cues, constrain loss
    +Retrain    stage 2 on the masks that +DSRG gives its training images

What the other tables need is planned in ``run/plan.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from repro import distributed
from repro.config import PredictConfig, Stage1Data, Stage2Data
from repro.cues.generate import MadeCues, make_cues
from repro.cues.train_classifier import needed_classifiers, train_classifier
from repro.data.experiment import Experiment, open_experiment, stage0_of
from repro.data.image_list import read_cue_indices
from repro.errors import InputError
from repro.files import write_json
from repro.inference.batch_predict import predict_folder
from repro.inference.evaluate import evaluate_folder
from repro.inference.predict import TorchSegmenter, describe, load_model
from repro.run.growth import draw_growth
from repro.run.plan import PlannedRun
from repro.run.pretrain import pretrained_weights, pretraining_folder
from repro.run_folder import Run, resolve_device
from repro.training.csv_log import read_log
from repro.training.train import IMAGENET_WEIGHTS, train
from weights_conversion.files import file_sha256

log = logging.getLogger(__name__)
DataT = TypeVar("DataT", Stage1Data, Stage2Data)


class _Task(NamedTuple):
    """A step of the plan: its folder, what it is called, and what does it and returns what later steps need."""

    folder: Path
    title: str
    work: Callable[[], Any]


def reproduce(runs: Sequence[PlannedRun]) -> None:
    """Make what is missing of some runs; each step is announced with its place in the plan.

    Args:
        runs: from ``plan_rows`` or ``plan_experiments``.

    Raises:
        InputError: anything missing or malformed in the inputs, before anything is written.
    """
    check(runs)
    made: dict[Path, Any] = {}
    tasks: list[_Task] = []
    for planned in runs:
        steps = _Steps(planned, made)
        there = {task.folder for task in tasks}
        tasks += [*(task for task in steps.shared() if task.folder not in there), *steps.own()]
    with _each_line_once():
        for number, task in enumerate(tasks, start=1):
            if distributed.is_first():
                log.info("step %d of %d: %s (%s)", number, len(tasks), task.title, task.folder)
            made[task.folder] = task.work()


@contextlib.contextmanager
def _each_line_once() -> Iterator[None]:
    """What the steps of several runs have in common, such as the masks that they read, is logged once; warnings are
    not left out."""
    said: dict[str, logging.LogRecord] = {}

    def is_new(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or said.setdefault(record.getMessage(), record) is record

    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(is_new)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_new)


def check(runs: Sequence[PlannedRun]) -> None:
    """Raise InputError for what no run could come of: no row, a device or file not there."""
    if not runs:
        raise InputError("rows: expected at least one row, such as rows=[+DSRG]")
    for base in {planned.base.run_dir: planned.base for planned in runs}.values():
        resolve_device(base.device)
        open_experiment(base)
        trained = any(planned.weights is None for planned in runs if planned.base.run_dir == base.run_dir)
        init = base.stage1.init
        if trained and init.weights is None and init.filler == "gaussian":
            raise InputError(
                "stage1.init.weights: not given; the experiment starts from ImageNet's weights, "
                f"{IMAGENET_WEIGHTS[base.model.name.partition('_')[0]]}: pass stage1.init.weights=FILE, or "
                "stage1.init.filler=looks_linear to train from scratch"
            )


def _made_cues(planned: PlannedRun) -> MadeCues:
    """The cues that stage 0 makes in the folder of the base's run, once for all runs of a seed."""
    config = planned.base.model_copy(update={"seed": planned.config.seed})
    run = Run(config, resolve_device(config.device), planned.cues_dir)
    weights = {net: train_classifier(config, net, run) for net in needed_classifiers(stage0_of(config).cues)}
    made = distributed.from_first(
        make_cues(config, weights, run.folder / "stage0" / "cues", run.device)
        if distributed.is_first()
        else None
    )
    assert made is not None
    return made


class _Steps:
    """The steps of one run, each in its folder; ``made`` holds what the steps before gave, by their folders."""

    def __init__(self, planned: PlannedRun, made: dict[Path, Any]) -> None:
        self.planned, self.config, self.made = planned, planned.config, made
        self.run = Run(planned.config, resolve_device(planned.config.device), planned.folder)

    @functools.cached_property
    def experiment(self) -> Experiment:
        experiment = open_experiment(self.config)
        cues = self.made.get(self._cues_folder)
        if cues is None:
            return experiment
        train = experiment.train if cues.cues.is_dir() else read_cue_indices(cues.input_list)
        return dataclasses.replace(experiment, train=train, cues=cues.cues)

    @property
    def _cues_folder(self) -> Path:
        return self.planned.cues_dir / "stage0"

    @property
    def _pretraining(self) -> Path:
        return pretraining_folder(self.planned.base, self.config.model)

    def shared(self) -> Iterator[_Task]:
        """What is made once for several runs."""
        if self.planned.weights is not None:
            return
        if self.config.dataset.make_cues:
            yield _Task(self._cues_folder, "cues of the training images", lambda: _made_cues(self.planned))
        if self.config.pretrains:
            title = f"pre-training on {self.config.dataset.pretrain} further images, for all rows"
            model = self.config.model
            yield _Task(self._pretraining, title, lambda: pretrained_weights(self.planned.base, model))

    def own(self) -> Iterator[_Task]:
        """This run's own."""
        methods, folder, original = self.planned.methods, self.run.folder, self.planned.weights
        if original is None:
            first = methods.get("stage1") or methods["stage2"]
            yield _Task(folder / "stage1", f"{first}, training of stage 1", self.train_stage1)
        if "stage1" in methods:
            if original is None and self.planned.grows_for_a_figure and self.config.report.pictures:
                yield _Task(folder / "growth", f"{methods['stage1']}, seeds for a figure", self.draw_growth)
            yield self._predicting("stage1")
        if "stage2" in methods:
            if original is None:
                row = methods["stage2"]
                yield _Task(folder / "pseudo_labels", f"{row}, pseudo labels", self.pseudo_labels)
                yield _Task(folder / "stage2", f"{row}, training of stage 2", self.train_stage2)
            yield self._predicting("stage2")

    def _predicting(self, stage: str) -> _Task:
        return _Task(
            self.run.folder / "predictions" / stage,
            f"{self.planned.methods[stage]}, masks of the validation images and their score",
            lambda: self.predict_and_score(stage),
        )

    def _weights(self, stage: str) -> Path:
        """Those given, or those that a stage ended with."""
        return self.planned.weights or self.made[self.run.folder / stage]

    def draw_growth(self) -> None:
        draw_growth(self.run, self.config, self.experiment, self.run.folder / "stage1")

    def train_stage1(self) -> Path:
        section, experiment = self.config.stage1, self.experiment
        data = _filled(
            section.data,
            image_root=lambda: str(experiment.train_root),
            cues=lambda: str(experiment.cues),
            truth_root=lambda: str(experiment.train_truth_root) if experiment.train_truth_root else None,
        )
        init = section.init
        if self.config.pretrains:
            init = init.model_copy(update={"weights": str(self.made[self._pretraining])})
        config = self.config.model_copy(
            update={"stage1": section.model_copy(update={"data": data, "init": init})}
        )
        return train(config, 1, self.run, None if data.list else experiment.cue_lines())

    def pseudo_labels(self) -> Path:
        settings, experiment = self.config.pseudo_labels, self.experiment
        assert settings is not None  # config/schema.py checks it for this row
        labels = experiment.labels() if settings.use_labels else None
        return self._predict(
            "pseudo_labels", self._weights("stage1"), list(experiment.train), settings, labels
        )

    def train_stage2(self) -> Path:
        section, experiment, weights = self.config.stage2, self.experiment, self._weights("stage1")
        assert section is not None  # as above
        data = _filled(
            section.data,
            image_root=lambda: str(experiment.train_root),
            label_root=lambda: str(self.made[self.run.folder / "pseudo_labels"]),
        )
        init = (
            section.init
            if section.init.weights
            else section.init.model_copy(update={"weights": str(weights)})
        )
        config = self.config.model_copy(
            update={"stage2": section.model_copy(update={"data": data, "init": init})}
        )
        return train(config, 2, self.run, None if data.list else experiment.mask_lines())

    def predict_and_score(self, stage: str) -> None:
        """Masks of the validation images in ``predictions/<stage>``, and their scores."""
        experiment, classes, weights = self.experiment, self.config.dataset.classes, self._weights(stage)
        folder = self._predict(f"predictions/{stage}", weights, experiment.val, self.config.inference)
        truth = [experiment.truth(name) for name in experiment.val]
        scores = evaluate_folder(folder, truth, experiment.val, len(classes))
        if not distributed.is_first():
            return
        write_json(
            self.run.folder / f"scores_{stage}.json",
            {
                **self.planned.identity(),
                "method": self.planned.methods[stage],
                "answers": self.planned.answers[stage],
                "dataset": experiment.name,
                "images": len(experiment.val),
                "train_images": len(experiment.train),
                "model": self.config.model.model_dump(),
                "classes": classes,
                "weights_sha256": file_sha256(weights),
                "scores": scores,
                "seed_quality": read_log(self.run.folder / "stage1" / "seed_quality.csv")
                if stage == "stage1"
                else [],
            },
        )

    def _predict(
        self,
        name: str,
        weights: Path,
        ids: list[str],
        settings: PredictConfig,
        labels: Callable[[str], Sequence[int]] | None = None,
    ) -> Path:
        described = {
            **describe(self.config, weights, settings),
            "ids_sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest(),
        }
        with self.run.step(name, described) as step:
            if not step.done:
                model = load_model(self.config, weights, self.run.device)
                step.begin()
                images = {image: self.experiment.image(image) for image in ids}
                result = predict_folder(
                    TorchSegmenter(model, settings),
                    images,
                    step.folder,
                    described=described,
                    labels=labels,
                    title=f"{self.run.folder.name}/{name}",
                )
                if result.failures:
                    raise InputError(
                        f"{name}: {len(result.failures)} of {len(images)} images failed: "
                        + "; ".join(list(result.failures.values())[:3])
                    )
            return step.folder


def _filled(data: DataT, **defaults: Callable[[], str | None]) -> DataT:
    """``data`` with the paths that the user did not give."""
    return data.model_copy(
        update={key: make() for key, make in defaults.items() if getattr(data, key) is None}
    )
