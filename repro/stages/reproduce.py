"""The whole experiment: train, label, retrain, predict, score, tabulate. A second call does what is missing.

Each row of the paper's Table 2 is a run. ``+DSRG`` and ``+Retrain`` share one (the second stage starts from the
first); ``baseline`` and ``+BSL`` are runs of their own beside it, with the losses that the row names:

    baseline    plain seed loss on the cues as they are, constrain loss
    +BSL        balanced seed loss on the cues as they are, constrain loss
    +DSRG       balanced seed loss on the grown cues, constrain loss
    +Retrain    stage 2 on the masks that +DSRG gives its training images
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from repro.config import (
    MAX_SEED,
    ROW_LOSSES,
    Config,
    PredictConfig,
    Stage1Data,
    Stage2Data,
    changed_from_profile,
)
from repro.errors import InputError
from repro.files import file_sha256
from repro.report.tables import write_tables
from repro.stages.datasets import Experiment, open_experiment
from repro.stages.evaluate import evaluate_folder
from repro.stages.folder import predict_folder
from repro.stages.infer import TorchSegmenter, describe, load_model
from repro.stages.runs import Run, resolve_device, write_json
from repro.stages.train import IMAGENET_WEIGHTS, train

DataT = TypeVar("DataT", Stage1Data, Stage2Data)


def reproduce(config: Config, *, seeds: Sequence[int] = ()) -> list[Path]:
    """Run every row of ``config.rows`` for every seed and write the tables.

    Args:
        config: the experiment.
        seeds: random seeds, one run each; ``config.seed`` alone by default.

    Returns:
        The tables written.

    Raises:
        InputError: anything missing or malformed in the inputs, before anything is written.
    """
    if not config.rows:
        raise InputError("rows: expected at least one row, such as rows=[+DSRG]")
    seeds = seeds or (config.seed,)
    if len(set(seeds)) != len(seeds) or min(seeds) < 0 or max(seeds) > MAX_SEED:
        raise InputError(f"seeds {list(seeds)}: expected different whole numbers from 0 to {MAX_SEED}")
    device = resolve_device(config.device)
    experiment = open_experiment(config)
    init = config.stage1.init
    if init.weights is None and init.filler == "gaussian":
        raise InputError(
            "stage1.init.weights: not given; the experiment starts from ImageNet's weights, "
            f"{IMAGENET_WEIGHTS[config.model.name.partition('_')[0]]}: pass stage1.init.weights=FILE, or "
            "stage1.init.filler=looks_linear to train from scratch"
        )
    scores: list[Path] = []
    for seed in seeds:
        for row in ("baseline", "+BSL"):
            if row in config.rows:
                scores += _run_row(config, experiment, seed, row, device)
        if rows := [row for row in config.rows if row in ("SEC", "+DSRG", "+Retrain")]:
            scores += _run_main(config, experiment, seed, rows, device)
    return write_tables(scores, tables_dir(config))


def tables_dir(config: Config) -> Path:
    """Where an experiment's tables go: ``results/<name>``, or ``tables`` beside a run with its own ``output``."""
    return (
        config.run_dir.parent / f"{config.run_dir.name}-tables"
        if config.output
        else Path("results") / config.name
    )


def _run_row(config: Config, experiment: Experiment, seed: int, row: str, device: torch.device) -> list[Path]:
    loss = config.stage1.loss.model_copy(update=ROW_LOSSES[row])
    stage1 = config.stage1.model_copy(update={"loss": loss})
    varied = config.model_copy(update={"stage1": stage1, "seed": seed, "rows": [row]})
    steps = _Steps(varied, experiment, device, row.strip("+").lower())
    weights = steps.train_stage1()
    return [steps.predict_and_score("stage1", weights, row)]


def _run_main(
    config: Config, experiment: Experiment, seed: int, rows: Sequence[str], device: torch.device
) -> list[Path]:
    steps = _Steps(config.model_copy(update={"seed": seed}), experiment, device)
    weights = steps.train_stage1()
    scores = [steps.predict_and_score("stage1", weights, row) for row in rows if row != "+Retrain"]
    if "+Retrain" in rows:
        retrained = steps.train_stage2(weights)
        scores.append(steps.predict_and_score("stage2", retrained, "+Retrain"))
    return scores


class _Steps:
    """The steps of one run, each in its folder."""

    def __init__(
        self, config: Config, experiment: Experiment, device: torch.device, suffix: str = ""
    ) -> None:
        base = config.run_dir
        parts = [base.name, *([suffix] if suffix else []), *([f"seed{config.seed}"] if config.seed else [])]
        self.config, self.experiment, self.base = config, experiment, base.name
        self._lists = tempfile.TemporaryDirectory()
        self.run = Run(config, device, base.parent / "-".join(parts))

    def train_stage1(self) -> Path:
        section, experiment = self.config.stage1, self.experiment
        lines = (f"{name}.jpg {cues}" for name, cues in experiment.train.items())
        data = _filled(
            section.data,
            image_root=lambda: str(experiment.train_root),
            list=lambda: self._list(lines),
            cues=lambda: str(experiment.cues),
        )
        config = self.config.model_copy(update={"stage1": section.model_copy(update={"data": data})})
        return train(config, 1, self.run)

    def train_stage2(self, weights: Path) -> Path:
        section, experiment = self.config.stage2, self.experiment
        assert section is not None  # config.py checks it for this row
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
            list=lambda: self._list(f"{name}.jpg {name}.png" for name in experiment.train),
        )
        init = (
            section.init
            if section.init.weights
            else section.init.model_copy(update={"weights": str(weights)})
        )
        config = self.config.model_copy(
            update={"stage2": section.model_copy(update={"data": data, "init": init})}
        )
        return train(config, 2, self.run)

    def predict_and_score(self, stage: str, weights: Path, method: str) -> Path:
        """Masks of the validation images in ``predictions/<stage>`` and their ``scores.json`` beside them."""
        experiment, classes = self.experiment, self.config.dataset.classes
        folder = self._predict(f"predictions/{stage}", weights, experiment.val, self.config.inference)
        truth = [experiment.truth(name) for name in experiment.val]
        path = self.run.folder / f"scores_{stage}.json"
        write_json(
            path,
            {
                "run": self.run.folder.name,
                "experiment": self.base,
                "settings_sha256": self._settings_sha256(),
                "dataset": experiment.name,
                "images": len(experiment.val),
                "train_images": len(experiment.train),
                "seed": self.config.seed,
                "method": method,
                "model": self.config.model.model_dump(),
                "classes": classes,
                "changed": changed_from_profile(self.config),
                "pretrained": self.config.stage1.init.weights is not None,
                "weights_sha256": file_sha256(weights),
                "scores": evaluate_folder(folder, truth, experiment.val, len(classes)),
            },
        )
        return path

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

    def _settings_sha256(self) -> str:
        """Of all that shapes the run but its seed: runs with equal ones are repetitions of each other."""
        kept = self.config.model_dump(exclude={"seed", "output", "device", "name", "rows", "report"})
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    def _list(self, lines: Iterable[str]) -> str:
        """A list file for a stage, in a temporary place: the stage keeps a copy once it begins."""
        path = Path(self._lists.name) / f"{len(os.listdir(self._lists.name))}.txt"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)


def _filled(data: DataT, **defaults: Callable[[], str]) -> DataT:
    """``data`` with the paths that the user did not give."""
    return data.model_copy(
        update={key: make() for key, make in defaults.items() if getattr(data, key) is None}
    )
