"""The verbs ``repro data …``: data fetched, checked, built and converted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from repro.cli.shared import Answer, ConfigOption, FirstClass, InputList, OptionalConfig, app, verb
from repro.constants import CLASS_NAMES, VOID
from repro.errors import InputError, printable
from repro.files import write_report
from weights_conversion.files import check_target, file_sha256

if TYPE_CHECKING:
    from repro.fetch.get_data import Fetcher

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Build or convert data.")


app.add_typer(data_app, name="data")

TreesCues = Annotated[Path | None, typer.Option(help="Cue file; the one beside VOCdevkit by default.")]


@verb(
    data_app,
    "fetch",
    examples=r"""
    repro data fetch --voc-root data/VOCdevkit/VOC2012

    repro data fetch --from /mnt/archives
    """,
)
def data_fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Sources of the catalogue; those that the experiments need by default."),
    ] = None,
    voc_root: Annotated[
        Path,
        typer.Option(
            help="The VOC tree: one of your own, or where to make it. The rest goes beside VOCdevkit."
        ),
    ] = Path("data/VOCdevkit/VOC2012"),
    own: Annotated[
        Path | None, typer.Option("--from", help="Folder with your own copies; nothing is downloaded.")
    ] = None,
    catalogue: Annotated[
        Path | None, typer.Option(help="Another sources.yaml, with your own mirrors.")
    ] = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Keep archives once they are unpacked.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the sources and what is there of them.")
    ] = False,
) -> Answer:
    """Get VOC 2012, masks, cues and initial weights: checked, unpacked, in place. What is there already stays."""
    from repro.fetch.get_data import Fetcher

    fetcher = Fetcher(voc_root, catalogue=catalogue, own=own, keep_archives=keep_archives)
    if dry_run:
        return _sources(fetcher)
    outcomes: list[dict[str, Any]] = []

    def fetched() -> Iterator[object]:
        for outcome in fetcher.fetch(names or ()):
            outcomes.append(asdict(outcome))
            yield outcome
        if not names:
            weights = fetcher.place(fetcher.sources["vgg16_20M"])
            yield f'next: make reproduce-voc VOC_ROOT={voc_root} ARGS="stage1.init.weights={weights}"'

    return Answer(outcomes, fetched())


def _sources(fetcher: Fetcher) -> Answer:
    """The catalogue, and what is there of it."""
    data, lines = [], []
    for name, source in fetcher.sources.items():
        size = f"{source.size / 1e6:.1f} MB" if source.size else f"at most {source.most / 1e6:.0f} MB"
        there, place = fetcher.is_there(source), fetcher.place(source)
        data.append({"name": name, "what": source.what, "there": there, "place": place, "urls": source.urls})
        lines += [name, f"  {source.what}", f"  {size}, {'there' if there else '-'}: {place}"]
        lines += [*(f"  {url}" for url in source.urls), f"  {source.note}"]
    return Answer(data, lines)


@verb(
    data_app,
    "sbd",
    examples=r"""
    repro data sbd benchmark_RELEASE/dataset \
      --voc-root data/VOCdevkit/VOC2012
    """,
)
def data_sbd(
    sbd: Annotated[Path, typer.Argument(help="SBD's folder, with cls/*.mat, train.txt and val.txt.")],
    voc_root: Annotated[Path, typer.Option(help="The VOC tree that gets the masks and the list.")],
) -> Answer:
    """Turn SBD's .mat files into SegmentationClassAug masks and write train_aug.txt, the 10,582 training images."""
    from repro.data import VocLayout
    from repro.fetch.sbd import build_train_aug, find_sbd

    result = build_train_aug(find_sbd(sbd), VocLayout.open(voc_root))
    masks = voc_root / "SegmentationClassAug"
    return Answer(
        {"masks": masks, "written": result.written, "kept": result.kept, "list": result.list_path},
        [f"{masks}: {result.written} masks written, {result.kept} were there", result.list_path],
    )


@verb(
    data_app,
    "verify",
    examples="repro data verify data/VOCdevkit/VOC2012 --out report.json",
)
def data_verify(
    root: Annotated[Path, typer.Argument(help="The VOC tree.")] = Path("data/VOCdevkit/VOC2012"),
    cues: TreesCues = None,
    input_list: InputList = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only the headers of images and masks.")] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="A part of the sets: the lists say how many.")
    ] = False,
    pin: Annotated[
        bool, typer.Option("--pin", help="Remember what images and masks are; later calls compare.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON, too.")] = None,
) -> Answer:
    """Check a VOC tree: counts, every image and mask, cues, hashes."""
    from repro.fetch.verify import verify

    report = verify(root, cues=cues, input_list=input_list, quick=quick, partial=partial, pin=pin)
    if out:
        write_report(out, report.as_dict())

    def checked() -> Iterator[object]:
        yield from report.checks
        if failed := [check.name for check in report.checks if not check.ok]:
            line = f"{root}: {len(failed)} of {len(report.checks)} checks failed: {', '.join(failed)}"
            print(f"repro: {printable(line)}", file=sys.stderr)

    return Answer(report.as_dict(), checked(), status=0 if report.ok else 2)


@verb(
    data_app,
    "halve",
    examples="repro data halve data/VOCdevkit/VOC2012 data/half/VOC2012",
)
def data_halve(
    root: Annotated[Path, typer.Argument(help="The VOC tree.")],
    target: Annotated[Path, typer.Argument(help="A new folder for the smaller one.")],
    image_sets: Annotated[
        list[str] | None,
        typer.Option("--image-set", help="A list of ImageSets/Segmentation; train_aug and val by default."),
    ] = None,
    cues: TreesCues = None,
    input_list: InputList = None,
) -> Answer:
    """Copy a VOC tree at half its size, with its cues: a net of full width trains on it four times as fast."""
    from repro.data.half_size import halve_voc

    halve_voc(root, target, image_sets=image_sets or ("train_aug", "val"), cues=cues, input_list=input_list)
    return Answer({"root": target}, [f"{target}: written; dataset.root={target} trains on it"])


@verb(data_app, "mini", examples="repro data mini data/mini")
def data_mini(
    root: Annotated[Path, typer.Argument(help="Folder to build it in.")],
    seed: Annotated[int, typer.Option(help="Another seed is another set.")] = 0,
) -> Answer:
    """Build the embedded set: a small generated data set in VOC layout."""
    from repro.data.mini import build_mini

    built = build_mini(root, seed=seed).root
    return Answer({"root": built}, [built])


@verb(
    data_app,
    "cues",
    examples="repro data cues localization_cues.pickle.gz localization_cues.h5",
)
def data_cues(
    source: Annotated[Path, typer.Argument(help="The originals' .pickle or .pickle.gz.")],
    target: Annotated[Path, typer.Argument(help="The .h5 to write.")],
) -> Answer:
    """Convert the originals' cue pickle to HDF5, once, so that runs start at once and no pickle is read again."""
    from repro.data import convert_cues
    from repro.data.cues import is_cue_file

    check_target(target, source, of="cues", begins=is_cue_file)
    convert_cues(source, target)
    return Answer({"cues": target}, [target])


@verb(
    data_app,
    "labels",
    examples=r"""
    repro data labels VOC2012/Annotations labels.csv

    repro data labels instances_train2014.json labels.csv \
      --config dsrg_vgg16_coco
    """,
)
def data_labels(
    source: Annotated[
        Path,
        typer.Argument(
            help="A CSV or text file, a dict (.npy, .pkl), a folder of VOC's Annotations or ImageSets/Main or of "
            "YOLO's labels, COCO's JSON, a cue file."
        ),
    ],
    target: Annotated[Path, typer.Argument(help="The .csv to write: image and class names.")],
    config: ConfigOption = "dsrg_vgg16_voc",
    input_list: InputList = None,
    first_class: FirstClass = None,
) -> Answer:
    """Write image-level labels of any form as a CSV, to look at or to train on."""
    from repro.config import load_config
    from repro.data.labels import LABELS_HEADING, read_labels, write_labels

    check_target(target, source, of="labels", begins=LABELS_HEADING)
    classes = load_config(config).dataset.classes
    labels = read_labels(source, classes, input_list=input_list, first_class=first_class)
    write_labels(target, labels, classes)
    images = sum(map(bool, labels.values()))
    without = len(labels) - images
    return Answer(
        {"labels": target, "images": images, "without_label": without},
        [f"{target}: {images} images" + (f"; {without} without a label are left out" if without else "")],
    )


@verb(
    data_app,
    "masks",
    examples=r"""
    repro data masks coloured/ masks/

    repro data masks objects/ masks/ --num-classes 2
    """,
)
def data_masks(
    source: Annotated[Path, typer.Argument(help="Folder of masks in VOC's colours, or of 0 and 255.")],
    target: Annotated[Path, typer.Argument(help="A new folder for the index masks.")],
    num_classes: Annotated[int, typer.Option(min=2, max=VOID, help="Classes, background included.")] = len(
        CLASS_NAMES
    ),
    coding: Annotated[
        Literal["colours", "object", "indices"] | None,
        typer.Option(help="What the masks are, where their pixels do not tell.", show_default=False),
    ] = None,
) -> Answer:
    """Turn masks of VOC's colours, or of 0 and 255 for one object, into PNGs of class indices."""
    from repro.data.recode_masks import recode_masks

    read_as, written = recode_masks(source, target, num_classes, coding=coding)
    return Answer(
        {"masks": target, "written": len(written), "read_as": read_as},
        [f"{target}: {len(written)} masks, read as {read_as}"],
    )


@verb(
    data_app,
    "coco-masks",
    examples=r"""
    repro data coco-masks coco/annotations/instances_val2014.json \
      coco/masks/val2014

    repro data coco-masks _annotations.coco.json masks/ \
      --config mine.yaml
    """,
)
def data_coco_masks(
    annotations: Annotated[Path, typer.Argument(help="COCO's instances_*.json.")],
    out: Annotated[Path, typer.Argument(help="Folder for the masks, <image>.png.")],
    config: OptionalConfig = None,
) -> Answer:
    """Draw COCO's objects as masks, to score against; masks that are there already are kept.

    The classes are COCO's 80 unless --config (its dataset.classes) says others.
    """
    from tqdm import tqdm

    from repro.config import load_config
    from repro.data import COCO_CLASS_NAMES, CocoInstances
    from repro.run_folder import check_no_others, check_settings, keep_settings

    classes = load_config(config).dataset.classes if config else COCO_CLASS_NAMES
    instances = CocoInstances(annotations, classes)
    made_of = {"annotations_sha256": file_sha256(annotations), **({"classes": classes} if config else {})}
    check_settings(out, made_of)
    names = [Path(name) for name, *_ in instances.images.values()]
    check_no_others(out, *(f"{name.stem}.png" for name in names))
    if image := next(
        (name.name for name in names if name.suffix != ".png" and (out / name.name).exists()), None
    ):
        raise InputError(f"{out}: holds the image {image}, another folder for the masks expected")
    keep_settings(out, made_of)
    for _ in tqdm(instances.write_masks(out), total=len(instances.images), unit="image", disable=None):
        pass
    return Answer({"masks": out, "images": len(instances.images)}, [f"{out}: {len(instances.images)} masks"])
