"""The static page: verdict, tables that sort, figures, a browser of images and the manifest, in one HTML file.

It needs no network and no server: style and script are inside, images lie beside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from repro.constants import VOID
from repro.errors import printable
from repro.report import formats
from repro.report.manifest import commands, summary
from repro.report.pictures import Album, shrunk
from repro.report.tables import Column, Table
from repro.report.verdict import Verdict
from repro.run.scores import Estimate
from weights_conversion.files import atomic_path

if TYPE_CHECKING:  # figures need matplotlib, the page does not
    from repro.report.figures import Drawing

_SIDE = 320  # pixels of an image in the browser
_ALPHA = bytes([0, *[255] * (VOID - 1), 160])  # by class: no background, void half seen


def write_pictures(album: Album, out_dir: Path) -> list[dict[str, Any]]:
    """Copy the browser's images and masks, shrunk, to ``out_dir``; a dict an image for the template.

    File names are numbers: those of the data set may hold anything. Masks are palette PNGs whose background is
    transparent, so that they can lie on the image.
    """
    shown = []
    for number, picture in enumerate(album.selection(album.config.report.browse)):
        base = f"{number:03d}"
        with atomic_path(out_dir / f"{base}.jpg") as temporary:
            image = shrunk(picture.image, _SIDE)
            image.save(temporary, format="JPEG", quality=85)
        masks = {}
        for index, (label, path) in enumerate({"ground truth": picture.truth, **picture.masks}.items()):
            name = f"{base}-{index}.png"
            with atomic_path(out_dir / name) as temporary:
                shrunk(path, _SIDE, mask=True).save(
                    temporary, format="PNG", transparency=_ALPHA, optimize=True
                )
            masks[label] = name
        shown.append(
            {
                "name": picture.name,
                "image": f"{base}.jpg",
                "size": image.size,
                "masks": masks,
                "iou": f"{100 * picture.iou:.1f}",
                "ious": {method: f"{100 * iou:.1f}" for method, iou in album.ious(picture).items()},
                "classes": [index for index in picture.classes if index],
                "words": ", ".join(album.classes[index] for index in picture.classes if index)
                or "background only",
            }
        )
    return shown


def render(
    family: str,
    tables: Sequence[Table],
    verdict: Verdict,
    drawings: Sequence[Drawing],
    album: Album | None,
    pictures: Sequence[dict[str, Any]],
    manifest: dict[str, Any],
) -> str:
    """The page's HTML. Every text that comes from data is escaped."""
    return _template("page.html.j2").render(
        family=family,
        verdict=verdict,
        judged=[judgement for judgement in verdict.judgements if judgement.ours is not None],
        tables=[_for_template(table) for table in tables if table.has_run],
        empty=[
            table.title for table in tables if not table.has_run and not table.name.endswith("_per_class")
        ],
        drawings=drawings,
        methods=["ground truth", *(album.methods if album else [])],
        judge=album.method if album else "",
        classes=[(index, name) for index, name in enumerate(album.classes) if index] if album else [],
        pictures=pictures,
        total=len(album.pictures) if album else 0,
        commands=commands(manifest),
        steps=summary(manifest),
        runs=json.dumps(manifest["runs"], indent=1, ensure_ascii=False).split("\n"),
    )


def render_index(verdicts: dict[str, str]) -> str:
    """The HTML that leads to each results folder; ``verdicts`` by folder."""
    return _template("index.html.j2").render(verdicts=verdicts)


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("repro.report", "."),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _shown(value: Any) -> Any:
    """What the template puts out: every text is a line, with what is not printable escaped."""
    return printable(value) if type(value) is str else value


def _for_template(table: Table) -> dict[str, Any]:
    rows = [[_cell(table, column, row) for column in table.columns] for row in table.rows]
    return {
        "name": table.name,
        "title": table.title,
        "notes": [note.replace("**", "").replace("`", "") for note in table.notes],
        "columns": table.columns,
        "rows": rows,
        "grid": formats.grid(table) if table.grid else None,
    }


def _cell(table: Table, column: Column, row: dict[str, Any]) -> dict[str, Any]:
    value = row.get(column.key)
    key = value.mean if isinstance(value, Estimate) else value
    return {"text": formats.text(table, column, row), "key": "" if key is None else key, "kind": column.kind}
