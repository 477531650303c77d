"""The verbs ``repro seeds …``: localization cues from image-level labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repro import distributed
from repro.cli.shared import Answer, ConfigOption, FirstClass, ImageList, InputList, Overrides, app, verb
from repro.errors import chosen
from repro.files import write_report

if TYPE_CHECKING:
    from repro.config import Config

seeds_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Localization cues from image-level labels: train two classifiers, make the cues, score them.",
)


app.add_typer(seeds_app, name="seeds")


def _settings(config: str, overrides: list[str] | None) -> Config:
    from repro.config import load_config

    return load_config(config, overrides or [], stages=("stage0",))


@verb(
    seeds_app,
    "train",
    examples=r"""
    repro seeds train --config dsrg_vgg16_voc \
      data.image_root=photos/ data.labels=labels.csv \
      init.weights=vgg16_20M.caffemodel output=runs/a
    """,
)
def seeds_train(
    config: ConfigOption,
    overrides: Overrides = None,
    net: Annotated[
        str | None,
        typer.Option(
            help="vgg16_cam (foreground) or vgg16_bg (background).", show_default="one after the other"
        ),
    ] = None,
) -> Answer:
    """Train the classifiers that cues are made of, on image-level labels; unfinished ones resume."""
    from repro.cues.train_classifier import SEED_CLASSIFIERS, train_classifier
    from repro.run_folder import Run, resolve_device

    distributed.join()
    settings = _settings(config, overrides)
    run = Run(settings, resolve_device(settings.device))
    nets = {f"vgg16_{name}": name for name in SEED_CLASSIFIERS}
    weights = {
        name: train_classifier(settings, nets[name], run)
        for name in (nets if net is None else [chosen("--net", net, nets)])
    }
    return Answer({"weights": weights}, weights.values())


@verb(
    seeds_app,
    "make",
    examples=r"""
    repro seeds make --config dsrg_vgg16_voc \
      data.image_root=photos/ data.labels=labels.csv output=runs/a

    repro seeds make --config dsrg_vgg16_voc \
      data.image_root=photos/ data.labels=labels.csv output=runs/b \
      cues.saliency=maps/ cues.merge=background_first
    """,
)
def seeds_make(
    config: ConfigOption,
    overrides: Overrides = None,
    cam: Annotated[Path | None, typer.Option(help="Weights; those of the run by default.")] = None,
    bg: Annotated[Path | None, typer.Option(help="Weights; those of the run by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; stage0/cues of the run by default.")] = None,
    pickled: Annotated[
        bool, typer.Option("--pickle", help="Also write the originals' localization_cues.pickle.")
    ] = False,
    overlays: Annotated[bool, typer.Option(help="Also draw the cues over the images, to look at.")] = False,
) -> Answer:
    """Make cues of the labelled images; those that are there already are kept."""
    from repro.cues.generate import make_cues
    from repro.cues.train_classifier import classifier_weights
    from repro.run_folder import resolve_device

    settings = _settings(config, overrides)
    weights = classifier_weights(settings) | {
        net: path for net, path in (("cam", cam), ("bg", bg)) if path is not None
    }
    made = make_cues(
        settings,
        weights,
        out or settings.run_dir / "stage0" / "cues",
        resolve_device(settings.device),
        pickled=pickled,
        overlays=overlays,
    )
    return _made(made, "images done now")


@verb(
    seeds_app,
    "from-cams",
    examples=r"""
    repro seeds from-cams cams/ --config dsrg_vgg16_voc --out cues/ \
      cues.cam_threshold=0.3
    """,
)
def seeds_from_cams(
    cams: Annotated[Path, typer.Argument(help="Folder of class activation maps, <image>.npy.")],
    config: ConfigOption,
    out: Annotated[Path, typer.Option(help="Folder for cues.h5 and input_list.txt.")],
    overrides: Overrides = None,
    ids: ImageList = None,
    first_class: FirstClass = None,
    background_below: Annotated[
        float | None,
        typer.Option(
            help="Background is what is below this share of every map's maximum, not the lowest cells.",
            show_default=False,
        ),
    ] = None,
) -> Answer:
    """Make cues of another project's class activation maps, by the profile's threshold and rule of merging."""
    from repro.cues.from_cams import cues_from_cams
    from repro.data import read_id_list

    made = cues_from_cams(
        _settings(config, overrides),
        cams,
        out,
        names=read_id_list(ids) if ids else None,
        first_class=first_class,
        background_below=background_below,
    )
    return _made(made, "images")


def _made(made: Any, what: str) -> Answer:
    data = {"cues": made.cues, "input_list": made.input_list, "images": made.done}
    return Answer(data, [made.cues, made.input_list, f"{made.done} {what}"])


@verb(
    seeds_app,
    "score",
    examples=r"""
    repro seeds score --config dsrg_vgg16_voc \
      --cues localization_cues.pickle --input-list input_list.txt \
      --masks VOC2012/SegmentationClassAug --list train_aug.txt
    """,
)
def seeds_score(
    config: ConfigOption,
    cues: Annotated[Path, typer.Option(help="A cue file, or a folder of cue PNGs.")],
    masks: Annotated[Path, typer.Option(help="Folder of ground-truth masks, <image>.png (255 is void).")],
    overrides: Overrides = None,
    input_list: InputList = None,
    ids: ImageList = None,
    out: Annotated[Path | None, typer.Option(help="Write the metrics as JSON, too.")] = None,
) -> Answer:
    """Precision, recall and IoU of cues against masks, and the share of the pixels they label."""
    from repro.cues.generate import score_seeds
    from repro.data import read_id_list

    settings = _settings(config, overrides)
    names = read_id_list(ids) if ids else None
    metrics = score_seeds(settings, cues, masks, input_list=input_list, ids=names)
    lines = [f"{'':<24}{'precision':>10}{'recall':>10}{'IoU':>10}"]
    rows = [("mean", metrics), ("mean, released script", metrics["released"])]
    for name, row in [*rows, *zip(settings.dataset.classes, metrics["per_class"], strict=True)]:
        cells = ("-" if row is None else f"{100 * row[key]:.2f}" for key in ("precision", "recall", "iou"))
        lines.append(f"{name:<24}" + "".join(f"{cell:>10}" for cell in cells))
    lines.append(f"{metrics['images']} images, {100 * metrics['labelled']:.1f} % of the pixels labelled")
    if out:
        write_report(out, metrics)
    return Answer(metrics, lines)
