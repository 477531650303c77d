"""What the command line loads: `repro --help`, each verb's help and completion need no torch, training no compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from repro import __version__
from repro.cli import run_command

ROOT = Path(__file__).parents[2]
HEAVY = (
    *("torch", "numpy", "scipy", "numba", "llvmlite", "h5py", "PIL", "pycocotools", "ijson", "matplotlib"),
    *(
        "yaml",
        "google",
        "safetensors",
        "requests",
        "jinja2",
        "tqdm",
        "onnx",
        "onnxruntime",
        "cv2",
    ),
)
GROUPS = {
    (): "check train evaluate reproduce tables check-paper bench predict pseudo-labels export check-submission "
    "convert prototxt inspect data seeds",
    ("data",): "fetch sbd verify halve mini cues labels masks coco-masks",
    ("seeds",): "train make from-cams score",
}
VERBS = [(*group, verb) for group, verbs in GROUPS.items() for verb in verbs.split()]


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    return done.stdout


def test_no_help_loads_what_is_heavy():
    code = f"""
import contextlib, io, sys
from repro.cli import run_command
loaded = {{}}
for verb in {[(), *VERBS]}:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert run_command([*verb, "--help"]) == 0, verb
    assert "Usage: repro" in text.getvalue()
    loaded[verb] = [name for name in {HEAVY} if name in sys.modules]
print(loaded)
"""
    assert eval(run(code)) == {verb: [] for verb in [(), *VERBS]}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell, capsys, monkeypatch):
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    assert run_command(["--show-completion"]) == 0
    script = capsys.readouterr().out
    assert f"complete_{shell}" in script
    assert "_REPRO_COMPLETE" in script


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_completion_knows_every_verb(group):
    line = " ".join(["repro", *group, ""])
    told = run(
        "from repro.__main__ import main; main()",
        _REPRO_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(group) + 1),
    )
    assert sorted(told.split()) == sorted(GROUPS[group].split())


def test_completion_of_profiles():
    told = run(
        "from repro.__main__ import main; main()",
        _REPRO_COMPLETE="complete_bash",
        COMP_WORDS="repro train --config dsrg_vgg16_v",
        COMP_CWORD="3",
    )
    assert told.split() == ["dsrg_vgg16_voc", "dsrg_vgg16_voc_released"]


def test_version(capsys):
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"repro {__version__}\n"


NET = """
layer { name: "d" type: "DummyData" top: "data" dummy_data_param { shape { dim: 2 dim: 3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 1 } }
layer { name: "loss" type: "Reduction" bottom: "ip" top: "loss" loss_weight: 1 }
"""


def test_training_loads_no_compiler_and_nothing_to_draw_with(tmp_path):
    """PyTorch's own optimizers import ``torch._dynamo`` when one is made, which takes seconds."""
    (tmp_path / "net.prototxt").write_text(NET)
    solver = f'net: "{tmp_path}/net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 2 snapshot: 1'
    (tmp_path / "solver.prototxt").write_text(solver)
    call = ["train", "--solver", f"{tmp_path}/solver.prototxt", "device=cpu", f"output={tmp_path}/run"]
    code = f"""
import sys
from repro.cli import run_command
assert run_command({call}) == 0
print([name for name in ("torch._dynamo", "matplotlib", "onnx", "cv2", "sympy") if name in sys.modules])
"""
    assert run(code).splitlines()[-1] == "[]"
    assert (tmp_path / "run" / "train" / "iter_2.state").exists()
