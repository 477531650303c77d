"""Training takes no more memory the longer it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parity_tests.conftest import CAFFE_FILES
from parity_tests.recorded_files import write_stage1_inputs

MEGABYTES = 8  # malloc's own coming and going; a batch of one image, were it kept, would be 1.2 an iteration
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")


def resident(process: int) -> float:
    """Megabytes."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.parametrize("iterations", [40, pytest.param(2000, marks=pytest.mark.long)])
def test_memory_stays_flat(golden, tmp_path, record_property, iterations):
    """From a quarter of the run on: CRF, growing, both losses, loader workers, log and snapshots."""
    write_stage1_inputs(golden("stage1"), tmp_path)
    arguments = [
        *("train", "--stage", "1", "--config", "dsrg_vgg16_voc", "device=cpu", "model.width_divisor=16"),
        *(f"data.image_root={tmp_path}/images", f"data.list={tmp_path}/list.txt"),
        *(f"data.cues={tmp_path}/localization_cues.pickle", "data.batch_size=1", "data.workers=1"),
        *(
            "data.new_height=321",
            "data.new_width=321",
            "solver.base_lr=1e-5",
            f"solver.snapshot={iterations // 20}",
        ),
        *(f"solver.max_iter={iterations}", f"init.weights={CAFFE_FILES}/stage1_init.caffemodel"),
        f"output={tmp_path}/run",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = tmp_path / "run" / "stage1" / "log.csv"
    seen: list[tuple[int, float]] = []
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "repro", *arguments], env=environment, stderr=out)
        while process.poll() is None:
            if log.exists():
                seen.append((log.read_bytes().count(b"\n"), resident(process.pid)))
            time.sleep(0.25)
    assert process.returncode == 0, (tmp_path / "out").read_text()
    early = [memory for done, memory in seen if iterations // 4 <= done < iterations // 2]
    late = [memory for done, memory in seen if done >= 3 * iterations // 4]
    record_property("megabytes", (max(early), max(late)))
    print(
        f"{iterations} iterations: {max(early):.1f} MB in the second quarter, {max(late):.1f} MB in the last"
    )
    assert max(late) - max(early) < MEGABYTES
