"""Training: Caffe's solver loop for both stages, with its log, its snapshots and its resuming.

One iteration is ``iter_size`` mini-batches, one ``CaffeSGD.step`` and, every ``display`` iterations, one row of
``log.csv`` with each loss under its Caffe name, unsmoothed (mean over the ``iter_size`` mini-batches, as Caffe
reports). Snapshots are pairs ``iter_<n>.safetensors`` (weights) and ``iter_<n>.state`` (history, iteration, random
state); n is the number of updates done. Everything random beside dropout is a function of seed and stream
position, so a resumed run sees the same batches.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import logging
import math
import re
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from repro.config import Config, InitConfig, Stage1Config, Stage2Config
from repro.data import AnnotationCOCO, DataLayer, ImageData, ImageSegData, make_loader, read_label_list
from repro.errors import InputError
from repro.files import atomic_path, file_sha256, write_text
from repro.models import CaffeNet, build_model
from repro.solver import CaffeSGD, current_step
from repro.stages.objectives import Batch, Objective, Stage1Objective, Stage2Objective
from repro.stages.precision import LAYOUT, to_device
from repro.stages.runs import Run, Step
from weights_conversion import load_weights, read_solverstate, save_safetensors

log = logging.getLogger(__name__)
# by backbone: what the papers start from
IMAGENET_WEIGHTS = {
    "vgg16": "vgg16_20M.caffemodel of the SEC and DSRG releases",
    "resnet101": "ResNet-101-model.caffemodel of He et al.'s release",
}
# what a stage's files and speed depend on, but not its numbers
_SHAPELESS = {
    "data": {"workers", "image_root", "label_root", "list", "cues"},
    "solver": {"display", "average_loss", "snapshot"},
}


def train(config: Config, stage: int, run: Run) -> Path:
    """Train a stage in ``<run>/stage<n>``, going on from its newest snapshot if there is one.

    Args:
        config: the whole run; ``config.stage1`` or ``config.stage2`` is trained.
        stage: 1 (SEC, DSRG on cues) or 2 (retraining on pseudo labels).
        run: the run's folder and device.

    Returns:
        The final weights, ``iter_<max_iter>.safetensors``.

    Raises:
        InputError: anything missing or malformed in the inputs; a folder made with other settings.
    """
    section = config.stage1 if stage == 1 else config.stage2
    if section is None:
        raise InputError(f"stage {stage}: the profile {config.name} has no section stage{stage}")
    if section.solver.max_iter < 1:
        raise InputError(f"stage{stage}.solver.max_iter: expected at least 1 iteration")
    files = _files(section, stage)
    hashes = {key: file_sha256(path) for key, path in files.items() if Path(path).is_file()}
    if folder := files.get("label_root") or (files["cues"] if _cues_are_pngs(section) else None):
        hashes["labels"] = labels_sha256(folder, files["list"])
    with run.step(f"stage{stage}", _settings(config, stage, section, hashes)) as step:
        if not step.done:
            model = _initial_model(config, section.init)
            objective: Objective = (
                Stage1Objective(section.loss)
                if isinstance(section, Stage1Config)
                else Stage2Objective(section.data.label_shrink)
            )
            dataset = _dataset(section, stage, files, config.model.num_classes, model)
            to_device(model, config, run.device)
            solver = CaffeSGD(model, section.solver)
            if not section.init.weights and not _snapshots(step.folder):
                log.warning(
                    "stage%d.init.weights is not given: every layer starts from its filler (%s); "
                    "the papers start from ImageNet's weights (%s)",
                    stage,
                    section.init.filler,
                    IMAGENET_WEIGHTS[config.model.name.partition("_")[0]],
                )
            if section.init.solverstate:
                _take_over(solver, section.init.solverstate)
            _Loop(config.seed, section, stage, model, solver, objective, dataset, files["list"], step).run()
        return step.folder / f"iter_{section.solver.max_iter}.safetensors"


class _Loop:
    def __init__(
        self,
        seed: int,
        section: Stage1Config | Stage2Config,
        stage: int,
        model: CaffeNet,
        solver: CaffeSGD,
        objective: Objective,
        dataset: DataLayer,
        list_path: str,
        step: Step,
    ) -> None:
        self.list_path = list_path
        self.seed, self.section, self.stage = seed, section, stage
        self.model, self.solver, self.objective = model, solver, objective
        self.dataset, self.step, self.folder = dataset, step, step.folder
        self.device, self.dtype = step.run.device, next(model.parameters()).dtype
        self.log_path = step.folder / "log.csv"

    def run(self) -> None:
        config, data = self.section.solver, self.section.data
        torch.manual_seed(self.seed)  # dropout
        self._resume()
        loader = make_loader(
            self.dataset,
            data.batch_size,
            shuffle=data.shuffle,
            seed=self.seed,
            start_iteration=self.solver.iteration * config.iter_size,
            iterations=(config.max_iter - self.solver.iteration) * config.iter_size,
            workers=data.workers,
            pin_memory=self.device.type == "cuda",
        )
        batches: Iterator[Batch] = iter(loader)
        if self.solver.iteration < config.max_iter:
            batches = itertools.chain([next(batches)], batches)  # bad input shows before anything is written
        self.step.begin()
        shutil.copyfile(self.list_path, self.folder / "list.txt")
        self.model.train()
        latest: deque[torch.Tensor] = deque(maxlen=config.average_loss)  # on the device until they are shown
        bar = tqdm(
            total=config.max_iter,
            initial=self.solver.iteration,
            desc=f"stage {self.stage}",
            unit="it",
            disable=None,
            dynamic_ncols=True,
        )
        with bar, self._open_log() as rows:
            while self.solver.iteration < config.max_iter:
                iteration, rate = self.solver.iteration, self.solver.rate
                figures = self._update(batches)
                latest.append(figures["loss"])
                if config.display and iteration % config.display == 0:
                    row = {name: float(value) for name, value in figures.items()}
                    self._check_finite(row)
                    rows.write(iteration, rate, row)
                    images = data.batch_size * config.iter_size * (bar.format_dict["rate"] or 0)
                    shown = {k: f"{v:.4g}" for k, v in row.items() if k != "loss"}
                    mean = float(torch.stack(list(latest)).mean())
                    bar.set_postfix(
                        {"lr": f"{rate:.2g}", "loss": f"{mean:.4g}", **shown, "images/s": f"{images:.1f}"}
                    )
                bar.update()
                done = self.solver.iteration
                if (config.snapshot and done % config.snapshot == 0) or done == config.max_iter:
                    self._check_finite({name: float(value) for name, value in figures.items()})
                    self._snapshot()

    def _check_finite(self, row: dict[str, float]) -> None:
        """Stop before a loss that is no number gets into a snapshot."""
        if not math.isfinite(row["loss"]):
            raise InputError(
                f"{self.folder}: the loss is {row['loss']} at iteration {self.solver.iteration - 1} "
                f"({', '.join(f'{name} {value:g}' for name, value in row.items())}); a lower base_lr may help"
            )

    def _update(self, batches: Iterator[Batch]) -> dict[str, torch.Tensor]:
        """``iter_size`` mini-batches and one step; the figures are means over the mini-batches."""
        iter_size = self.section.solver.iter_size
        self.solver.zero_grad()
        sums: dict[str, torch.Tensor] = {}
        for _ in range(iter_size):
            batch = {
                name: values.to(
                    self.device, self.dtype if values.is_floating_point() else None, non_blocking=True
                )
                for name, values in next(batches).items()
            }
            batch["images"] = batch["images"].contiguous(memory_format=LAYOUT)
            outcome = self.objective(self.model, batch)
            total = outcome.total
            total.backward()
            for name, value in {"loss": total, **outcome.losses, **outcome.figures}.items():
                sums[name] = sums.get(name, 0) + value.detach() / iter_size
        self.solver.step()
        return sums

    def _open_log(self) -> _LogRows:
        return _LogRows(self.log_path, ("loss", *self.objective.columns), self.solver.iteration)

    def _snapshot(self) -> None:
        iteration = self.solver.iteration
        state = {
            "iteration": iteration,
            "current_step": current_step(self.solver.config, iteration - 1),  # for a Caffe solver state
            "history": [history.cpu() for history in self.solver.history],
            "random": _random_state(self.device),
        }
        save_safetensors(
            self.model,
            self.folder / f"iter_{iteration}.safetensors",
            {"iteration": str(iteration)},  # one entry: the format does not keep the order of several
        )
        with atomic_path(self.folder / f"iter_{iteration}.state") as temporary:
            torch.save(state, temporary)

    def _resume(self) -> None:
        """Go on from the newest snapshot in the folder, where there is one."""
        iterations = _snapshots(self.folder)
        if not iterations:
            return
        newest = self.folder / f"iter_{max(iterations)}.state"
        state = torch.load(newest, weights_only=True)
        load_weights(self.model, newest.with_suffix(".safetensors"))
        self.solver.load_history(state["history"], state["iteration"])
        _restore_random_state(state["random"], self.device)
        log.info("stage %d goes on from iteration %d (%s)", self.stage, state["iteration"], newest)


def _snapshots(folder: Path) -> list[int]:
    """The iterations that a folder holds a whole snapshot of."""
    names = (re.fullmatch(r"iter_(\d+)\.state", path.name) for path in folder.glob("iter_*.state"))
    iterations = (int(name[1]) for name in names if name)
    return [iteration for iteration in iterations if (folder / f"iter_{iteration}.safetensors").exists()]


class _LogRows:
    """``log.csv``: opened at an iteration, it keeps the rows before it and appends."""

    def __init__(self, path: Path, columns: tuple[str, ...], iteration: int) -> None:
        self.columns = ("iteration", "lr", *columns)
        kept = io.StringIO()
        writer = csv.DictWriter(kept, self.columns, lineterminator="\n")
        writer.writeheader()
        if path.exists() and iteration:
            with path.open(newline="", encoding="utf-8") as file:
                writer.writerows(row for row in csv.DictReader(file) if int(row["iteration"]) < iteration)
        write_text(path, kept.getvalue())
        self.file = path.open("a", newline="", encoding="utf-8", buffering=1)
        self.writer = csv.DictWriter(self.file, self.columns, lineterminator="\n")

    def __enter__(self) -> _LogRows:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    def write(self, iteration: int, rate: float, row: dict[str, float]) -> None:
        self.writer.writerow(
            {"iteration": iteration, "lr": f"{rate:.9g}", **{k: f"{v:.9g}" for k, v in row.items()}}
        )


def _files(section: Stage1Config | Stage2Config, stage: int) -> dict[str, str]:
    """The files and folders that the stage reads, by key. Raises InputError for one not given or not there."""
    data, init = section.data.model_dump(), section.init
    files: dict[str, str] = {}
    for key in ("image_root", "label_root", "list", "cues"):
        if key in data:
            if data[key] is None:
                raise InputError(f"stage{stage}.data.{key}: not given; add data.{key}=PATH")
            files[key] = data[key]
    files |= {
        key: path for key, path in (("weights", init.weights), ("solverstate", init.solverstate)) if path
    }
    for key, path in files.items():
        section_name = "init" if key in ("weights", "solverstate") else "data"
        is_folder = key.endswith("_root") or (key == "cues" and _cues_are_pngs(section))
        expected = "folder" if is_folder else "file"
        if not (Path(path).is_dir() if expected == "folder" else Path(path).is_file()):
            raise InputError(f"stage{stage}.{section_name}.{key}: no such {expected}: {path}")
    return files


def _cues_are_pngs(section: Stage1Config | Stage2Config) -> bool:
    return isinstance(section, Stage1Config) and section.data.layer == "AnnotationCOCO"


def _dataset(
    section: Stage1Config | Stage2Config, stage: int, files: dict[str, str], num_classes: int, model: CaffeNet
) -> ImageData | AnnotationCOCO | ImageSegData:
    if isinstance(section, Stage1Config):
        data = section.data
        if data.layer == "AnnotationCOCO":
            return AnnotationCOCO(
                files["image_root"],
                files["cues"],
                files["list"],
                num_classes=num_classes,
                grid=model.grid_size(data.new_height, data.new_width),
                new_height=data.new_height,
                new_width=data.new_width,
                mirror=data.mirror,
            )
        dataset = ImageData(
            files["image_root"],
            files["list"],
            files["cues"],
            num_classes=num_classes,
            background_label=data.background_label,
            grid=model.grid_size(data.new_height, data.new_width),
            new_height=data.new_height,
            new_width=data.new_width,
            mirror=data.mirror,
        )
        if section.loss.seed == "seed":
            for line in dataset.lines:  # its loss divides by the number of cues
                if not dataset.cues.cues(line.cue_index).size:
                    raise InputError(
                        f"{files['cues']}: image {line.cue_index} ({line.image}) has no cue cell; "
                        "loss.seed=seed needs at least one in every image, loss.seed=balanced does not"
                    )
        return dataset
    crop, shrink = section.data.crop_size, section.data.label_shrink
    grid = model.grid_size(crop, crop)[0]
    if (crop - 1) % shrink or (crop - 1) // shrink + 1 != grid:
        raise InputError(
            f"stage{stage}.data.crop_size {crop}: expected a multiple of 8 plus 1 with label_shrink 8, so that the "
            f"shrunk labels are sampled on the net's {grid}x{grid} grid"
        )
    return ImageSegData(
        files["image_root"],
        files["label_root"],
        files["list"],
        num_classes=num_classes,
        crop_size=(section.data.crop_size, section.data.crop_size),
        mirror=section.data.mirror,
        rgb=section.data.rgb,
    )


def _initial_model(config: Config, init: InitConfig) -> CaffeNet:
    model = build_model(
        config.model.name,
        num_classes=config.model.num_classes,
        width_divisor=config.model.width_divisor,
        dropout=config.model.dropout,
    )
    model.fill(init.filler, torch.Generator().manual_seed(config.seed))
    if init.weights:
        report = load_weights(model, init.weights, spread_branches=init.spread_branches)
        log.info("%s", report)
        if not report.loaded:
            raise InputError(
                f"{init.weights}: none of its layers is in {config.model.name}; it holds {report.unused}"
            )
    return model


def _take_over(solver: CaffeSGD, path: str) -> None:
    state = read_solverstate(path)
    try:
        solver.load_history(state.history, state.iter)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if state.iter >= solver.config.max_iter:
        raise InputError(
            f"{path}: its iteration {state.iter} is not below solver.max_iter {solver.config.max_iter}"
        )


def labels_sha256(root: str, list_path: str) -> str:
    """One hash over the label files that a list names, in its order; a missing one counts as empty."""
    digest = hashlib.sha256()
    for line in read_label_list(list_path):
        path = Path(root) / line.label.lstrip("/")
        digest.update(file_sha256(path).encode() if path.is_file() else b"-")
    return digest.hexdigest()


def _settings(
    config: Config, stage: int, section: Stage1Config | Stage2Config, hashes: dict[str, str]
) -> dict[str, Any]:
    """All that shapes the stage's weights; paths are stood for by the hashes of their contents."""
    fields = section.model_dump()
    for part, keys in _SHAPELESS.items():
        fields[part] = {key: value for key, value in fields[part].items() if key not in keys}
    fields["init"] = {key: fields["init"][key] for key in ("filler", "spread_branches")}
    return {
        "seed": config.seed,
        "precision": config.precision,
        "model": config.model.model_dump(),
        f"stage{stage}": fields,
        "inputs_sha256": hashes,
    }


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
