"""Which runs an experiment needs, what they answer, and which of them are one and the same.

A run is a profile with changes (``paper/experiments.yaml``) and a seed. Runs are told apart by all that shapes
their numbers, not by their names: two that come to the same computation are made once, and each answers every cell
of every table that it fits, whichever experiment asked for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from repro.config import (
    MAX_SEED,
    STAGES,
    Config,
    Mark,
    changed_from_profile,
    load_config,
    shaping,
    with_changes,
)
from repro.errors import InputError
from repro.files import json_sha256
from repro.models.loss_tails import ROWS
from repro.paper.experiments import PAPER, Cell, RunSpec, experiments
from repro.profiles import profile_names
from repro.run.scores import ORIGINAL, TRAINED
from weights_conversion.files import no_such

SCORES = ("stage1", "stage2")


@dataclass(frozen=True)
class PlannedRun:
    """One run: its folder, what is to be scored, and what the scores answer.

    Attributes:
        config: the whole configuration, one seed.
        folder: where it goes.
        base: the profile with the user's changes that it is made of.
        methods: score (``stage1``, ``stage2``) -> what the tables call it; what is not there is not made.
        answers: score -> the cells (``experiment/row/column``) that it answers.
        weights: where they are given (the originals', converted), nothing is trained: they are scored.
    """

    config: Config
    folder: Path
    base: Config
    methods: dict[str, str] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    weights: Path | None = None

    @property
    def grows_for_a_figure(self) -> bool:
        """Whether its seeds are shown growing: those of the run behind Fig. 4."""
        cells = map(experiments().cell, self.answers.get("stage1", []))
        return self.weights is None and any(cell.epoch is not None for cell in cells)

    @property
    def cues_dir(self) -> Path:
        """The run folder in which stage 0 makes the cues of ``dataset.make_cues``, once for all runs of a seed."""
        folder, seed = self.base.run_dir, self.config.seed
        return folder.with_name(f"{folder.name}-seed{seed}") if seed else folder

    def identity(self) -> dict[str, Any]:
        """What a scores file says of the run, beside the scores."""
        return {
            "run": self.folder.name,
            "family": family(self.base),
            "base": {"profile": self.base.name, "sha256": settings_sha256(self.base)},
            "settings_sha256": settings_sha256(self.config),
            "seed": self.config.seed,
            "changed": changed_from_profile(self.base),
            "pretrained": self.weights is not None
            or self.config.stage1.init.weights is not None
            or self.config.pretrains,
            "origin": TRAINED if self.weights is None else ORIGINAL,
        }


def family(base: Config) -> str:
    """The results folder that a run's numbers belong to."""
    if base.output:
        return base.run_dir.name
    return experiments().family(base.name) or base.name


def results_dir(base: Config) -> Path:
    """Where results go: ``results/<family>``, or beside a run with its own ``output``."""
    if base.output:
        return base.run_dir.parent / f"{base.run_dir.name}-tables"
    return Path("results") / family(base)


def settings_sha256(config: Config) -> str:
    """Of all settings that change a run but its seed: runs with equal ones are repetitions of each other.

    Files that a run is given count by their contents, wherever they lie. What stage 1 does not read does not count:
    thresholds of seeds that do not grow, the pooling of an expand loss that is not there. The released growing rule is
    the paper's with ``theta_b`` raised to ``theta_f``; where that
    is infinite nothing grows.
    """
    kept = shaping(config, Mark.REPETITION)
    if not config.dataset.make_cues:
        kept["stage0"] = None
    loss = kept["stage1"]["loss"]
    if loss["rule"] == "released":
        loss["theta_b"] = max(loss["theta_b"], loss["theta_f"])
    if loss["theta_f"] == loss["theta_b"] == float("inf"):
        loss["cues"] = "fixed"
    if loss["cues"] == "fixed":
        loss["theta_f"] = loss["theta_b"] = None
    del loss["rule"]
    if not loss["expand"]:
        loss["pooling"] = None
    return json_sha256(kept)


def plan(
    profile: str | None,
    overrides: Sequence[str] = (),
    *,
    names: Sequence[str] = (),
    originals: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> list[PlannedRun]:
    """The runs that a call of ``reproduce`` means.

    Args:
        profile: a profile's name or path; may be left out with ``names``, whose runs have their own.
        overrides: ``key=value``, for every run.
        names: of experiments, as ``plan_experiments`` takes them; without any, the runs behind the profile's rows.
        originals: ``row=weights file``: score these instead of training.
        seeds: a run each; the profile's own seed by default.

    Raises:
        InputError: nothing to plan, an unknown profile, key, experiment or row, or a seed that cannot be.
    """
    if len(set(seeds)) != len(seeds) or not all(0 <= seed <= MAX_SEED for seed in seeds):
        raise InputError(f"seeds {list(seeds)}: expected different whole numbers from 0 to {MAX_SEED}")
    if names:
        if originals:
            raise InputError("--original goes with --config, not with --experiment")
        return plan_experiments(names, profile, overrides, seeds)
    if profile is None:
        raise InputError("reproduce: give --config or --experiment")
    base = load_config(profile, overrides, stages=STAGES)
    return plan_originals(base, originals) if originals else plan_rows(base, seeds)


def plan_originals(base: Config, originals: Sequence[str]) -> list[PlannedRun]:
    """Runs that score weights which others trained: nothing but prediction and evaluation.

    Args:
        originals: ``row=file``, the row as in ``models/loss_tails.py``'s ROWS.

    Raises:
        InputError: not of that form, an unknown row, or a file that is not there.
    """
    variants = _Variants(base)
    runs = []
    for text in originals:
        row, _, file = text.partition("=")
        if row not in ROWS or not file:
            raise InputError(f"--original {text}: expected ROW=FILE, ROW one of {', '.join(ROWS)}")
        if not Path(file).is_file():
            raise InputError(f"--original {row}: {no_such('file', file)}")
        config = with_changes(base, _losses(row), row)
        score = "stage2" if row == "+Retrain" else "stage1"
        planned = variants.planned(config, None, {score: row})
        folder = base.run_dir.parent / f"{base.run_dir.name}-original-{row.strip('+').lower()}"
        runs.append(replace(planned, folder=folder, weights=Path(file)))
    return runs


def plan_rows(base: Config, seeds: Sequence[int]) -> list[PlannedRun]:
    """The runs behind ``base.rows``, for each seed."""
    variants = _Variants(base)
    wanted: dict[str, tuple[Config, dict[str, str]]] = {}
    for row in base.rows:
        own = row in ("baseline", "+BSL")  # the others are what the profile says
        config = with_changes(base, _losses(row), row) if own else base
        methods = wanted.setdefault(settings_sha256(config), (config, {}))[1]
        methods["stage2" if row == "+Retrain" else "stage1"] = row
    return [
        variants.planned(config, seed, methods)
        for seed in seeds or (base.seed,)
        for config, methods in wanted.values()
    ]


def plan_experiments(
    names: Sequence[str], profile: str | None, overrides: Sequence[str], seeds: Sequence[int]
) -> list[PlannedRun]:
    """The runs behind every cell of some experiments, each made once.

    Args:
        names: as ``Experiments.named`` takes them.
        profile: the profile to make all runs of; by default each of its own.
        overrides: ``key=value``, for every run.
        seeds: a run each; the profile's own seed by default.

    Raises:
        InputError: an unknown experiment or profile, or none of its runs are of ``profile``.
    """
    found = experiments()
    cells = [cell for name in found.named(names) for cell in found.experiments[name].cells if cell.run]
    families: dict[str, _Variants] = {}
    if profile is not None:
        given = _Variants(load_config(profile, overrides, stages=STAGES))
        families = dict.fromkeys(found.profiles(), given)
        cells = [cell for cell in cells if cell.run in given.configs]
        if not cells:
            raise InputError(f"--experiment {','.join(names)}: none of its runs is of {given.base.name}")
    else:
        profiles = dict.fromkeys(found.runs[cell.run].profile for cell in cells if cell.run)
        for name in profiles:
            if name not in profile_names():
                raise InputError(f"--experiment {','.join(names)}: its profile {name} is not here")
            base = load_config(name, overrides, stages=STAGES)
            if base.output and len(profiles) > 1:
                base = base.model_copy(update={"output": f"{base.output}-{name}"})
            families[name] = _Variants(base)
    wanted: dict[tuple[str, str], tuple[_Variants, Config, dict[str, str]]] = {}
    for cell in cells:
        assert cell.run is not None
        spec = found.runs[cell.run]
        variants = families[spec.profile]
        config = variants.configs[cell.run]
        key = (variants.base.name, settings_sha256(config))
        methods = wanted.setdefault(key, (variants, config, {}))[2]
        methods.setdefault(cell.score, "+Retrain" if cell.score == "stage2" else spec.row)
    return [
        variants.planned(config, seed, methods)
        for seed in seeds or (None,)
        for variants, config, methods in wanted.values()
    ]


class _Variants:
    """Every run of the papers as made of one profile, and the folder that each has."""

    def __init__(self, base: Config) -> None:
        self.base = base
        found = experiments()
        self.configs = {
            name: _variant(base, name, spec) for name, spec in found.runs.items() if _applies(base, spec)
        }
        self._keys = {name: settings_sha256(config) for name, config in self.configs.items()}
        # of several that are one computation the first stands for all, the profile itself before any
        self._first = {settings_sha256(base): ("", base)}
        for name, key in self._keys.items():
            self._first.setdefault(key, (name, self.configs[name]))
        self._rows = {key: found.runs[name].row for name, key in reversed(self._keys.items())}
        self._cells: dict[tuple[str, str], list[Cell]] = {}
        for cell in found.cells():
            if cell.run in self._keys:
                self._cells.setdefault((self._keys[cell.run], cell.score), []).append(cell)

    def planned(self, config: Config, seed: int | None, methods: dict[str, str]) -> PlannedRun:
        key = settings_sha256(config)
        suffix, config = self._first.get(key, (next(iter(methods.values())), config))
        config = config.model_copy(update={"seed": config.seed if seed is None else seed})
        parts = [
            self.base.run_dir.name,
            suffix.strip("+").lower().removeprefix(f"{experiments().family(self.base.name)}-"),
            f"seed{config.seed}" if config.seed else "",
        ]
        return PlannedRun(
            config=config,
            folder=self.base.run_dir.parent / "-".join(part for part in parts if part),
            base=self.base,
            methods={
                score: self._rows.get(key, row) if score == "stage1" else row
                for score, row in methods.items()
            },
            answers={
                score: [cell.name for cell in self._cells.get((key, score), [])]
                for score in SCORES
                if score in methods
            },
        )


def _applies(base: Config, spec: RunSpec) -> bool:
    """An experiment's own profile makes its own runs alone; any other (the embedded set's) can stand for the
    papers' own."""
    found = experiments()
    own = found.stands_for.get(base.name, base.name)
    return spec.profile == own or (own not in found.profiles() and found.family(spec.profile) == PAPER)


def _variant(base: Config, name: str, spec: RunSpec) -> Config:
    elsewhere = {} if spec.profile == base.name else spec.elsewhere
    return with_changes(base, {**_losses(spec.row), **elsewhere, **spec.set}, name)


def _losses(row: str) -> dict[str, Any]:
    return {"rows": [row], **{f"stage1.loss.{key}": value for key, value in ROWS[row].items()}}
