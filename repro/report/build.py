"""The results folder: everything that is made of finished runs, in one place, the same bytes from the same runs.

README.md          the verdict, and every table that has a run
verdict.json       every published value: reproduced, missed, not comparable, not run
tables/            each table as .md, .csv and .tex; tables.tex sets them all
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from repro.errors import InputError
from repro.files import write_text
from repro.report import formats
from repro.report.experiments import PAPER
from repro.report.scores import Entry, Scores, family_scores, read_scores
from repro.report.tables import all_tables
from repro.report.verdict import Verdict, judge


def report_runs(runs: Iterable[Path], out_dir: Path) -> Path:
    """The results folder of some run folders or ``scores_*.json`` files.

    Returns:
        The folder.

    Raises:
        InputError: a folder without scores, a damaged file, or runs that cannot stand side by side.
    """
    return _build(read_scores(runs), out_dir)


def report_family(runs_dir: Path, out_dir: Path, family: str, bases: dict[str, str]) -> Path:
    """The results folder of a family's finished runs in ``runs_dir``; ``bases`` as in ``family_scores``."""
    return _build(family_scores(runs_dir, family, bases)[family], out_dir)


def report_all(runs_dir: Path, results_dir: Path) -> list[Path]:
    """A results folder ``results_dir/<family>`` for every family that has a finished run in ``runs_dir``.

    Raises:
        InputError: no finished run, or as :func:`report_runs`.
    """
    families = family_scores(runs_dir)
    if not families:
        raise InputError(
            f"{runs_dir}: no finished run in it; make reproduce-mini or make reproduce-voc makes one"
        )
    return [_build(entries, results_dir / name) for name, entries in families.items()]


def judge_runs(runs: Iterable[Path] | None, runs_dir: Path) -> Verdict:
    """The verdict on some run folders, or on the papers' own runs in ``runs_dir``.

    Raises:
        InputError: none of them may be compared with a published value.
    """
    entries = read_scores(runs) if runs else family_scores(runs_dir, PAPER).get(PAPER, [])
    verdict = judge(Scores(entries))
    if not verdict.of("reproduced") and not verdict.of("missed"):
        raise InputError(f"check-paper: {verdict.sentence()}")
    return verdict


def _build(entries: list[Entry], out_dir: Path) -> Path:
    scores = Scores(entries)
    tables = all_tables(scores)
    verdict = judge(scores)
    contents: dict[str, str] = {}
    for table in tables:
        contents[f"tables/{table.name}.md"] = formats.markdown(table)
        contents[f"tables/{table.name}.csv"] = formats.csv_text(table)
        contents[f"tables/{table.name}.tex"] = formats.latex(table)
    contents["tables/tables.tex"] = formats.latex_document([table.name for table in tables])
    contents["verdict.json"] = json.dumps(verdict.as_json(), indent=1, ensure_ascii=False) + "\n"
    contents["README.md"] = "\n".join(
        [verdict.markdown(), *(formats.markdown(table, brief=True) for table in tables if table.has_run)]
    )
    for name, content in contents.items():
        write_text(out_dir / name, content)
    return out_dir
