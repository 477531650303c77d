"""The verbs ``repro seeds …``: localization cues from image-level labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repro import distributed
from repro.cli.shared import ConfigOption, DeviceOption, Overrides, SeedOption, app, load, say
from repro.files import write_json

seeds_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Localization cues from image-level labels: train two classifiers, make the cues, score them.",
)


app.add_typer(seeds_app, name="seeds")


@seeds_app.command(
    "train",
    epilog="Example: repro seeds train --config dsrg_vgg16_voc data.image_root=photos/ data.labels=labels.csv "
    "init.weights=vgg16_20M.caffemodel output=runs/a",
)
def seeds_train(
    config: ConfigOption,
    overrides: Overrides = None,
    net: Annotated[str, typer.Option(help="cam (foreground), bg (background) or both.")] = "both",
    device: DeviceOption = None,
    seed: SeedOption = None,
) -> None:
    """Train the classifiers that cues are made of, on image-level labels; unfinished ones go on."""
    from repro.cues.train_classifier import SEED_CLASSIFIERS, train_classifier
    from repro.run_folder import Run, resolve_device

    distributed.join()
    settings = load(config, overrides, device, seed, stages=("stage0",))
    for one in SEED_CLASSIFIERS if net == "both" else (net,):
        weights = train_classifier(settings, one, Run(settings, resolve_device(settings.device)))
        say(weights)


@seeds_app.command(
    "make",
    epilog="Example: repro seeds make --config dsrg_vgg16_voc data.image_root=photos/ data.labels=labels.csv "
    "output=runs/a        (with cues.saliency=maps/ cues.merge=background_first: DSRG's kind)",
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
    device: DeviceOption = None,
) -> None:
    """Make cues of the labelled images; those that are there already are kept."""
    from repro.cues.generate import make_cues
    from repro.cues.train_classifier import classifier_weights
    from repro.run_folder import resolve_device

    settings = load(config, overrides, device, None, stages=("stage0",))
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
    say(made.cues, made.input_list, f"{made.done} images done now")


@seeds_app.command(
    "from-cams",
    epilog="Example: repro seeds from-cams cams/ --config dsrg_vgg16_voc --out cues/ cues.cam_threshold=0.3",
)
def seeds_from_cams(
    cams: Annotated[Path, typer.Argument(help="Folder of class activation maps, <image>.npy.")],
    config: ConfigOption,
    out: Annotated[Path, typer.Option(help="Folder for cues.h5 and input_list.txt.")],
    overrides: Overrides = None,
    ids: Annotated[Path | None, typer.Option("--list", help="Only the images of this list.")] = None,
    first_class: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1,
            help="For indices that do not tell: 0 where they leave background out, 1 where 0 is background.",
            show_default=False,
        ),
    ] = None,
    background_below: Annotated[
        float | None,
        typer.Option(
            help="Background is what is below this share of every map's maximum, not the lowest cells.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make cues of another project's class activation maps, by the profile's threshold and rule of merging."""
    from repro.cues.from_cams import cues_from_cams
    from repro.data import read_id_list

    settings = load(config, overrides, None, None, stages=("stage0",))
    made = cues_from_cams(
        settings,
        cams,
        out,
        names=read_id_list(ids) if ids else None,
        first_class=first_class,
        background_below=background_below,
    )
    say(made.cues, made.input_list, f"{made.done} images")


@seeds_app.command(
    "score",
    epilog="Example: repro seeds score --config dsrg_vgg16_voc --cues localization_cues.pickle --list input_list.txt "
    "--masks VOC2012/SegmentationClassAug --ids train_aug.txt",
)
def seeds_score(
    config: ConfigOption,
    cues: Annotated[Path, typer.Option(help="A cue file, or a folder of cue PNGs.")],
    masks: Annotated[Path, typer.Option(help="Folder of ground-truth masks, <image>.png (255 is void).")],
    overrides: Overrides = None,
    input_list: Annotated[
        Path | None, typer.Option("--list", help="The cue file's list, lines 'image index'.")
    ] = None,
    ids: Annotated[Path | None, typer.Option(help="Only the images of this list.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the metrics as JSON, too.")] = None,
) -> None:
    """Precision, recall and IoU of cues against masks, and the share of the pixels they label."""
    from repro.cues.generate import score_seeds
    from repro.data import read_id_list

    settings = load(config, overrides, None, None, stages=())
    names = read_id_list(ids) if ids else None
    metrics = score_seeds(settings, cues, masks, input_list=input_list, ids=names)
    say(f"{'':<24}{'precision':>10}{'recall':>10}{'IoU':>10}")
    rows = [("mean", metrics), ("mean, released script", metrics["released"])]
    for name, row in [*rows, *zip(settings.dataset.classes, metrics["per_class"], strict=True)]:
        cells = ("-" if row is None else f"{100 * row[key]:.2f}" for key in ("precision", "recall", "iou"))
        say(f"{name:<24}" + "".join(f"{cell:>10}" for cell in cells))
    say(f"{metrics['images']} images, {100 * metrics['labelled']:.1f} % of the pixels labelled")
    if out:
        write_json(out, metrics)
