"""The results folder: everything that is made of finished runs, in one place, the same bytes from the same runs.

index.html         the page
README.md          the method in a picture, the summary, the verdict, every table that has a run, the figures
summary.json       the summary's rows: the paper's number, ours, what it cost
verdict.json       every published value: reproduced, missed, not comparable, not run
tables/            each table as .md, .csv and .tex; tables.tex sets them all
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from repro.config import Config
from repro.errors import InputError
from repro.files import read_json, temporary_folder, write_json
from repro.paper.experiments import PAPER
from repro.report import formats
from repro.report.drawing import Drawing
from repro.report.manifest import commands, manifest
from repro.report.page import render, render_index, write_growing, write_pictures
from repro.report.page_summary import Summary, summarise
from repro.report.pictures import Album, growing, open_album
from repro.report.tables import Table, all_tables
from repro.report.verdict import Verdict, judge
from repro.run.plan import PlannedRun, family, results_dir, settings_sha256
from repro.run.scores import Entry, Scores, family_scores, read_scores
from weights_conversion.files import file_sha256, make_folder, path_inside, write_text

log = logging.getLogger(__name__)

_INDEX_TITLE = "<title>SEC and DSRG, reproduced</title>"  # by which a page of ours is known
_THUMBNAILS = tuple(  # the first that is there
    f"figures/{name}.svg" for name in ("growth", "qualitative", "curves", "per_class")
)


def report_runs(runs: Iterable[Path], out_dir: Path) -> Path:
    """The results folder of some run folders or ``scores_*.json`` files.

    Returns:
        The folder.

    Raises:
        InputError: a folder without scores, a damaged file, runs that cannot stand side by side, or an ``out_dir``
            with a file in the place of one of ours that the manifest there does not list.
    """
    return _build(read_scores(runs), out_dir)


def report_planned(runs: Sequence[PlannedRun]) -> list[Path]:
    """The results folder of each family that some planned runs belong to, once ``reproduce`` has made them."""
    folders: dict[Path, list[Config]] = {}
    for base in {planned.base.run_dir: planned.base for planned in runs}.values():
        folders.setdefault(results_dir(base), []).append(base)
    for folder, bases in folders.items():
        name = family(bases[0])
        hashes = {base.name: settings_sha256(base) for base in bases}
        _build(family_scores(bases[0].run_dir.parent, name, hashes)[name], folder)
        if bases[0].output is None:
            write_index(folder.parent)
    return list(folders)


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
    folders = [_build(entries, results_dir / name) for name, entries in families.items()]
    write_index(results_dir)
    return folders


def write_index(results_dir: Path) -> None:
    """``index.html``: a link to the page of every results folder in ``results_dir``, with picture, rows and verdict.

    A page there that is not ours stays, with a warning.
    """
    index = results_dir / "index.html"
    if os.path.lexists(index) and _INDEX_TITLE not in index.read_text(encoding="utf-8", errors="replace"):
        log.warning("%s: not a page of ours, so left as it is", index)
        return
    folders = []
    for path in sorted(results_dir.glob("[!.]*/verdict.json")):
        folder = path.parent
        if (folder / "index.html").is_file():
            try:
                verdict, file = read_json(path, "a verdict"), folder / "summary.json"
                summary = read_json(file, "a summary") if file.is_file() else None
                folders.append(
                    {
                        "name": folder.name,
                        "title": str((summary or verdict).get("title", folder.name)),
                        "verdict": str(verdict["verdict"]),
                        "summary": summary,
                        "thumbnail": next((f for f in _THUMBNAILS if (folder / f).is_file()), ""),
                    }
                )
            except (InputError, KeyError, TypeError, AttributeError) as error:
                log.warning("%s: no verdict (%s), so not in %s", path, error, index)
    write_text(index, render_index(folders))


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
    log.info("drawing the page of %s", out_dir)
    scores = Scores(entries)
    tables, verdict, provenance = all_tables(scores), judge(scores), manifest(scores)
    before = _files_of_ours(out_dir)
    make_folder(out_dir)
    with temporary_folder(out_dir) as fresh:
        for table in tables:
            write_text(fresh / f"tables/{table.name}.md", formats.markdown(table))
            write_text(fresh / f"tables/{table.name}.csv", formats.csv_text(table))
            write_text(fresh / f"tables/{table.name}.tex", formats.latex(table))
        write_text(fresh / "tables/tables.tex", formats.latex_document([table.name for table in tables]))
        write_json(fresh / "verdict.json", verdict.as_json())
        summary = summarise(scores, provenance)
        write_json(fresh / "summary.json", summary.as_json())
        album = open_album(scores)
        drawings = draw_figures(scores, album, fresh / "figures")
        pictures = write_pictures(album, fresh / "images") if album else []
        seeds = write_growing(growing(scores, album), fresh / "images") if album else []
        write_text(
            fresh / "index.html",
            render(tables, verdict, summary, drawings, album, pictures, seeds, provenance),
        )
        write_text(fresh / "README.md", _readme(tables, verdict, summary, drawings, provenance))
        _move_into(fresh, out_dir, provenance, before)
    return out_dir


def _readme(
    tables: Sequence[Table],
    verdict: Verdict,
    summary: Summary,
    drawings: Sequence[Drawing],
    provenance: dict[str, Any],
) -> str:
    """The folder for readers of the repository: Markdown, with the figures as pictures."""
    figures = {drawing.name: f"![{drawing.alt}](figures/{drawing.name}.png)\n" for drawing in drawings}
    parts = [f"# SEC and DSRG, reproduced: {formats.markdown_text(summary.title)}\n"]
    parts.append(
        f"{formats.markdown_text(summary.data[:1].upper() + summary.data[1:])}. Mean IoU in percent.\n"
    )
    if "growth" in figures:
        parts.append(figures.pop("growth"))
    if summary.rows:
        parts.append(formats.summary_markdown(summary))
    parts += [
        verdict.markdown(),
        "\n".join(["Made by", "", "```sh", *commands(provenance), "```", ""]),
        *(formats.markdown(table, brief=True) for table in tables if table.has_run),
        *figures.values(),
    ]
    return "\n".join(parts)


def draw_figures(scores: Scores, album: Album | None, out_dir: Path) -> list[Drawing]:
    if importlib.util.find_spec("matplotlib") is None:
        log.warning("no figures: they need the package matplotlib: pip install matplotlib")
        return []
    from repro.report.figures import draw_all  # a second to load, and an extra

    return draw_all(scores, album, out_dir)


def _files_of_ours(out_dir: Path) -> dict[str, Any]:
    """What the results folder's manifest lists, name -> hash. Raises InputError where ``manifest.json`` is not ours."""
    path = out_dir / "manifest.json"
    if not os.path.lexists(path):
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found["files"], dict) and isinstance(found["runs"], dict):
            return {name: digest for name, digest in found["files"].items() if path_inside(out_dir, name)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise InputError(
        f"{path}: not the manifest of a results folder; choose another folder, or remove that file"
    )


def _move_into(fresh: Path, out_dir: Path, provenance: dict[str, Any], before: dict[str, Any]) -> None:
    """Put the new files into the results folder and take away those of ``before`` that are ours and not made any more.

    Whatever the manifest there says: only a plain file below ``out_dir`` is replaced or removed, and removed only
    with the bytes that it was written with.
    """
    names = sorted(path.relative_to(fresh).as_posix() for path in fresh.rglob("*") if path.is_file())
    files = {name: file_sha256(fresh / name) for name in names}
    for name in names:
        target = path_inside(out_dir, name)
        if target is None or target.is_symlink() or (target.exists() and name not in before):
            raise InputError(
                f"{out_dir / name}: exists and was not written by an earlier call; choose another folder"
            )
    # both lists until all is in its place: a call that is killed here must not take its own files for foreign ones
    write_json(fresh / "manifest.json", {**provenance, "files": {**before, **files}})
    (fresh / "manifest.json").replace(out_dir / "manifest.json")
    for name in names:
        (out_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (fresh / name).replace(out_dir / name)
    for name in before.keys() - files.keys():
        old = path_inside(out_dir, name)
        if old and old.is_file() and not old.is_symlink() and file_sha256(old) == before[name]:
            old.unlink()
    write_json(fresh / "manifest.json", {**provenance, "files": files})
    (fresh / "manifest.json").replace(out_dir / "manifest.json")
