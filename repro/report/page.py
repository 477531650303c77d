"""The static page in one HTML file: seeds that grow, the summary, verdict, a browser of images, figures, tables that
sort, the manifest.

It needs no network and no server: style and script are inside, images lie beside it. Without script everything is
there, unfolded.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from repro.constants import VOID
from repro.data import colour_palette, read_mask
from repro.errors import printable
from repro.report import formats
from repro.report.drawing import Drawing
from repro.report.manifest import commands
from repro.report.manifest import summary as steps_of
from repro.report.page_summary import Summary
from repro.report.pictures import Album, Growing, labelled, shrunk
from repro.report.tables import PAPER_HERE, Column, Table
from repro.report.verdict import Verdict
from repro.run.scores import Estimate
from weights_conversion.files import atomic_path

_SIDE = 320  # pixels of an image in the browser
_ALPHA = bytes([0, *[255] * (VOID - 1), 160])  # by class: no background, void half seen
_SEED_ALPHA = bytes([*[255] * VOID, 0])  # void is no seed
_STEPS = 12  # at most, of growing seeds, the cues among them


def write_pictures(album: Album, out_dir: Path) -> list[dict[str, Any]]:
    """Copy the browser's images and masks, shrunk, to ``out_dir``; one dict per image for the template.

    File names are numbers: those of the data set may hold anything. Masks are palette PNGs whose background is
    transparent, so that they can lie on the image.
    """
    shown = []
    for number, picture in enumerate(album.selection(album.config.report.browse)):
        base = f"{number:03d}"
        size = _write_image(picture.image, out_dir / f"{base}.jpg")
        masks = {}
        for index, (label, path) in enumerate({"ground truth": picture.truth, **picture.masks}.items()):
            masks[label] = f"{base}-{index}.png"
            _write_mask(path, out_dir / masks[label], _ALPHA)
        shown.append(
            {
                "name": picture.name,
                "image": f"{base}.jpg",
                "size": size,
                "masks": masks,
                "iou": f"{100 * picture.iou:.1f}",
                "ious": {method: f"{100 * iou:.1f}" for method, iou in album.ious(picture).items()},
                "classes": [index for index in picture.classes if index],
                "words": _words(album.classes, picture.classes),
            }
        )
    return shown


def write_growing(images: Sequence[Growing], out_dir: Path) -> list[dict[str, Any]]:
    """Copy the training images whose seeds grow, with seeds, mask and truth, to ``out_dir``; one dict per image."""
    shown = []
    for number, one in enumerate(images):
        base = f"growth-{number}"
        size = _write_image(one.image, out_dir / f"{base}.jpg")
        iterations = list(one.seeds)
        places = np.linspace(0, len(iterations) - 1, min(_STEPS, len(iterations)))
        steps = []
        for iteration in (iterations[round(place)] for place in places):
            path, file = one.seeds[iteration], f"{base}-{iteration}.png"
            _write_mask(path, out_dir / file, _SEED_ALPHA)
            label = f"seeds, iteration {iteration}" if iteration else "cues"
            epoch = f" (epoch {iteration / one.epoch_length:.1f})" if iteration else ""
            said = f"{label}{epoch}: {labelled(path):.0f} % of the cells are labelled"
            steps.append({"label": label, "said": said, "file": file})
        after = []
        for what, mask in (("mask", one.mask), ("truth", one.truth)):
            if mask is not None:
                _write_mask(mask, out_dir / f"{base}-{what}.png")
                after.append((what, f"{base}-{what}.png"))
        classes = np.setdiff1d(read_mask(one.seeds[iterations[0]], VOID), [VOID]).tolist()
        files = {"image": f"{base}.jpg", "size": size, "steps": steps, "after": after}
        shown.append({"name": one.name, **files, "classes": classes})
    return shown


def _write_image(path: Path, target: Path) -> tuple[int, int]:
    """Returns width and height."""
    image = shrunk(path, _SIDE)
    with atomic_path(target) as temporary:
        image.save(temporary, format="JPEG", quality=85)
    return image.size


def _write_mask(path: Path, target: Path, alpha: bytes | None = None) -> None:
    with atomic_path(target) as temporary:
        options: dict[str, Any] = {} if alpha is None else {"transparency": alpha}
        shrunk(path, _SIDE, mask=True).save(temporary, format="PNG", optimize=True, **options)


def render(
    tables: Sequence[Table],
    verdict: Verdict,
    summary: Summary,
    drawings: Sequence[Drawing],
    album: Album | None,
    pictures: Sequence[dict[str, Any]],
    growing: Sequence[dict[str, Any]],
    manifest: dict[str, Any],
) -> str:
    """The page's HTML. Every text that comes from data is escaped."""
    names = album.classes if album else []
    seen = album.seen if album else []
    grown = sorted({index for one in growing for index in one["classes"]})
    drawn = {drawing.name for drawing in drawings}
    panels = itertools.groupby(
        (drawing for drawing in drawings if drawing.name not in ("growth", "qualitative")),
        key=lambda drawing: drawing.group or drawing.name,
    )
    with_run = [judgement for judgement in verdict.judgements if judgement.ours is not None]
    return _template("page.html.j2").render(
        suffix=" (generated images)" if summary.generated else "",
        summary=summary,
        rows=summary.rows,
        here=any(row.paper_here is not None for row in summary.rows),
        costs=formats.costs(summary),
        paper_here=PAPER_HERE,
        note=formats.summary_note(summary),
        verdict=verdict,
        judged=[judgement for judgement in with_run if judgement.status != "not comparable"],
        incomparable=[judgement for judgement in with_run if judgement.status == "not comparable"],
        tables=[_for_template(table) for table in tables if table.has_run],
        empty=[
            table.title for table in tables if not table.has_run and not table.name.endswith("_per_class")
        ],
        panels=[list(panel) for _, panel in panels],
        still="growth" in drawn,
        best_and_worst="qualitative" in drawn,
        methods=["ground truth", *(album.methods if album else [])],
        judge=album.method if album else "",
        classes=[(index, names[index]) for index in seen if index],
        all_classes=[*((names[index], _css(index)) for index in seen), ("void", _css(VOID))],
        pictures=pictures,
        growing=[{**one, "words": _words(names, one["classes"])} for one in growing],
        growing_legend=[(names[index], _css(index)) for index in grown],
        total=len(album.pictures) if album else 0,
        commands=commands(manifest),
        steps=steps_of(manifest),
        runs=json.dumps(manifest["runs"], indent=1, ensure_ascii=False).split("\n"),
    )


def _css(index: int) -> str:
    """A class's colour in masks."""
    return "#{:02x}{:02x}{:02x}".format(*map(int, colour_palette()[index]))


def _words(names: Sequence[str], classes: Sequence[int]) -> str:
    return ", ".join(names[index] for index in classes if index) or "background only"


def render_index(folders: Sequence[dict[str, Any]]) -> str:
    """The HTML that leads to each results folder: of each its ``name``, ``title``, ``verdict``, ``thumbnail`` or "",
    and what its ``summary.json`` holds or None."""
    return _template("index.html.j2").render(folders=folders, paper_here=PAPER_HERE)


def render_parity(
    sentence: str, curves: Sequence[Any], outcome: Any, sizes: Mapping[str, tuple[int, int]]
) -> str:
    """The HTML of some `repro.report.parity_curves.Curve`, and of an ``EndResult`` there or None; ``sizes``: of the
    figures, width and height in pixels."""
    return _template("parity.html.j2").render(sentence=sentence, curves=curves, outcome=outcome, sizes=sizes)


@functools.cache
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
