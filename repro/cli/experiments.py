"""Verbs that train, score and report: train, evaluate, reproduce, tables, check-paper, bench."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repro import distributed
from repro.cli.shared import Answer, ConfigOption, OptionalConfig, Overrides, app, verb
from repro.constants import CLASS_NAMES, VOID
from repro.errors import InputError
from repro.files import write_report
from repro.profiles import profile_names
from weights_conversion.files import check_target, write_text

if TYPE_CHECKING:
    from repro.inference.explain import Score

log = logging.getLogger(__name__)


@verb(
    app,
    examples=r"""
    repro train --config dsrg_vgg16_voc --stage 1 \
      data.image_root=JPEGImages/ data.list=input_list.txt \
      data.cues=localization_cues.pickle \
      init.weights=vgg16_20M.caffemodel output=runs/a

    repro train --solver solver-s.prototxt \
      init.weights=vgg16_20M_mc.caffemodel output=runs/b
    """,
)
def train(
    overrides: Overrides = None,
    config: OptionalConfig = None,
    solver: Annotated[
        str | None,
        typer.Option(
            help="Instead of a profile: a Caffe solver prototxt. It trains the net that it names.",
            show_default=False,
        ),
    ] = None,
    stage: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2,
            help="1: on cues. 2: on pseudo labels.",
            show_default="1, or what the solver's net trains",
        ),
    ] = None,
    variables: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: fills ${NAME} in the solver's files.", show_default=False),
    ] = None,
) -> Answer:
    """Train one stage; an unfinished run resumes from its newest snapshot.

    The result is an uninterrupted run's to the bit with the same number of CPU threads (OMP_NUM_THREADS).

    Under torchrun several processes share each mini-batch (docs/clusters.md).
    """
    from repro.config import config_from, read_profile
    from repro.run_folder import Run, resolve_device
    from repro.training.caffe_solver import load_run, load_solver
    from repro.training.lengthen import trained
    from repro.training.train import train as train_stage
    from repro.training.train_file import train_file

    distributed.join()
    if (config is None) == (solver is None):
        raise InputError("train: give either --config or --solver")
    named = dict(_pair(text) for text in variables or [])
    if named and solver is None:
        raise InputError("--set: goes with --solver")
    overrides = overrides or []
    if solver is None:
        fields = read_profile(str(config))
        files = load_run(fields, overrides, str(config))
    else:
        files = load_solver(solver, overrides, named)
    if files is not None:
        if stage not in (None, files.stage):
            found = f"is of stage {files.stage}" if files.stage else "is of no stage"
            raise InputError(f"{files.config.caffe_solver}: its net {found}, not of --stage {stage}")
        run = Run(files.config, resolve_device(files.config.device))
        weights, solver_config = train_file(files, run), files.config.solver
    else:
        stage = stage or 1
        settings = config_from(fields, overrides, str(config), stages=(f"stage{stage}",))
        run = Run(settings, resolve_device(settings.device))
        weights = train_stage(settings, stage, run)
        solver_config = getattr(settings, f"stage{stage}").solver
    if not run.begun:
        log.info("%s", trained(weights.parent, solver_config))
    rows = weights.parent / "log.csv"
    return Answer({"weights": weights, "log": rows}, [weights, rows])


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InputError(f"--set {text}: expected NAME=VALUE")
    return name, value


@verb(
    app,
    examples=r"""
    repro evaluate --pred masks/ --gt VOC2012/SegmentationClass \
      --list val.txt --out scores.json

    repro evaluate --pred masks/ --gt truth/ --list ids.txt \
      --classes background,cat,dog
    """,
)
def evaluate(
    pred: Annotated[Path, typer.Option(help="Folder of predicted masks, <id>.png.")],
    gt: Annotated[Path, typer.Option(help="Folder of ground-truth masks, <id>.png (indices; 255 is void).")],
    ids: Annotated[Path, typer.Option("--list", help="The images: x, x.jpg, or a training list's lines.")],
    num_classes: Annotated[
        int | None,
        typer.Option(min=2, max=VOID, help="Classes, background included.", show_default=False),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Their names instead, background first: a,b,c, or a file of one a line.", show_default=False
        ),
    ] = None,
    config: OptionalConfig = None,
    out: Annotated[Path | None, typer.Option(help="Write the scores as JSON, too.")] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Score the masks under the field's mistakes instead (docs/why.md)."),
    ] = False,
    expected: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            help="With --explain: a mean IoU in percent; what comes nearest is marked.",
            show_default=False,
        ),
    ] = None,
) -> Answer:
    """Score masks: mean IoU by the averaging rules, pixel accuracy, every class.

    The classes are VOC's 21 unless --num-classes, --classes or --config (its dataset.classes) says others.
    """
    from repro.data import read_id_list
    from repro.inference.evaluate import evaluate_folder
    from repro.inference.explain import explain as explain_scores

    if expected is not None and not explain:
        raise InputError("--expected goes with --explain, which marks the mistakes that come nearest")
    distributed.join()
    named = _class_names(num_classes, classes, config)
    names = read_id_list(ids)
    truth = [gt / f"{name}.png" for name in names]
    if explain:
        return _explained(explain_scores(pred, truth, names, len(named)), expected, out)
    scores = evaluate_folder(pred, truth, names, len(named))
    lines = [f"{'images':<28}{scores['images']}"]
    lines += [
        f"{f'mean IoU, rule {rule}':<28}{100 * scores['mean_iou'][rule]:.2f}"
        + ("  (counts only classes with a correct pixel)" if rule == "released" else "")
        for rule in sorted(scores["mean_iou"], key="voc".__ne__)  # the field's first
    ]
    lines.append(f"{'pixel accuracy':<28}{100 * scores['pixel_accuracy']:.2f}")
    for name, value in zip(named, scores["per_class_iou"], strict=True):
        lines.append(f"{name:<28}{'-' if value is None else f'{100 * value:.2f}'}")
    if absent := [named[index] for index in scores["absent_classes"]]:
        lines.append(
            f"{len(absent)} of the {len(named)} classes are in no ground-truth mask: {', '.join(absent)}. "
            "Rule voc counts them as 0, rule present leaves them out; --classes, --num-classes or --config say "
            "which classes there are."
        )
    data = {**scores, "classes": named}
    if out and distributed.is_first():
        write_report(out, data)
    return Answer(data, lines)


def _explained(scores: list[Score], expected: float | None, out: Path | None) -> Answer:
    """A line for each score, with the points between it and the right one; those nearest to the expected are marked."""
    from repro.inference.explain import UNTOLD, nearest

    marked = nearest(scores, expected / 100) if expected is not None else []
    base = scores[0].mean_iou
    lines = []
    for score in scores:
        mark = (
            f"   <- {100 * score.mean_iou - (expected or 0):+.2f} from {expected:g}"
            if score in marked
            else ""
        )
        gap = "" if score is scores[0] else f"{100 * (score.mean_iou - base):+.2f}"
        lines.append(
            f"{score.name:<58}{100 * score.mean_iou:>7.2f}{gap:>9}{'   right' if score.right else ''}{mark}"
        )
    data = {score.name: score.mean_iou for score in scores}
    if out and distributed.is_first():
        write_report(out, data)
    return Answer(data, [*lines, UNTOLD])


def _class_names(num_classes: int | None, classes: str | None, config: str | None) -> list[str]:
    """The classes that the options of `evaluate` mean; at most one is given, VOC's without any."""
    if sum(option is not None for option in (num_classes, classes, config)) > 1:
        raise InputError("evaluate: give one of --num-classes, --classes and --config")
    if config is not None:
        from repro.config import load_config

        return list(load_config(config).dataset.classes)
    if classes is not None:
        from repro.data.image_list import read_text

        text = read_text(classes, "a class name") if Path(classes).is_file() else classes.replace(",", "\n")
        named = [name.strip() for name in text.splitlines() if name.strip()]
        if not 2 <= len(named) <= VOID or len(set(named)) != len(named):
            raise InputError(f"--classes {classes}: 2 to {VOID} different names expected, background first")
        return named
    if num_classes in (None, len(CLASS_NAMES)):
        return list(CLASS_NAMES)
    return ["background", *(f"class {index}" for index in range(1, num_classes))]


@verb(
    app,
    examples=r"""
    repro reproduce --config mini --seeds 0,1,2

    repro reproduce --config dsrg_vgg16_voc \
      dataset.root=VOCdevkit/VOC2012 \
      stage1.init.weights=vgg16_20M.caffemodel

    repro reproduce --experiment table4 --dry-run \
      dataset.root=VOCdevkit/VOC2012
    """,
)
def reproduce(
    config: OptionalConfig = None,
    overrides: Overrides = None,
    experiment: Annotated[
        str,
        typer.Option(
            help="Tables of the papers, e.g. table2,table4; all. docs/results.md lists them. Each run has its own "
            "profile, or --config's.",
            show_default=False,
        ),
    ] = "",
    original: Annotated[
        list[str] | None, typer.Option(help="ROW=FILE: score these weights as the row's, train nothing.")
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Several seeds, e.g. 0,1,2: a run each.", show_default=False)
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, how long and how large.")
    ] = False,
) -> Answer:
    """Run whole experiments and write their results folder; what is done already is skipped."""
    from repro.report import report_planned
    from repro.report.page_summary import closing_lines
    from repro.run.forecast import forecast
    from repro.run.plan import plan
    from repro.run.reproduce import reproduce as reproduce_runs

    distributed.join()
    runs = plan(
        config,
        overrides or [],
        names=[name.strip() for name in experiment.split(",") if name.strip()],
        originals=original or [],
        seeds=_seeds(seeds),
    )
    if dry_run:
        told = forecast(runs)
        return Answer({"runs": [run.folder for run in runs], "forecast": told}, told)
    reproduce_runs(runs)
    if not distributed.is_first():
        return Answer(None, [])
    folders = report_planned(runs)
    summaries = [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in folders]
    lines: list[object] = []
    for folder, summary in zip(folders, summaries, strict=True):
        lines += [folder / "README.md", folder / "index.html", "", *closing_lines(summary)]
    return Answer(
        {
            "runs": [run.folder for run in runs],
            "results": [
                {"folder": folder, **summary} for folder, summary in zip(folders, summaries, strict=True)
            ],
        },
        lines,
    )


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(number) for number in text.split(",") if number.strip()]
    except ValueError:
        seeds = []
    if text and not seeds:
        raise InputError(f"--seeds {text}: expected whole numbers with commas between")
    return seeds


@verb(
    app,
    examples=r"""
    repro tables

    repro tables results/runs/a results/runs/b --out results/ab
    """,
)
def tables(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders; all of results/runs by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results of the runs named.")] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Write to results/published, which git does not ignore.")
    ] = False,
) -> Answer:
    """Write the results folder of finished runs again: tables, figures, page and verdict.

    Without arguments: of every experiment in results/runs, each in results/<name>.
    """
    from repro.report import report_all, report_runs

    if bool(runs) != bool(out):
        raise InputError("tables: run folders and --out go together; give both or none")
    if publish and out:
        raise InputError("tables: --publish names the folder itself; give it or --out")
    results = Path("results/published" if publish else "results")
    folders = [report_runs(runs, out)] if runs and out else report_all(Path("results/runs"), results)
    return Answer({"results": folders}, folders)


@verb(
    app,
    "check-paper",
    examples=r"""
    repro check-paper

    repro check-paper results/runs/a results/runs/b
    """,
)
def check_paper(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders; the papers' own in results/runs by default.")
    ] = None,
) -> Answer:
    """Compare finished runs with the published values; exit status 1 if one is missed by more than its tolerance."""
    from repro.report import judge_runs

    verdict = judge_runs(runs, Path("results/runs"))
    return Answer(
        {
            "verdict": verdict.sentence(),
            "judgements": [asdict(judgement) for judgement in verdict.judgements],
        },
        [*(judgement.line() for judgement in verdict.judgements), verdict.sentence()],
        status=1 if verdict.of("missed") else 0,
    )


@verb(
    app,
    examples=r"""
    repro bench --config dsrg_vgg16_voc \
      precision=fast data.batch_size=10 device=cuda

    repro bench --costs
    """,
)
def bench(
    config: ConfigOption = "dsrg_vgg16_voc",
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures and the table.")] = Path("results/bench"),
    seconds: Annotated[float, typer.Option(min=0.01, help="What each part may take.")] = 2.0,
    costs: Annotated[
        bool, typer.Option("--costs", help="Instead: what each profile takes, from the benchmarks in --out.")
    ] = False,
) -> Answer:
    """Time each part of a stage-1 iteration and of a prediction, beside what the originals computed with."""
    from repro.bench import bench as run_bench
    from repro.config import load_config
    from repro.run.forecast import COSTS_HEADING
    from repro.run.forecast import costs as cost_table

    if costs:
        names = [name for name in profile_names() if name != "mini"]
        check_target(out / "costs.md", of="table", begins=COSTS_HEADING.encode())
        write_text(out / "costs.md", cost_table(names, out))
        return Answer({"costs": out / "costs.md"}, [out / "costs.md"])
    settings = load_config(config, overrides or [], stages=("stage1",))
    figures, table = run_bench(settings, out, seconds=seconds)
    data = json.loads(figures.read_text(encoding="utf-8"))
    return Answer(data, [*table.read_text(encoding="utf-8").split("\n"), figures, table])
