"""One benchmark: its rows as JSON, and a Markdown table of all that lie beside it."""

from __future__ import annotations

import re
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from repro.bench.inference import inference_rows
from repro.bench.inputs import inputs
from repro.bench.timing import Timer, Timing
from repro.bench.training import prediction_rows, training_rows
from repro.config import Config
from repro.errors import InputError
from repro.files import read_json, write_report
from repro.measure import peak_memory
from repro.run_folder import machine_name, provenance, resolve_device
from weights_conversion.files import check_target, write_text

PICTURES = 60  # of the loader: more than a batch, so that it has to shuffle and decode


def bench(config: Config, out: Path, *, seconds: float = 2.0) -> tuple[Path, Path]:
    """Time every part of ``config``'s stage 1 and of its prediction, and PyTorch against ONNX Runtime.

    Args:
        config: net, batch size, precision and device are taken from it.
        out: folder for ``<device>-<precision>.json`` and ``bench.md``, the table of all JSON files there.
        seconds: what a part may take; of what takes longer, two runs are timed.

    Returns:
        The two files written.

    Raises:
        InputError: a device that is not there, or data of another kind than the benchmark's own.
    """
    if config.stage1.data.layer != "ImageData":
        raise InputError(f"bench: stage1.data.layer is {config.stage1.data.layer}, ImageData expected")
    if config.stage1.loss.variant != "dsrg":
        raise InputError(f"bench: stage1.loss.variant is {config.stage1.loss.variant}, dsrg expected")
    device = resolve_device(config.device)
    timer = Timer(device, seconds=seconds)
    data, fields = config.stage1.data, config.model
    grid = config.build_net().grid_size(data.new_height, data.new_width)
    references = find_spec("pydensecrf") is not None
    rows: list[Timing] = []
    with inputs(max(PICTURES, data.batch_size), fields.num_classes, grid) as given:
        for part in (training_rows, prediction_rows):
            bar = tqdm(part(config, given, timer, references), desc="bench", unit="part", disable=None)
            rows.extend(bar)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
        rows.extend(tqdm(inference_rows(config, given, timer), desc="bench", unit="part", disable=None))
    made_by = provenance(config, device)
    result = {
        **made_by,
        "command": _without_out(made_by["command"]),
        "precision": config.precision,
        "model": fields.model_dump(),
        "batch_size": data.batch_size,
        "peak_memory_bytes": peak,
        "rows": [asdict(row) for row in rows],
    }
    path = out / f"{_slug(machine_name(result))}-{config.precision}.json"
    write_report(path, result)
    return path, write_table(out)


def _without_out(command: list[str]) -> list[str]:
    """A command without ``--out FOLDER``: the folder is one of this machine, and changes no number."""
    kept = [word for word in command if not word.startswith("--out=")]
    if "--out" in kept:
        place = kept.index("--out")
        del kept[place : place + 2]
    return kept


_HEADING = "# Benchmark\n\nWritten by `repro bench`"


def write_table(folder: Path) -> Path:
    """``bench.md`` in ``folder``: a section for each JSON file of a benchmark there."""
    sections = [
        f"{_HEADING}. A time is the best of its runs, a ratio the median of runs that "
        "alternate in one process (above 1: faster than the reference).\n"
    ]
    for path in sorted(folder.glob("*.json")):
        sections.append(_section(read_json(path, "a benchmark's result")))
    table = folder / "bench.md"
    check_target(table, of="table", begins=_HEADING.encode())
    write_text(table, "\n".join(sections))
    return table


def _section(result: dict[str, Any]) -> str:
    model = result["model"]
    width = "" if model["width_divisor"] == 1 else f" at 1/{model['width_divisor']} width"
    lines = [
        f"## {machine_name(result)}, {result['precision']}",
        "",
        f"{model['name']}{width}, batch {result['batch_size']}, torch {result['versions']['torch']}, "
        f"peak memory {result['peak_memory_bytes'] / 2**30:.1f} GiB; commit {(result['commit'] or 'unknown')[:12]}"
        f"{' with changes' if result['dirty'] else ''}",
        "",
        "| part | ms | reference | its ms | ratio | |",
        "|-|-|-|-|-|-|",
    ]
    for row in result["rows"]:
        metrics = ", ".join(f"{_short(value)} {name}" for name, value in (row["metrics"] or {}).items())
        compared = ["", "", ""]
        if row["reference"]:
            compared = [row["reference"], _short(1e3 * row["reference_seconds"]), f"{row['ratio']:.2f}"]
        cells = [row["part"], _short(1e3 * row["seconds"]), *compared, metrics]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _short(value: float) -> str:
    """Three digits that count; large numbers are written out."""
    return f"{float(f'{value:.3g}'):,.10g}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
