"""A `Table` as Markdown, CSV and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from repro.errors import printable
from repro.measure import shown_energy, shown_size, shown_time
from repro.report.page_summary import Summary
from repro.report.tables import PAPER_HERE, Column, Table
from repro.run.scores import Estimate

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "θ": r"$\theta$",
    "∞": r"$\infty$",
    "–": "--",
    "−": "$-$",
}
_DOCUMENT = r"""\documentclass{article}
\usepackage[utf8]{inputenc}
\usepackage[margin=2cm,landscape]{geometry}
\usepackage{booktabs,longtable}
\begin{document}
%s\end{document}
"""


def text(table: Table, column: Column, row: dict[str, Any]) -> str:
    """A cell as a reader sees it."""
    value = row.get(column.key)
    if value is None:
        return "–"
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Estimate):
        return value.shown(table.decimals)
    return f"{value:+.{table.decimals}f}" if column.kind == "signed" else f"{value:.{table.decimals}f}"


def markdown(table: Table, *, brief: bool = False) -> str:
    """Title, notes and the table. One that reads in two directions stands in that form, ours with the paper's
    beside, and below it, unless ``brief``, row by row."""
    parts = [f"# {table.title}", *map(markdown_text, table.notes)]
    if table.grid:
        header, body = grid(table)
        parts.append(_markdown(header, body))
    if not (table.grid and brief):
        header = [column.title for column in table.columns]
        body = [[text(table, column, row) for column in table.columns] for row in table.rows]
        parts.append(_markdown(header, body))
    return "\n\n".join(parts) + "\n"


def grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table in two directions: each cell ours, the paper's in brackets."""
    assert table.grid is not None
    down, across = table.grid
    columns = list(dict.fromkeys(row[across] for row in table.rows))
    body = []
    for label in dict.fromkeys(row[down] for row in table.rows):
        cells = []
        for column in columns:
            found = [row for row in table.rows if (row[down], row[across]) == (label, column)]
            cells.append(_ours_and_paper(table, found[0]) if found else "")
        body.append([label, *cells])
    return ["ours (paper)", *columns], body


def csv_text(table: Table) -> str:
    """Every column in full: four decimals, an estimate's standard deviation and count beside its mean."""
    fields: list[str] = []
    for column in table.columns:
        fields += [column.key, f"{column.key}_sd"] if column.kind == "estimate" else [column.key]
    file = io.StringIO()
    writer = csv.DictWriter(file, fields, lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        line: dict[str, str] = {}
        for column in table.columns:
            value = row.get(column.key)
            if isinstance(value, Estimate):
                line[column.key] = f"{value.mean:.4f}"
                line[f"{column.key}_sd"] = "" if value.sd is None else f"{value.sd:.4f}"
            elif isinstance(value, (int, float)):
                line[column.key] = f"{value:.4f}" if column.kind == "signed" else f"{value:g}"
            else:
                line[column.key] = printable(value or "")
        writer.writerow(line)
    return file.getvalue()


def latex(table: Table) -> str:
    """A ``longtable`` with booktabs' rules; needs the packages booktabs and longtable."""
    if table.grid:
        header, body = grid(table)
    else:
        shown = [
            column for column in table.columns if column.key != "runs"
        ]  # names of folders, long and for us
        header = [column.title for column in shown]
        body = [[text(table, column, row) for column in shown] for row in table.rows]
    size = r"\scriptsize" if len(header) > 8 else r"\small"
    tight = r"\setlength{\tabcolsep}{2pt}" if len(header) > 8 else ""
    lines = [
        r"\begingroup" + size + tight,
        rf"\begin{{longtable}}{{l{'r' * (len(header) - 1)}}}",
        rf"\caption{{{_tex(table.title)}. {_tex(' '.join(table.notes))}}}\\",
        r"\toprule",
        " & ".join(rf"\shortstack{{{_tex(name).replace(': ', ': ' + chr(92) * 2)}}}" for name in header)
        + r" \\",
        r"\midrule",
        r"\endhead",
        *(" & ".join(map(_tex, row)) + r" \\" for row in body),
        r"\bottomrule",
        r"\end{longtable}",
        r"\endgroup",
    ]
    return "\n".join(lines) + "\n"


def latex_document(names: Sequence[str]) -> str:
    """A document that sets the tables ``<name>.tex`` beside it."""
    return _DOCUMENT % "".join(f"\\input{{{name}.tex}}\n" for name in names)


def costs(summary: Summary) -> list[tuple[str, list[str]]]:
    """Columns of what each row cost: title and cells. What no row tells has no column."""
    columns = []
    for title, key, shown in (
        ("time", "seconds", shown_time),
        ("peak memory", "memory", shown_size),
        ("energy", "joules", shown_energy),
    ):
        values = [getattr(row, key) for row in summary.rows]
        if any(value is not None for value in values):
            columns.append((title, ["–" if value is None else shown(value) for value in values]))
    return columns


def summary_note(summary: Summary) -> str:
    """What stands below the summary's table: what its costs are of, and its ±."""
    words = []
    if costs(summary):
        shared = {
            None: "",
            True: ", the pre-training that all rows share included",
            False: ", but for the pre-training that all rows share, of which no record is left",
        }[summary.pretraining]
        devices = ", ".join(summary.devices) or "an unnamed device"
        words.append(f"Costs are of one seed: everything that the row's masks needed{shared}, on {devices}.")
        words.append(
            "Time and energy count what else the device did meanwhile. Memory is the GPU's where there is one."
        )
        if any(row.joules is None for row in summary.rows):
            words.append("This machine does not tell its energy.")
    if any(row.ours.sd is not None for row in summary.rows):
        words.append("± is the standard deviation over the seeds.")
    return " ".join(words)


def summary_markdown(summary: Summary) -> str:
    """The summary as a table."""
    extra = costs(summary)
    here = any(row.paper_here is not None for row in summary.rows)
    header = ["method", "ours", "paper", *([PAPER_HERE] if here else []), "seeds"]
    body = []
    for index, row in enumerate(summary.rows):
        paper = [
            f"{row.paper:.1f}",
            *(["–" if row.paper_here is None else f"{row.paper_here:.1f}"] if here else []),
        ]
        cells = [row.name, row.ours.shown(1), *paper, str(len(row.seeds))]
        body.append([*cells, *(values[index] for _, values in extra)])
    table = _markdown([*header, *(title for title, _ in extra)], body)
    return f"{table}\n\n{markdown_text(summary_note(summary))}\n"


def _ours_and_paper(table: Table, row: dict[str, Any]) -> str:
    ours = next(column for column in table.columns if column.key == "ours")
    paper = next(column for column in table.columns if column.key == "paper")
    return f"{text(table, ours, row)} ({text(table, paper, row)})"


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, ["-"] * len(header), *body]
    return "\n".join("| " + " | ".join(map(markdown_text, line)) + " |" for line in lines)


def markdown_text(words: str) -> str:
    """Foreign text within a line of Markdown: no HTML, link or new cell begins in it."""
    return re.sub(r"[|<\[]", lambda found: {"|": "\\|", "<": "&lt;", "[": "\\["}[found[0]], printable(words))


def _tex(words: str) -> str:
    words = re.sub(r"[`*]", "", printable(words))  # Markdown's marks
    return "".join(
        _LATEX.get(character, character if ord(character) < 0x180 else f"[U+{ord(character):04X}]")
        for character in words
    )
