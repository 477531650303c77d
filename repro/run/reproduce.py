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

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from repro import distributed
from repro.config import PredictConfig, Stage1Data, Stage2Data
from repro.cues.generate import make_cues
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
from repro.run.pretrain import pretrained_weights
from repro.run_folder import Run, resolve_device
from repro.training.csv_log import read_log
from repro.training.train import IMAGENET_WEIGHTS, train
from weights_conversion.files import file_sha256

DataT = TypeVar("DataT", Stage1Data, Stage2Data)


def reproduce(runs: Sequence[PlannedRun]) -> None:
    """Make what is missing of some runs.

    Args:
        runs: from ``plan_rows`` or ``plan_experiments``.

    Raises:
        InputError: anything missing or malformed in the inputs, before anything is written.
    """
    check(runs)
    for planned in runs:
        experiment = open_experiment(planned.config)
        if planned.config.dataset.make_cues and planned.weights is None:
            experiment = _with_made_cues(planned, experiment)
        _Steps(planned, experiment).run_all()


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


def _with_made_cues(planned: PlannedRun, experiment: Experiment) -> Experiment:
    """The experiment on cues that stage 0 makes in the folder of the base's run, once for all runs of a seed."""
    config = planned.base.model_copy(update={"seed": planned.config.seed})
    run = Run(config, resolve_device(config.device), planned.cues_dir)
    weights = {net: train_classifier(config, net, run) for net in needed_classifiers(stage0_of(config).cues)}
    made = distributed.from_first(
        make_cues(config, weights, run.folder / "stage0" / "cues", run.device)
        if distributed.is_first()
        else None
    )
    assert made is not None
    train = experiment.train
    if not made.cues.is_dir():
        train = read_cue_indices(made.input_list)
    return dataclasses.replace(experiment, train=train, cues=made.cues)


class _Steps:
    """The steps of one run, each in its folder."""

    def __init__(self, planned: PlannedRun, experiment: Experiment) -> None:
        self.planned, self.config, self.experiment = planned, planned.config, experiment
        self.run = Run(planned.config, resolve_device(planned.config.device), planned.folder)

    def run_all(self) -> None:
        methods = self.planned.methods
        if self.planned.weights is not None:
            for stage in methods:
                self.predict_and_score(stage, self.planned.weights)
            return
        weights = self.train_stage1()
        if "stage1" in methods:
            if self.planned.grows_for_a_figure and self.config.report.pictures:
                draw_growth(self.run, self.config, self.experiment, self.run.folder / "stage1")
            self.predict_and_score("stage1", weights)
        if "stage2" in methods:
            self.predict_and_score("stage2", self.train_stage2(weights))

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
            weights = pretrained_weights(self.planned.base, self.config.model)
            init = init.model_copy(update={"weights": str(weights)})
        config = self.config.model_copy(
            update={"stage1": section.model_copy(update={"data": data, "init": init})}
        )
        return train(config, 1, self.run, None if data.list else experiment.cue_lines())

    def train_stage2(self, weights: Path) -> Path:
        section, experiment = self.config.stage2, self.experiment
        assert section is not None  # config/schema.py checks it for this row
        assert self.config.pseudo_labels is not None
        labels = experiment.labels() if self.config.pseudo_labels.use_labels else None
        masks = self._predict(
            "pseudo_labels",
            weights,
            list(experiment.train),
            self.config.pseudo_labels,
            labels,
        )
        data = _filled(
            section.data,
            image_root=lambda: str(experiment.train_root),
            label_root=lambda: str(masks),
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

    def predict_and_score(self, stage: str, weights: Path) -> None:
        """Masks of the validation images in ``predictions/<stage>``, and their scores."""
        experiment, classes = self.experiment, self.config.dataset.classes
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
                    title=name,
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
