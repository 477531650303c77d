"""The papers' tables with our numbers in them, as data: rows and typed columns, before any format.

Everything comes from ``numbers.yaml`` (published), ``experiments.yaml`` (what answers what) and the runs' scores.
Formats are made of it in ``formats.py``; the same runs give the same bytes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from repro.metrics import Rule
from repro.paper.experiments import Cell, PaperTable
from repro.run.scores import ORIGINAL, PAPERS_IMAGES, TRAINED, Entry, Estimate, Scores, incomparable


@dataclass(frozen=True)
class Column:
    """``kind`` says what stands in it: ``text``, a ``number``, a ``signed`` one, or an `Estimate`; text may stand
    for any of them where there is none."""

    key: str
    title: str
    kind: Literal["text", "number", "signed", "estimate"]


@dataclass(frozen=True)
class Table:
    """Rows by column key. ``grid`` names the columns that span a table in two directions: down, across, value."""

    name: str
    title: str
    notes: list[str]
    columns: list[Column]
    rows: list[dict[str, Any]]
    decimals: int = 1
    grid: tuple[str, str] | None = None

    @property
    def has_run(self) -> bool:
        return any(isinstance(value, Estimate) for row in self.rows for value in row.values())


NO_RUN = "no run"
PAPER_HERE = "paper, the classes here"  # the column's title


def all_tables(scores: Scores) -> list[Table]:
    """Every table that the runs can answer, in their order, those without any run too; per-class ones where classes
    are published or a run has them."""
    tables = []
    for name, paper in scores.tables.items():
        tables.append(_cells_table(name, paper, scores))
        if any(cell.per_class for cell in paper.cells) and (
            per_class := _per_class_table(name, paper, scores)
        ):
            tables.append(per_class)
    return tables


def _cells_table(name: str, paper: PaperTable, scores: Scores) -> Table:
    entries = _entries(paper, scores)
    others = _other_rules(paper, entries)
    cells_of_epochs = any(cell.epoch is not None for cell in paper.cells)
    several_columns = len({cell.column for cell in paper.cells}) > 1
    columns = [
        Column("row", "method" if paper.layout == "list" and not cells_of_epochs else "", "text"),
        *([Column("column", "", "text")] if several_columns else []),
        Column("ours", "ours", "estimate"),
        Column("paper", "paper", "number"),
        Column("paper_present", PAPER_HERE, "number"),
        Column("original", "original weights", "estimate"),
        *(Column(f"ours_{rule}", f"ours, {rule} mean", "estimate") for rule in others),
        Column("difference", "difference", "signed"),
        Column("accuracy", "pixel accuracy", "estimate"),
        Column("seeds", "seeds", "text"),
        Column("runs", "runs", "text"),
    ]
    rows = []
    for cell in paper.cells:
        ours, original = scores.estimate(cell), scores.estimate(cell, ORIGINAL)
        runs = scores.of(cell)
        rows.append(
            {
                "row": cell.row,
                "column": cell.column,
                "paper": cell.paper,
                "original": original or NO_RUN,
                "ours": ours or cell.why or NO_RUN,
                "paper_present": paper_present(cell, runs),
                **{
                    f"ours_{rule}": scores.estimate(cell, rule=rule) if cell.epoch is None else None
                    for rule in others
                },
                "difference": ours.mean - cell.paper if ours and not any(map(incomparable, runs)) else None,
                "accuracy": Estimate.of([100 * entry["scores"]["pixel_accuracy"] for entry in runs])
                if cell.epoch is None
                else None,
                "seeds": " ".join(str(entry["seed"]) for entry in runs),
                "runs": " ".join(entry["run"] for entry in runs),
            }
        )
    empty = {column.key for column in columns if all(row[column.key] in (None, "") for row in rows)}
    if all(row["original"] == NO_RUN for row in rows):
        empty.add("original")
    notes = [f"Paper: {paper.source}. Percent.", *_notes(entries, paper, others)]
    if "original" in empty:
        notes.append("No original weights were evaluated here.")
    return Table(
        name=name,
        title=_title(paper, scores),
        notes=notes,
        columns=[column for column in columns if column.key not in empty - {"difference"}],
        rows=rows,
        decimals=paper.decimals,
        grid=("row", "column") if paper.layout == "grid" else None,
    )


def _per_class_table(name: str, paper: PaperTable, scores: Scores) -> Table | None:
    """A row a class; for each cell with published classes or a run the paper's, the original weights' and ours."""
    cells = [cell for cell in paper.cells if cell.per_class or scores.of(cell)]
    entries = _entries(paper, scores)
    published = next((list(cell.paper_per_class()) for cell in cells if cell.per_class), [])
    classes = entries[0]["classes"] if entries else published
    named = classes == published  # a bottle need not be VOC's
    cells = [cell for cell in cells if named or cell.run]
    columns = [Column("class", "class", "text")]
    rows: list[dict[str, Any]] = [{"class": text} for text in [*classes, "mean"]]
    for cell in cells:
        label = cell.row if cell.column == "val" else f"{cell.row}, {cell.column}"
        paper_values = cell.paper_per_class() if named else {}
        runs = {origin: scores.of(cell, origin) for origin in (TRAINED, ORIGINAL)}
        columns.append(Column(f"{cell.name}:ours", f"{label}: ours", "estimate"))
        if paper_values:
            columns.append(Column(f"{cell.name}:paper", f"{label}: paper", "number"))
        if runs[ORIGINAL]:
            columns.append(Column(f"{cell.name}:original", f"{label}: original weights", "estimate"))
        compared = bool(paper_values) and bool(runs[TRAINED]) and not any(map(incomparable, runs[TRAINED]))
        if compared:
            columns.append(Column(f"{cell.name}:difference", f"{label}: difference", "signed"))
        for index, row in enumerate(rows):
            mean = index == len(classes)
            paper_value = cell.paper if mean else paper_values.get(row["class"])
            row[f"{cell.name}:paper"] = paper_value
            ours = _class_estimate(runs[TRAINED], cell, None if mean else index)
            row[f"{cell.name}:ours"] = ours or ("does not occur" if runs[TRAINED] else cell.why or NO_RUN)
            row[f"{cell.name}:original"] = _class_estimate(runs[ORIGINAL], cell, None if mean else index)
            if compared and ours and paper_value is not None:
                row[f"{cell.name}:difference"] = ours.mean - paper_value
    if not classes:
        return None
    return Table(
        name=f"{name}_per_class",
        title=f"{_title(paper, scores)}: every class",
        notes=[f"Paper: {paper.source}. Percent.", *_notes(entries, paper)],
        columns=columns,
        rows=rows,
    )


def _title(paper: PaperTable, scores: Scores) -> str:
    """The table's title with the images that our numbers are of."""
    if scores.generated:
        return f"{paper.title} (generated images)"
    others = [entry.data for entry in _entries(paper, scores) if entry["dataset"] not in PAPERS_IMAGES]
    data = others[0] if others else paper.data
    return f"{paper.title} on {data}" if paper.data else paper.title


def _class_estimate(runs: Sequence[Entry], cell: Cell, index: int | None) -> Estimate | None:
    if index is None:
        return Estimate.of([value for entry in runs if (value := entry.value(cell)) is not None])
    values = [entry["scores"]["per_class_iou"][index] for entry in runs]
    return Estimate.of([100 * value for value in values if value is not None])


def _entries(paper: PaperTable, scores: Scores) -> list[Entry]:
    found = {
        (entry["run"], entry.stage): entry
        for cell in paper.cells
        for origin in (TRAINED, ORIGINAL)
        for entry in scores.of(cell, origin)
    }
    return list(found.values())


def _other_rules(paper: PaperTable, entries: Sequence[Entry]) -> list[Rule]:
    """The originals' rules whose mean is another than that of the table's own rule."""

    def shown(entry: Entry, rule: Rule) -> str:
        return f"{100 * entry['scores']['mean_iou'][rule]:.4f}"

    rules: tuple[Rule, ...] = ("voc", "released")
    return [
        rule
        for rule in rules
        if rule != paper.rule and any(shown(entry, rule) != shown(entry, paper.rule) for entry in entries)
    ]


def paper_present(cell: Cell, runs: Sequence[Entry]) -> float | None:
    """With the rule ``present``: the mean of the paper's classes that occur in the runs' ground truth, percent."""
    published = cell.paper_per_class()
    if cell.rule != "present" or not runs or list(published) != runs[0]["classes"]:
        return None
    absent = {runs[0]["classes"][index] for index in runs[0]["scores"]["absent_classes"]}
    values = [value for name, value in published.items() if name not in absent]
    return None if None in values else statistics.fmean(value for value in values if value is not None)


def _notes(entries: Sequence[Entry], paper: PaperTable, others: Sequence[Rule] = ()) -> list[str]:
    """What was measured, whether it may be compared with the paper's, how it is averaged."""
    if not entries:
        return ["No run answers this table yet."]
    notes = []
    first = entries[0]
    of_seeds = all(cell.epoch is not None for cell in paper.cells)
    images = f"{first['train_images']} training" if of_seeds else str(first["images"])
    where = (
        f"the embedded set: {images}{' ' if of_seeds else ' generated '}images of {len(first['classes'])} classes"
        if first["dataset"] == "mini"
        else f"{images} images{'' if of_seeds else f' of {first.data}'}"
    )
    found = (incomparable(entry, validated=not of_seeds) for entry in entries)
    reasons = sorted({reason for reason in found if reason})
    if reasons:
        notes.append(
            f"Measured on {where}. Beside the paper's numbers for orientation only, **not comparable**: "
            f"{'; '.join(reasons)}."
        )
    else:
        notes.append(f"Measured on {where}, as the paper's numbers are.")
    if first["dataset"] == "mini":
        begun = (
            "a net that had learnt the classes from the labels of further generated images"
            if all(entry["pretrained"] for entry in entries)
            else "random weights"
        )
        notes.append(f"Stage 1 began with {begun}, not with ImageNet's VGG16 as in the paper.")
        notes.append(
            "Images and schedule were chosen towards the paper's order of the rows, on other seeds than these: the set "
            "shows how the method works, its scores prove nothing (docs/embedded_set.md)."
        )
    changes = sorted({f"{key}={value}" for entry in entries for key, value in entry["changed"].items()})
    if changes:
        notes.append(f"Changed from the profile, so **not the paper's experiment**: {', '.join(changes)}.")
    classes = len(first["classes"])
    if paper.rule == "present":
        absent = len(first["scores"]["absent_classes"])
        notes.append(
            f"Mean over the {classes - absent} of {classes} classes that occur in the ground truth (rule `present`)"
            f"{'; `voc` counts the others as 0' if 'voc' in others else ''}."
        )
    if "released" in others and not of_seeds:
        counted = sorted({entry["scores"]["classes_counted"] for entry in entries})
        span = str(counted[0]) if len(counted) == 1 else f"{counted[0]} to {counted[-1]}"
        notes.append(
            f"Rule `released` counts only the classes with at least one correct pixel ({span} of {classes} here)"
            f"{', the other all' if paper.rule == 'voc' else ''}."
        )
    if len({entry["seed"] for entry in entries}) > 1:
        notes.append("± is the standard deviation over the seeds named.")
    return notes
