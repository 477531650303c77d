"""The embedded set's stand-in for ImageNet: a net that knows the classes from image-level labels.

The papers start every row from VGG16 as ImageNet trained it. That net has other widths than the embedded set's, so the
set's net first learns which classes ``dataset.pretrain`` further images show, and sees each once: by SEC's expand loss
alone, which reads nothing but the images' labels, with the solver of stage 1. Images and weights are the same for every
row and every seed, as ImageNet's are.
"""

from __future__ import annotations

import math
from pathlib import Path

from repro.config import Config, LossConfig, ModelConfig, with_changes
from repro.data.experiment import MINI_ROOT
from repro.data.mini import build_mini
from repro.run_folder import Run, resolve_device
from repro.training.train import train

IMAGES_SEED = 1000  # no other set's
_LABELS_ALONE = LossConfig(seed="none", cues="fixed", constrain=False, expand=True)


def pretraining_folder(base: Config, model: ModelConfig) -> Path:
    """Where a net is pre-trained: ``<run>-pretrained-<net>``, the same for all rows and seeds."""
    return base.run_dir.with_name(f"{base.run_dir.name}-pretrained-{model.name}")


def pretraining_iterations(base: Config) -> int:
    """Iterations that show each of the ``dataset.pretrain`` images once."""
    assert base.dataset.pretrain is not None
    return math.ceil(base.dataset.pretrain / (base.stage1.data.batch_size * base.stage1.solver.iter_size))


def pretrained_weights(base: Config, model: ModelConfig) -> Path:
    """The weights in the `pretraining_folder`, trained now where they are not there.

    The images go beside the embedded set, into ``<dataset.root>-pretraining``.
    """
    assert base.dataset.pretrain is not None
    root = Path(base.dataset.root) if base.dataset.root else MINI_ROOT
    images = build_mini(
        root.with_name(f"{root.name}-pretraining"), seed=IMAGES_SEED, train=base.dataset.pretrain, val=1
    )
    config = with_changes(
        base,
        {
            "seed": 0,
            "rows": ["baseline"],
            "dataset.pretrain": None,
            "stage1.solver.max_iter": pretraining_iterations(base),
            "model": model.model_dump(),
            "stage1.loss": _LABELS_ALONE.model_dump(),
            "stage1.data.image_root": str(images.images),
            "stage1.data.list": str(images.root / "input_list.txt"),
            "stage1.data.cues": str(images.root / "localization_cues.pickle"),
            "stage1.data.truth_root": None,
        },
        "pre-training",
    )
    return train(config, 1, Run(config, resolve_device(config.device), pretraining_folder(base, model)))
