"""Training either stage: its files checked and hashed, its net, data layer and losses made of the config, its loop run.

The loop itself is in ``loop.py``, what hangs on it in ``hooks.py``.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from repro import distributed
from repro.config import Config, InitConfig, Mark, Stage1Config, Stage2Config, shaping
from repro.data import AnnotationCOCO, CueDataset, CueFile, LabelMapDataset, read_label_list
from repro.data.image_list import CueLine, LabelLine, Lines, image_name
from repro.data.image_survey import survey_images
from repro.data.mask_set import check_masks
from repro.errors import InputError
from repro.models import CaffeNet
from repro.models.weights import load_weights
from repro.precision import to_device
from repro.run_folder import Run
from repro.solver import CaffeSolver, build_solver
from repro.training.batches import Batches
from repro.training.collapse import SEED_TERMS, CollapseWatch
from repro.training.hooks import stage_hooks
from repro.training.lengthen import lengthens
from repro.training.loop import Hook, SolverLoop
from repro.training.measured_filler import fill_by_first_batch, needs_measuring
from repro.training.objectives import Objective, stage1_objective, stage2_objective
from repro.training.seed_quality import SeedQuality
from repro.training.snapshots import snapshots
from weights_conversion import read_solverstate
from weights_conversion.conversion import check_history
from weights_conversion.files import check_plain, file_sha256, no_such

log = logging.getLogger(__name__)
# by backbone: what the papers start from
IMAGENET_WEIGHTS = {
    "vgg16": "vgg16_20M.caffemodel of the SEC and DSRG releases",
    "resnet101": "ResNet-101-model.caffemodel of He et al.'s release",
}


def train(config: Config, stage: int, run: Run, lines: Lines[Any] | None = None) -> Path:
    """Train a stage in ``<run>/stage<n>``, resuming from its newest snapshot if there is one.

    A run with a smaller ``max_iter`` is lengthened (``lengthen.py``).

    Args:
        config: the whole run; ``config.stage1`` or ``config.stage2`` is trained.
        stage: 1 (SEC, DSRG on cues) or 2 (retraining on pseudo labels).
        run: the run's folder and device.
        lines: the images, in place of the list that the stage's ``data`` names.

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
    files = _files(section, stage, needs_list=lines is None)
    content = Path(files["list"]).read_bytes() if lines is None else lines.text().encode()
    if lines is None and _reads_pairs(section):
        lines = read_label_list(files["list"])
    hashes = _hashes(section, files, lines, content)
    settings = stage_settings(config, stage, section, hashes)
    with run.step(f"stage{stage}", settings, partial(lengthens, place=(f"stage{stage}", "solver"))) as step:
        if not step.done:
            net, missing = _initial_net(config, section)
            dataset = _dataset(section, stage, files, lines, config.model.num_classes, net)
            batches = Batches.of(dataset, section, config.seed)
            objective, watchers = _objective(section, batches, config.model.num_classes)
            to_device(net, config, run.device)
            if not snapshots(step.folder):
                step.record |= fill_new_layers(config, stage, section.init, net, missing, batches)
            solver = build_solver(net, section.solver)
            if section.init.solverstate:
                take_over(solver, section.init.solverstate)
            hooks = stage_hooks(step, content, watchers)
            SolverLoop(net, solver, objective, batches, step.folder, hooks).run()
        return step.folder / f"iter_{section.solver.max_iter}.safetensors"


def _files(section: Stage1Config | Stage2Config, stage: int, *, needs_list: bool) -> dict[str, str]:
    """The files and folders that the stage reads, by key. Raises InputError for one not given or not there."""
    data, init = section.data.model_dump(), section.init
    files: dict[str, str] = {}
    for key in ("image_root", "label_root", "list", "cues"):
        if key in data and (needs_list or key != "list"):
            if data[key] is None:
                raise InputError(f"stage{stage}.data.{key}: not given; add data.{key}=PATH")
            files[key] = data[key]
    if isinstance(section, Stage1Config) and section.data.truth_root is not None:
        files["truth_root"] = section.data.truth_root
    files |= {
        key: path for key, path in (("weights", init.weights), ("solverstate", init.solverstate)) if path
    }
    for key, path in files.items():
        section_name = "init" if key in ("weights", "solverstate") else "data"
        is_folder = key.endswith("_root") or (key == "cues" and _cues_are_pngs(section))
        if not (Path(path).is_dir() if is_folder else Path(path).is_file()):
            reason = no_such("folder" if is_folder else "file", path)
            raise InputError(f"stage{stage}.{section_name}.{key}: {reason}")
    return files


def _objective(
    section: Stage1Config | Stage2Config, batches: Batches, num_classes: int
) -> tuple[Objective, list[Hook]]:
    """What the stage minimises, and what watches it."""
    if isinstance(section, Stage2Config):
        return stage2_objective(section.data.label_shrink), []
    collapse = CollapseWatch(num_classes, SEED_TERMS[section.loss.seed])
    if section.data.truth_root is None:
        return stage1_objective(section.loss), [collapse]
    log.info(
        "masks of %s: for the log of the seeds' quality alone; training does not see them",
        section.data.truth_root,
    )
    quality = SeedQuality(len(batches.layer), batches.images)
    return stage1_objective(section.loss, quality.watch), [collapse, quality]


def _cues_are_pngs(section: Stage1Config | Stage2Config) -> bool:
    return isinstance(section, Stage1Config) and section.data.layer == "AnnotationCOCO"


def _reads_pairs(section: Stage1Config | Stage2Config) -> bool:
    """Whether the list names an image and a PNG a line."""
    return isinstance(section, Stage2Config) or _cues_are_pngs(section)


def _dataset(
    section: Stage1Config | Stage2Config,
    stage: int,
    files: dict[str, str],
    lines: Lines[Any] | None,
    num_classes: int,
    net: CaffeNet,
) -> CueDataset | AnnotationCOCO | LabelMapDataset:
    """The stage's data layer, its files looked at as far as that takes no more than seconds."""
    dataset: CueDataset | AnnotationCOCO | LabelMapDataset
    if isinstance(section, Stage1Config):
        dataset = _cued_images(section, files, lines, num_classes, net)
    else:
        assert lines is not None
        dataset = _labelled_images(section, stage, files, lines, num_classes, net)
    survey_images(dataset.image_paths())
    if isinstance(section, Stage1Config) and section.data.truth_root is not None:
        root = Path(section.data.truth_root)
        names = (image_name(line.image) for line in dataset.lines)
        check_masks((root / f"{name}.png" for name in names), num_classes)
    return dataset


def _cued_images(
    section: Stage1Config, files: dict[str, str], lines: Lines[Any] | None, num_classes: int, net: CaffeNet
) -> CueDataset | AnnotationCOCO:
    data = section.data
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "grid": net.grid_size(data.new_height, data.new_width),
        "new_height": data.new_height,
        "new_width": data.new_width,
        "mirror": data.mirror,
        "truth_root": data.truth_root,
    }
    if lines and isinstance(lines[0], CueLine) == (data.layer == "AnnotationCOCO"):
        raise InputError(
            f"{lines.source}: stage1.data.layer={data.layer} does not read their cues; give data.list, too"
        )
    if data.layer == "AnnotationCOCO":
        assert lines is not None
        return AnnotationCOCO(files["image_root"], files["cues"], lines, **options)
    options["background_label"] = data.background_label
    cues = CueFile.open(files["cues"])
    if lines is None:
        lines = cues.lines(files["list"])
    elif cues.names is not None:
        lines = cues.named(lines, lines.source)
    dataset = CueDataset(files["image_root"], lines, cues, **options)
    if section.solver.max_iter * section.solver.iter_size * data.batch_size > len(dataset):
        dataset.keep(int(data.keep_gb * 1e9))
    if section.loss.seed == "seed":
        for line in dataset.lines:  # its loss divides by the number of cues
            if not dataset.cues.cues(line.cue_index).size:
                raise InputError(
                    f"{files['cues']}: image {line.cue_index} ({line.image}) has no cue cell; "
                    "loss.seed=seed needs at least one in every image, loss.seed=balanced does not"
                )
    return dataset


def _labelled_images(
    section: Stage2Config,
    stage: int,
    files: dict[str, str],
    lines: Lines[LabelLine],
    num_classes: int,
    net: CaffeNet,
) -> LabelMapDataset:
    crop, shrink = section.data.crop_size, section.data.label_shrink
    grid = net.grid_size(crop, crop)[0]
    if (crop - 1) % shrink or (crop - 1) // shrink + 1 != grid:
        raise InputError(
            f"stage{stage}.data.crop_size {crop}: expected a multiple of 8 plus 1 with label_shrink 8, so that the "
            f"shrunk labels are sampled on the net's {grid}x{grid} grid"
        )
    dataset = LabelMapDataset(
        files["image_root"],
        files["label_root"],
        lines,
        num_classes=num_classes,
        crop_size=(crop, crop),
        mirror=section.data.mirror,
        rgb=section.data.rgb,
    )
    check_masks(dataset.label_paths(), num_classes, are_predicted=True)
    return dataset


def _initial_net(config: Config, section: Stage1Config | Stage2Config) -> tuple[CaffeNet, list[str]]:
    """The net with its initial weights, on the CPU, and the layers that no weights file fills."""
    init, net = section.init, config.build_net()
    net.set_multipliers(section.multipliers)
    return net, fill_from(net, init, config.seed, [init.weights] if init.weights else [])


def fill_from(net: CaffeNet, init: InitConfig, seed: int, files: Iterable[str]) -> list[str]:
    """The initial weights, on the CPU: of ``init.filler``, then of the files; gives the layers that no file fills."""
    net.fill(init.filler, torch.Generator().manual_seed(seed))
    missing = [layer.name for layer in net.layers]
    for path in files:
        report = load_weights(net, path, spread_branches=init.spread_branches)
        log.info("%s", report)
        if not report.loaded:
            raise InputError(
                f"{path}: none of its layers is in {net.name or net.path}; it holds {report.unused}"
            )
        missing = [name for name in missing if name in report.missing]
    return missing


def fill_new_layers(
    config: Config, stage: int, init: InitConfig, net: CaffeNet, missing: list[str], batches: Batches
) -> dict[str, Any]:
    """Scale the new layers on the first mini-batch where ``init.filler`` is ``lsuv``; gives what the record says of it.

    Warns where the releases' filler does not fit the weights below it.
    """
    hidden = needs_measuring(net, missing)
    if not init.weights:
        papers = f"the papers start from ImageNet's weights ({IMAGENET_WEIGHTS[config.model.name.partition('_')[0]]})"
        if config.pretrains:
            papers = (
                "the embedded set's net is trained on further images first, which repro reproduce alone does"
            )
        log.warning(
            "stage%d.init.weights is not given: every layer starts from random values (filler %s); %s",
            stage,
            init.filler,
            papers,
        )
    elif hidden and init.filler == "gaussian":
        log.warning(
            "%s: has no %s; filled from N(0, 0.01) such layers saturate the softmax and nothing is learnt: add "
            "stage%d.init.filler=lsuv, which scales them on the first batch",
            init.weights,
            ", ".join(hidden),
            stage,
        )
    if init.filler == "lsuv" and distributed.is_first():  # the others get its weights
        return {"filler": fill_by_first_batch(net, missing, batches.first)}
    return {}


def take_over(solver: CaffeSolver, path: str) -> None:
    """Resume from a Caffe solver state. Raises InputError for one that does not fit, or holds NaN or infinity."""
    state = read_solverstate(path)
    check_history(state, path)
    try:
        solver.load_history(state.history, state.iter)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if state.iter >= solver.config.max_iter:
        raise InputError(
            f"{path}: its iteration {state.iter} is not below solver.max_iter {solver.config.max_iter}"
        )


def labels_sha256(root: str, lines: Iterable[LabelLine]) -> str:
    """One hash over the label files of a list, in its order; a missing one counts as empty."""
    digest = hashlib.sha256()
    for line in lines:
        path = os.path.join(root, line.label.lstrip("/"))
        check_plain(path)
        try:
            with open(path, "rb", buffering=0) as file:
                digest.update(hashlib.sha256(file.read()).hexdigest().encode())
        except FileNotFoundError:
            digest.update(b"-")
    return digest.hexdigest()


def _hashes(
    section: Stage1Config | Stage2Config, files: dict[str, str], lines: Lines[Any] | None, content: bytes
) -> dict[str, str]:
    """Of the contents of the files that the stage reads, of its list's ``content`` and the labels that this names."""
    hashes = {key: file_sha256(path) for key, path in files.items() if Path(path).is_file()}
    hashes["list"] = hashlib.sha256(content).hexdigest()
    if lines is not None and _reads_pairs(section):
        hashes["labels"] = labels_sha256(files["cues" if _cues_are_pngs(section) else "label_root"], lines)
    return hashes


def stage_settings(
    config: Config, stage: int, section: Stage1Config | Stage2Config, hashes: dict[str, str]
) -> dict[str, Any]:
    """The settings that decide the stage's weights; its files count by the hashes of their contents."""
    return {
        "seed": config.seed,
        "precision": config.precision,
        "model": shaping(config.model),
        f"stage{stage}": shaping(section, Mark.INPUT, Mark.EXTRA_INPUT),
        "inputs_sha256": hashes,
    }
