"""TensorBoard's files hold what the log and the other hooks say, and change nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from parity_tests.conftest import CAFFE_FILES
from parity_tests.processes import contents, rows
from parity_tests.recorded_files import SMALL, write_both
from repro.cli import run_command
from repro.data import write_mask


def arguments(inputs: Path, output: Path, *more: str) -> list[str]:
    folder = inputs / "stage1"
    return [
        *("train", "--stage", "1", "--config", "dsrg_vgg16_voc", "device=cpu", "model.width_divisor=16"),
        *(f"data.image_root={folder}/images", f"data.list={folder}/list.txt", "data.batch_size=2"),
        *(f"data.cues={folder}/localization_cues.pickle", "data.workers=0", "solver.base_lr=1e-5"),
        *(
            "solver.iter_size=2",
            f"init.weights={CAFFE_FILES}/stage1_init.caffemodel",
            f"output={output}",
            *SMALL[1],
            *more,
        ),
    ]


def without_events(folder) -> dict:
    found = {name: content for name, content in contents(folder).items() if "tensorboard" not in name}
    for name, content in found.items():
        if name.endswith(".state"):
            content["observed"] = {key: counts.tolist() for key, counts in content["observed"].items()}
    return found


def test_events_of_a_lengthened_run(golden, tmp_path):
    inputs = write_both(golden, tmp_path)
    truth = tmp_path / "truth"
    for path in (inputs / "stage1" / "images").iterdir():
        mask = np.zeros(Image.open(path).size[::-1], np.uint8)
        mask[: len(mask) // 2] = 1
        write_mask(truth / f"{path.stem}.png", mask)
    more = ("solver.snapshot=2", f"data.truth_root={truth}", "stage1.data.mirror=false")
    for last in (3, 4):
        call = arguments(inputs, tmp_path / "run", *more, "tensorboard=true", f"solver.max_iter={last}")
        assert run_command(call) == 0
    assert run_command(arguments(inputs, tmp_path / "plain", *more, "solver.max_iter=4")) == 0
    folder = tmp_path / "run" / "stage1"
    assert without_events(folder) == without_events(tmp_path / "plain" / "stage1")

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    log = rows(folder / "log.csv")
    names = [name for name in log[0] if name not in ("iteration", "lr", "loss")]
    assert names
    for tag, column in [("lr", "lr"), ("loss", "loss"), *((f"loss/{name}", name) for name in names)]:
        told = events.Scalars(tag)
        assert [event.step for event in told] == [0, 1, 2, 3]
        assert [event.value for event in told] == pytest.approx([float(row[column]) for row in log], rel=1e-6)
    quality = [row for row in rows(folder / "seed_quality.csv") if row["epoch"] != "0"]
    told = events.Scalars("seeds/precision")
    assert [event.step for event in told] == [int(row["iteration"]) - 1 for row in quality]
    assert [event.value for event in told] == pytest.approx([float(row["precision"]) for row in quality])
    masks = events.Images("masks")
    assert [event.step for event in masks] == [1, 2, 3]
    assert masks[0].width == 4 * masks[0].height  # two images beside their masks, in a row


def test_without_the_package(golden, tmp_path, monkeypatch, capfd):
    """The extra is named, and nothing is written."""
    inputs = write_both(golden, tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run_command(arguments(inputs, tmp_path / "run", "tensorboard=true")) == 2
    assert "the extra of that name: pip install tensorboard" in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
