"""The page's opening table: the rows that a reader asks for first, beside the paper's, with what each one cost."""

from __future__ import annotations

import functools
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from repro.paper.experiments import Cell, experiments
from repro.report.manifest import peak_memory
from repro.report.tables import PAPER_HERE, paper_present
from repro.run.scores import TRAINED, Entry, Estimate, Scores, incomparable

# the rows whose masks are worth a look, the one that images are judged by last
_ROWS = ("baseline", "+BSL", "+DSRG", "+Retrain")
_CELLS = (
    *("table1/SEC/val", *(f"table2/{row}/val" for row in _ROWS)),
    *(f"{images}/{row}/val" for images in ("animals", "animals_half") for row in ("SEC", *_ROWS)),
)
_PAPERS_SIDE = 321  # pixels of an image in training
_LATER = ("pseudo_labels", "stage2", "predictions/stage2")  # steps that a row of stage 1 did without


@dataclass(frozen=True)
class SummaryRow:
    """``paper`` and ``ours`` in percent; ``paper_here`` is the paper's mean over the classes that occur in our images,
    where our headline is such a mean. What it cost is a mean over the seeds: ``seconds`` of its steps, ``joules``
    where every device told them, ``memory`` the largest peak in bytes; None where it is not known, as the time of a
    step that was cut off and resumed."""

    name: str
    paper: float
    paper_here: float | None
    ours: Estimate
    seeds: list[int]
    comparable: bool
    seconds: float | None
    joules: float | None
    memory: int | None


@dataclass(frozen=True)
class Summary:
    """``rows`` in the tables' order; ``data`` says what was measured, ``devices`` on what it was trained, ``title``
    what all of it is, and ``pretraining`` whether the rows' costs hold the one that they share; None without any."""

    rows: list[SummaryRow]
    data: str
    generated: bool
    devices: list[str]
    title: str
    pretraining: bool | None = None

    def as_json(self) -> dict[str, Any]:
        """What the index of all results and the README's table are made of."""
        rows = [
            {
                "row": row.name,
                "paper": row.paper,
                "paper_here": row.paper_here,
                "ours": round(row.ours.mean, 4),
                "sd": None if row.ours.sd is None else round(row.ours.sd, 4),
                "seeds": row.seeds,
                "comparable": row.comparable,
                "seconds": row.seconds,
                "joules": row.joules,
                "memory_bytes": row.memory,
            }
            for row in self.rows
        ]
        return {
            "title": self.title,
            "data": self.data,
            "generated": self.generated,
            "devices": self.devices,
            "rows": rows,
        }


def closing_lines(summary: dict[str, Any]) -> list[str]:
    """A finished experiment's summary (``summary.json``) for a terminal: the rows beside the paper's, as in the README.

    >>> row = {"row": "+DSRG", "paper": 57.6, "ours": 55.15, "sd": None, "seeds": [0]}
    >>> print(*closing_lines({"data": "40 images", "rows": [row]}), sep="\\n")
    mean IoU, percent    +DSRG
    paper, VOC 2012 val   57.6
    here                  55.1
    here: 40 images
    """
    rows = summary["rows"]
    if not rows:
        return []
    ours = [f"{row['ours']:.1f}" + (f" ± {row['sd']:.1f}" if row["sd"] is not None else "") for row in rows]
    table = [
        ["mean IoU, percent", *(row["row"] for row in rows)],
        ["paper, VOC 2012 val", *(f"{row['paper']:.1f}" for row in rows)],
        ["here", *ours],
    ]
    here = [row.get("paper_here") for row in rows]
    if any(mean is not None for mean in here):
        table.insert(2, [PAPER_HERE, *("–" if mean is None else f"{mean:.1f}" for mean in here)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            [
                cells[0].ljust(widths[0]),
                *(cell.rjust(w) for cell, w in zip(cells[1:], widths[1:], strict=True)),
            ]
        )
        for cells in table
    ]
    return [*lines, *textwrap.wrap(f"here: {summary['data']}", 80, subsequent_indent="  ")]


def headline(scores: Scores) -> list[tuple[Cell, list[Entry]]]:
    """SEC and Table 2's rows that have a run, in the tables' order: the cell, and its runs by seed."""
    cells = (experiments().cell(name) for name in _CELLS)
    return [(cell, runs) for cell in cells if (runs := scores.of(cell))]


def summarise(scores: Scores, manifest: dict[str, Any]) -> Summary:
    """The summary of some runs; ``manifest`` as :func:`repro.report.manifest.manifest` gives it."""
    rows, devices, pretrained = [], [], []
    for cell, runs in headline(scores):
        ours = scores.estimate(cell)
        assert ours is not None
        steps = [_steps(entry, manifest) for entry in runs]
        for entry in runs:
            recorded = manifest["runs"].get(entry.folder.name, {})
            inputs = recorded.get("inputs", {})
            for run in (entry.folder.name, *(each["run"] for each in inputs.values())):
                for step in manifest["runs"].get(run, {}).get("steps", {}).values():
                    devices.append(str(step.get("device_name") or step.get("device", "")))
            own_weights = _setting(recorded, "stage1", "init", "weights")
            if _setting(recorded, "dataset", "pretrain") is not None and own_weights is None:
                pretrained.append("weights" in inputs)
        rows.append(
            SummaryRow(
                name=cell.row,
                paper=cell.paper,
                paper_here=paper_present(cell, runs),
                ours=ours,
                seeds=[entry["seed"] for entry in runs],
                comparable=not any(map(incomparable, runs)),
                seconds=_mean([_sum(_whole(step, "seconds_last_call") for step in each) for each in steps]),
                joules=_mean([_sum(_whole(step, "energy_joules") for step in each) for each in steps]),
                memory=max((peak_memory(step) or 0 for each in steps for step in each), default=0) or None,
            )
        )
    return Summary(
        rows=rows,
        data=_measured_on(scores, manifest),
        generated=scores.generated,
        devices=_different(devices),
        title=_title(scores),
        pretraining=all(pretrained) if pretrained else None,
    )


def _title(scores: Scores) -> str:
    if scores.generated:
        return "The embedded set"
    name = scores.entries[0]["family"] if scores.entries else ""
    return experiments().families.get(name, name)


def _different(devices: Sequence[str]) -> list[str]:
    """Each device once; older runs have a CPU's name without its vector instructions, which one other name tells."""
    names = dict.fromkeys(filter(None, devices))
    return [name for name in names if sum(other.startswith(f"{name} (") for other in names) != 1]


def _steps(entry: Entry, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured of the steps behind a run's masks."""
    left_out = {"growth", "predictions/stage1"} if entry.stage == "stage2" else {"growth", *_LATER}
    measured, run = manifest["measured"], entry.folder.name
    steps = [step for name, step in measured.get(run, {}).items() if name not in left_out]
    for made in manifest["runs"].get(run, {}).get("inputs", {}).values():
        stage = made["file"].partition("/")[0]
        steps += [step for name, step in measured[made["run"]].items() if name.partition("/")[0] == stage]
    return steps


def _whole(step: dict[str, Any], key: str) -> float | None:
    """A figure of a step's last call; None where that call resumed what an earlier one had begun."""
    return None if step.get("resumed") else step.get(key)


def _sum(values: Any) -> float | None:
    found = list(values)
    return None if not found or None in found else sum(found)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known), 3) if values and len(known) == len(values) else None


def _measured_on(scores: Scores, manifest: dict[str, Any]) -> str:
    entries = [entry for entry in scores.entries if entry["origin"] == TRAINED] or scores.entries
    if not entries:
        return "no run"
    first = entries[0]
    if scores.generated:
        return (
            f"{first['images']} generated images of the embedded set ({len(first['classes'])} classes, "
            f"{first['train_images']} images to train on), no photographs"
        )
    size = _size(manifest["runs"].get(first.folder.name, {}))
    return f"{first['images']} images of {first.data}, trained on {first['train_images']}{size}"


def _setting(recorded: Any, *keys: str) -> Any:
    """Of a run in the manifest; None where it has none, as one of another version."""
    try:
        return functools.reduce(lambda section, key: section[key], ("config", *keys), recorded)
    except (KeyError, TypeError):
        return None


def _size(recorded: Any) -> str:
    """The size of the images that a run's stage 1 trains on, where it is another than the papers'."""
    size = tuple(_setting(recorded, "stage1", "data", key) for key in ("new_height", "new_width"))
    if None in size or size == (_PAPERS_SIDE, _PAPERS_SIDE):
        return ""
    half = "half size, " if size == (_PAPERS_SIDE // 2 + 1,) * 2 else ""
    return f" at {half}{size[0]}x{size[1]} (the papers: {_PAPERS_SIDE}x{_PAPERS_SIDE})"
