"""The scripts of docs/clusters.md run as they stand, Slurm's commands being played by small scripts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parity_tests.conftest import CAFFE_FILES, ROOT
from parity_tests.recorded_files import SMALL, write_stage1_inputs

SCRIPT = ROOT / "tools" / "cluster" / "train.slurm"


def stub(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path) -> dict[str, str]:
    """An environment in which ``srun`` runs its command here and ``scontrol`` says what it was asked."""
    (tmp_path / "bin").mkdir()
    stub(tmp_path / "bin" / "srun", 'shift; exec "$@"')
    stub(tmp_path / "bin" / "scontrol", f'[ "$1" = show ] && echo localhost || echo "$@" >> {tmp_path}/asked')
    return {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "GPUS_PER_NODE": "2",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_CPUS_PER_TASK": "2",
    }


def test_a_slurm_job_trains_and_one_that_runs_out_of_time_queues_again(golden, cluster, tmp_path):
    write_stage1_inputs(golden("stage1"), tmp_path, every=2)
    log = tmp_path / "run" / "stage1" / "log.csv"
    arguments = [
        *("train", "--stage", "1", "--config", "dsrg_vgg16_voc", "device=cpu", "model.width_divisor=16"),
        *(f"data.image_root={tmp_path}/images", f"data.list={tmp_path}/list.txt", "data.batch_size=3"),
        *SMALL[1],
        *(f"data.cues={tmp_path}/localization_cues.pickle", "data.workers=0", "solver.base_lr=1e-5"),
        *(
            "solver.max_iter=1000",
            f"init.weights={CAFFE_FILES}/stage1_init.caffemodel",
            f"output={tmp_path}/run",
        ),
    ]
    job = subprocess.Popen(
        [SCRIPT, *arguments],
        env=cluster,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.time() + 600
    while time.time() < deadline and job.poll() is None:
        if log.exists() and log.read_bytes().count(b"\n") > 2:
            break
        time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    said = job.communicate(timeout=600)[0]
    assert job.returncode != 0
    assert "stopped by SIGTERM; the same command resumes from iteration" in said, said
    assert (tmp_path / "asked").read_text().split() == ["requeue", cluster["SLURM_JOB_ID"]]
    (state,) = (tmp_path / "run" / "stage1").glob("iter_*.state")
    assert int(re.search(r"\d+", state.name)[0]) > 1


@pytest.mark.parametrize("status", [0, 3])
def test_a_job_that_is_not_stopped_ends_with_its_own_status(cluster, tmp_path, status):
    """And is not queued again. What it is to run is told by a script that stands in for Python."""
    stub(tmp_path / "python", f"printf '%s\\n' \"$@\"\nexit {status}")
    ended = subprocess.run(
        [SCRIPT, "train", "output=a folder"],
        env={**cluster, "PYTHON": str(tmp_path / "python")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert ended.returncode == status
    told = ended.stdout.splitlines()
    assert told[:6] == ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"]
    assert told[-4:] == ["-m", "repro", "train", "output=a folder"]
    assert not (tmp_path / "asked").exists()


def test_the_page_names_what_there_is():
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    assert "tools/cluster/train.slurm" in page
    for path in re.findall(r"\((\.\./[^)#]+)\)", page):
        assert (ROOT / "docs" / path).exists(), path
