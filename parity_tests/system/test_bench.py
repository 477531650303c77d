"""The benchmark: what it times, what it writes, and that its yardsticks are right."""

from __future__ import annotations

import json
import math
import re
import time
from importlib.util import find_spec

import pytest
import torch

from repro.bench.run import write_table
from repro.bench.timing import Timer, matmul_rate
from repro.bench.training import network_flops
from repro.cli import run_command
from repro.config import load_config

NARROW = ["model.width_divisor=16", "data.batch_size=2", "data.new_height=97", "data.new_width=97"]


@pytest.mark.parametrize("precision", ["faithful", pytest.param("fast", marks=pytest.mark.long)])
def test_bench_writes_every_part_and_a_table(tmp_path, capsys, monkeypatch, precision):
    """Every part, on images of a quarter of the benchmark's sides: their labels follow the sizes."""
    for module in ("inputs", "training"):
        monkeypatch.setattr(f"repro.bench.{module}.HEIGHT", 94)
        monkeypatch.setattr(f"repro.bench.{module}.WIDTH", 125)
    monkeypatch.setattr("repro.bench.inference.SIDE", 81)
    out = tmp_path / "bench"
    arguments = ["bench", *NARROW, f"precision={precision}", "--seconds", "0.01", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["/usr/bin/repro", *arguments, "device=cpu"])
    assert run_command([*arguments, "device=cpu"]) == 0
    (file,) = out.glob("*.json")
    assert str(tmp_path) not in file.read_text()
    result = json.loads(file.read_text())
    assert result["command"][-3:] == ["--seconds", "0.01", "device=cpu"]
    assert (result["precision"], result["batch_size"], result["device"]) == (precision, 2, "cpu")
    assert result["peak_memory_bytes"] > 2**20
    rows = {row["part"]: row for row in result["rows"]}
    assert list(rows) == [
        "loader, decoding",
        "loader, images kept",
        "network, forward",
        "network, backward",
        "CRF, 2 x 13x13",
        "growing",
        "softmax and losses, both ways",
        "solver",
        "between scores and their gradient",
        "all but the network",
        "whole iteration",
        "CRF, 94x125",
        "whole prediction, dsrg_final",
        "network 81x81, batch 1, ONNX Runtime CPU fp32, PyTorch",
        "network 81x81, batch 1, ONNX Runtime CPU fp32, PyTorch default layout",
        "network 81x81, batch 1, ONNX Runtime CPU fp32, PyTorch fast",
        "125x94 bytes to mask, batch 1, ONNX Runtime CPU fp32, PyTorch",
        "125x94 bytes to mask, batch 1, ONNX Runtime CPU fp32, PyTorch fast",
    ]
    assert all(row["seconds"] > 0 for row in rows.values())
    assert rows["network, forward"]["metrics"]["of the matmul rate"] > 0
    assert 0 < rows["whole prediction, dsrg_final"]["metrics"]["CRF share"] < 1.5
    for part in (part for part in rows if "ONNX Runtime" in part):
        assert rows[part]["metrics"]["images/s"] == pytest.approx(1 / rows[part]["seconds"])
        assert rows[part]["ratio"] > 0
    for part in ("CRF, 2 x 13x13", "growing", "CRF, 94x125"):
        if find_spec("pydensecrf"):
            assert rows[part]["ratio"] > 0
            assert rows[part]["reference_seconds"] > 0
    table = (out / "bench.md").read_text()
    assert all(table.count(f"| {part} |") == 1 for part in rows)
    assert table in capsys.readouterr().out

    (out / "other.json").write_text(json.dumps(result | {"precision": "other"}))
    table = write_table(out).read_text()  # a section for each benchmark there
    assert sorted(re.findall(r"^## .*, (\w+)$", table, re.MULTILINE)) == sorted([precision, "other"])


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("data.batch_size=0", "batch_size"),
        ("--config=sec_vgg16_voc", "dsrg expected"),
        ("precision=slow", "precision"),
    ],
)
def test_bad_settings_get_one_line_and_write_nothing(tmp_path, capsys, override, reason):
    assert run_command(["bench", override, "--out", str(tmp_path / "bench")]) == 2
    error = capsys.readouterr().err.strip()
    assert reason in error
    assert "\n" not in error
    assert not (tmp_path / "bench").exists()


def test_a_ratio_is_that_of_neighbours():
    timer = Timer(torch.device("cpu"), seconds=0.2)
    row = timer.against("work", lambda: time.sleep(0.004), "reference", lambda: time.sleep(0.012))
    assert row.ratio is not None
    assert row.seconds >= 0.004
    assert row.reference_seconds >= 0.012
    assert timer.against("work", lambda: None, "reference", None).ratio is None


def test_steps_are_timed_in_their_order():
    seen = []
    times = Timer(torch.device("cpu"), seconds=0.01).steps(
        {"a": lambda: seen.append("a"), "b": lambda: (seen.append("b"), time.sleep(0.003))}
    )
    assert "".join(seen) == "ab" * (len(seen) // 2)
    assert times["b"] >= 0.003
    assert times["a"] > 0


def test_flops_are_those_of_the_convolutions():
    """Twice outputs x inputs x taps a cell; backward twice that, but for the gradient of the images."""
    config = load_config("dsrg_vgg16_voc", ["model.width_divisor=16"])
    counts = network_flops(config, (2, 3, 33, 33))
    from repro.models import build_model
    from repro.models.layer_types.convolution import Convolution

    model, images = build_model("vgg16_aspp", width_divisor=16), torch.zeros(2, 3, 33, 33)
    want, first = 0, 0

    def count(module, inputs, output):
        nonlocal want, first
        flops = 2 * output.numel() * module.weight[0].numel()
        want += flops
        first = first or flops

    for module in model.modules():
        if isinstance(module, Convolution):
            module.register_forward_hook(count)
    model(images)
    assert counts == {"forward": want, "backward": 2 * want - first}


def test_matmul_rate_is_a_rate():
    rate = matmul_rate(Timer(torch.device("cpu"), seconds=0.05), torch.float32, 256)
    assert math.isfinite(rate)
    assert rate > 0
