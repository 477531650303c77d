"""Markdown and CSV tables: the papers' numbers and ours, side by side.

Everything comes from two kinds of data: ``numbers.yaml`` (published values with their sources) and the
``scores_<stage>.json`` that each run leaves. The same runs give the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from repro.errors import InputError
from repro.files import write_text

METHODS = ("baseline", "+BSL", "+DSRG", "+Retrain", "SEC")
_FULL_VAL = 1449  # images of VOC 2012 val, which the papers' numbers are measured on
_KEYS = {
    *("run", "experiment", "settings_sha256", "changed", "seed", "method", "pretrained"),
    *("dataset", "images", "classes", "scores"),
}


@dataclass(frozen=True)
class Published:
    """A method's published numbers on VOC 2012 val, percent."""

    mean: float
    per_class: dict[str, float]
    source: str


def write_tables(runs: Iterable[Path], out_dir: Path) -> list[Path]:
    """Write ``table2.md``, ``table2.csv``, ``per_class.md`` and ``per_class.csv``.

    Args:
        runs: run folders, or ``scores_*.json`` files.
        out_dir: where to.

    Returns:
        The paths written.

    Raises:
        InputError: a folder without scores, a damaged file, or runs on different data sets or classes.
    """
    scores = _read_scores(runs)
    first = scores[0]
    for method in METHODS:
        repeated = _of(scores, method)
        for entry in repeated:
            if entry["settings_sha256"] != repeated[0]["settings_sha256"] or (
                entry is not repeated[0] and entry["seed"] == repeated[0]["seed"]
            ):
                raise InputError(
                    f"{entry['run']} and {repeated[0]['run']} are both {method} but no repetitions of each other "
                    "(other settings, or the same seed); name the runs to set side by side"
                )
    for entry in scores:
        for key in ("dataset", "images", "classes"):
            if entry[key] != first[key]:
                raise InputError(
                    f"{entry['run']}: {key} differs from {first['run']}'s; "
                    "tables set runs on the same images side by side"
                )
    contents = {
        "table2.md": _table2_markdown(scores),
        "table2.csv": _csv(_table2_rows(scores)),
        "per_class.md": _per_class_markdown(scores),
        "per_class.csv": _csv(_per_class_rows(scores)),
    }
    paths = [out_dir / name for name in contents]
    for path, text in zip(paths, contents.values(), strict=True):
        write_text(path, text)
    return paths


def write_all_tables(runs_dir: Path, results_dir: Path) -> list[Path]:
    """The tables of every experiment that has a finished run in ``runs_dir``, in ``results_dir/<experiment>``.

    Raises:
        InputError: no finished run, or as :func:`write_tables`.
    """
    experiments: dict[str, list[Path]] = {}
    for file in sorted(runs_dir.glob("*/scores_*.json")):
        (entry,) = _read_scores([file])
        experiments.setdefault(entry["experiment"], []).append(file)
    if not experiments:
        raise InputError(
            f"{runs_dir}: no finished run in it; make reproduce-mini or make reproduce-voc makes one"
        )
    return [path for name, files in experiments.items() for path in write_tables(files, results_dir / name)]


@cache
def published() -> dict[str, Published]:
    """The methods' rows of DSRG's Table 2 and SEC's Table 1, by the method's name here."""
    text = (resources.files("repro.report") / "numbers.yaml").read_text(encoding="utf-8")
    numbers = yaml.safe_load(text)
    classes = numbers["classes_voc"]
    rows = {
        method: (row, "Huang et al., CVPR 2018, Table 2")
        for method, row in numbers["dsrg"]["table2_voc_val_vgg16"].items()
    }
    rows["SEC"] = (numbers["sec"]["voc"]["val"], "Kolesnikov & Lampert, ECCV 2016, Table 1")
    return {
        method: Published(row["mean"], dict(zip(classes, row["per_class"], strict=True)), source)
        for method, (row, source) in rows.items()
    }


def comparable(dataset: str, images: int) -> bool:
    """Whether scores on these images may be set against the papers': only the whole of VOC 2012 val."""
    return dataset == "voc2012-val" and images == _FULL_VAL


def _read_scores(runs: Iterable[Path]) -> list[dict[str, Any]]:
    files: list[Path] = []
    for run in runs:
        found = sorted(run.glob("scores_*.json")) if run.is_dir() else [run]
        if not found:
            raise InputError(f"{run}: no scores_*.json, so no finished run")
        files += found
    files = list({file.resolve(): file for file in files}.values())  # a run named twice is still one
    if not files:
        raise InputError("tables: no run given")
    scores = []
    for file in files:
        try:
            entry = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: not a scores file ({error})") from None
        if not isinstance(entry, dict) or not entry.keys() >= _KEYS or entry["method"] not in METHODS:
            raise InputError(f"{file}: not a scores file (expected the keys {', '.join(sorted(_KEYS))})")
        results = entry["scores"]
        if (
            not isinstance(results, dict)
            or not results.keys() >= {"mean_iou", "per_class_iou", "pixel_accuracy", "classes_counted"}
            or len(results["per_class_iou"]) != len(entry["classes"])
        ):
            raise InputError(
                f"{file}: its scores are not those of evaluate for {len(entry['classes'])} classes"
            )
        scores.append(entry)
    return sorted(scores, key=lambda entry: (METHODS.index(entry["method"]), entry["seed"], entry["run"]))


def _methods(scores: Sequence[dict[str, Any]]) -> list[str]:
    """The rows to show: SEC's alone, or all of Table 2, those without a run too."""
    present = {entry["method"] for entry in scores}
    return ["SEC"] if present == {"SEC"} else [m for m in METHODS if m != "SEC" or "SEC" in present]


def _of(scores: Sequence[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    return [entry for entry in scores if entry["method"] == method]


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (None for one value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _percent(values: Sequence[float]) -> str:
    mean, spread = _mean_and_spread(values)
    return f"{100 * mean:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def _table2_rows(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    compare = comparable(scores[0]["dataset"], scores[0]["images"])
    for method in _methods(scores):
        runs = _of(scores, method)
        row: dict[str, Any] = {"method": method, "paper": published()[method].mean}
        for rule in ("released", "voc"):
            values = [entry["scores"]["mean_iou"][rule] for entry in runs]
            mean, spread = _mean_and_spread(values) if values else (None, None)
            row[f"ours_{rule}"] = "" if mean is None else f"{100 * mean:.4f}"
            row[f"sd_{rule}"] = "" if spread is None else f"{100 * spread:.4f}"
        ours = row["ours_voc"]
        row["difference"] = f"{float(ours) - row['paper']:.4f}" if ours and compare else ""
        row["images"] = scores[0]["images"] if runs else ""
        row["seeds"] = " ".join(str(entry["seed"]) for entry in runs)
        row["runs"] = " ".join(entry["run"] for entry in runs) or "no run"
        rows.append(row)
    return rows


def _table2_markdown(scores: Sequence[dict[str, Any]]) -> str:
    compare = comparable(scores[0]["dataset"], scores[0]["images"])
    differ = any(
        len({f"{100 * v:.4f}" for v in entry["scores"]["mean_iou"].values()}) > 1 for entry in scores
    )
    rules = ("voc", "released") if differ else ("voc",)
    header = ["method", "paper", *(f"ours ({rule})" if differ else "ours" for rule in rules)]
    header += ["difference", "pixel accuracy", "images", "runs"]
    body = []
    for method in _methods(scores):
        runs, paper = _of(scores, method), published()[method].mean
        if not runs:
            body.append([method, f"{paper:.1f}", *["no run"] * len(rules), "", "", "", ""])
            continue
        cells = [_percent([entry["scores"]["mean_iou"][rule] for entry in runs]) for rule in rules]
        mean = statistics.fmean(entry["scores"]["mean_iou"]["voc"] for entry in runs)
        body.append(
            [
                method,
                f"{paper:.1f}",
                *cells,
                f"{100 * mean - paper:+.1f}" if compare else "–",
                _percent([entry["scores"]["pixel_accuracy"] for entry in runs]),
                str(scores[0]["images"]),
                ", ".join(entry["run"] for entry in runs),
            ]
        )
    notes = [_measured_on(scores), _averaging(scores, differ)]
    changes = {f"{key}={value}" for entry in scores for key, value in entry["changed"].items()}
    if changes:
        notes.append(
            f"Changed from the profile, so **not the paper's experiment**: {', '.join(sorted(changes))}."
        )
    if not all(entry["pretrained"] for entry in scores):
        notes.append("Stage 1 began with random weights, not with ImageNet's VGG16 as in the paper.")
    if any(len(_of(scores, method)) > 1 for method in METHODS):
        notes.append("± is the standard deviation over the seeds of the runs named in the last column.")
    return "\n\n".join(["# Mean IoU by method", *notes, _markdown(header, body)]) + "\n"


def _per_class_rows(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    first = scores[0]
    compare = comparable(first["dataset"], first["images"])
    rows = []
    for method in _methods(scores):
        runs, row = _of(scores, method), published()[method]
        named = list(row.per_class) == first["classes"]  # a bottle need not be VOC's
        lines = [
            (
                name,
                row.per_class[name] if named else None,
                [e["scores"]["per_class_iou"][index] for e in runs],
            )
            for index, name in enumerate(first["classes"])
        ]
        lines += [
            (f"mean ({rule})", row.mean if named else None, [e["scores"]["mean_iou"][rule] for e in runs])
            for rule in ("released", "voc")
        ]
        for name, paper, values in lines:
            known = [value for value in values if value is not None]
            ours = 100 * statistics.fmean(known) if known else None
            difference = None if not compare or ours is None or paper is None else ours - paper
            rows.append(
                {
                    "method": method,
                    "class": name,
                    "paper": "" if paper is None else paper,
                    "ours": "" if ours is None else f"{ours:.4f}",
                    "difference": "" if difference is None else f"{difference:.4f}",
                    "images": first["images"] if runs else "",
                    "runs": " ".join(entry["run"] for entry in runs) or "no run",
                }
            )
    return rows


def _per_class_markdown(scores: Sequence[dict[str, Any]]) -> str:
    compare = comparable(scores[0]["dataset"], scores[0]["images"])
    parts = ["# IoU of every class", _measured_on(scores)]
    rows = _per_class_rows(scores)
    for method in _methods(scores):
        runs = _of(scores, method)
        parts.append(f"## {method}")
        if not runs:
            parts.append("no run")
            continue
        header = ["class", "paper", "ours", *(["difference"] if compare else [])]
        body = []
        for row in rows:
            if row["method"] != method:
                continue
            cells = [row["class"], "–" if row["paper"] == "" else f"{row['paper']:.1f}"]
            cells.append("does not occur" if row["ours"] == "" else f"{float(row['ours']):.1f}")
            if compare:
                cells.append("" if row["difference"] == "" else f"{float(row['difference']):+.1f}")
            body.append(cells)
        parts.append(
            f"Paper: {published()[method].source}. Runs: {', '.join(entry['run'] for entry in runs)}."
        )
        parts.append(_markdown(header, body))
    return "\n\n".join(parts) + "\n"


def _measured_on(scores: Sequence[dict[str, Any]]) -> str:
    """A sentence on what was measured, and whether it may be compared."""
    first = scores[0]
    dataset, images = first["dataset"], first["images"]
    if comparable(dataset, images):
        return f"Measured on the {images} images of VOC 2012 val, as the papers' numbers are. Percent."
    if dataset == "mini":
        what = f"Measured on the embedded set: {images} generated images of {len(first['classes'])} classes."
    else:
        what = f"Measured on {images} images of {dataset}, a part of the {_FULL_VAL} of VOC 2012 val."
    return f"{what} The paper's column (VOC 2012 val) is for orientation and **not comparable**. Percent."


def _averaging(scores: Sequence[dict[str, Any]], differ: bool) -> str:
    if not differ:
        return "Mean over all classes; the release's rule (classes with at least one correct pixel) gives the same."
    counted = sorted({entry["scores"]["classes_counted"] for entry in scores})
    span = str(counted[0]) if len(counted) == 1 else f"{counted[0]} to {counted[-1]}"
    return (
        "Two averages: `released` counts only the classes with at least one correct pixel "
        f"({span} of {len(scores[0]['classes'])} here), `voc` counts all."
    )


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, ["-"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
