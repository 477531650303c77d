"""The papers' tables as data: which numbers were published, and which run answers each.

``numbers.yaml`` holds the published values with their sources, ``experiments.yaml`` the runs behind them. Both are
checked when they are read: a cell that names no number, no run or both a run and a reason for having none is an
error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from repro.config import Section, load_yaml, validated
from repro.errors import InputError, meant
from repro.metrics import Rule
from repro.models.loss_tails import ROWS

PAPER = "paper"  # the results folder of the papers' own runs, whatever their profiles
Path = list[str | int | float]  # of keys and indices into numbers.yaml


class RunSpec(Section):
    """A run of the papers: a profile, the losses of ``row``, and what is changed.

    ``elsewhere`` holds what another profile (the embedded set's) needs beside ``set`` to be this run.
    """

    profile: str
    row: str
    set: dict[str, Any] = Field(default_factory=dict)
    elsewhere: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _row_is_known(self) -> Self:
        if self.row not in ROWS:
            raise ValueError(f"row {self.row!r}: {meant(self.row, ROWS)}")
        return self


class Cell(Section):
    """A published number, and the run whose ``score`` (or seeds, at an ``epoch``) answers it."""

    row: str
    column: str
    published: Path
    per_class: Path | None = None
    run: str | None = None
    score: Literal["stage1", "stage2"] = "stage1"
    epoch: int | None = None
    figure: Literal["precision", "recall", "iou"] | None = None
    why: str | None = None
    _name: str = PrivateAttr("")
    _rule: Rule = PrivateAttr("voc")

    @model_validator(mode="after")
    def _answered_or_not(self) -> Self:
        if (self.run is None) == (self.why is None):
            raise ValueError(f"{self.row}, {self.column}: expected either run or why")
        if (self.epoch is None) != (self.figure is None):
            raise ValueError(f"{self.row}, {self.column}: epoch and figure go together")
        return self

    @property
    def name(self) -> str:
        """``experiment/row/column``: what a run's scores and the verdict call the cell."""
        return self._name

    @property
    def rule(self) -> Rule:
        """The averaging rule of its table's headline (``repro/metrics.py``)."""
        return self._rule

    @property
    def paper(self) -> float:
        """The published number, percent."""
        return float(_at(self.published))

    def paper_per_class(self) -> dict[str, float | None]:
        """The published numbers of the classes, by class name; empty where none were."""
        if self.per_class is None:
            return {}
        *path, last = self.per_class
        values = _at(path)
        if isinstance(last, int):  # class -> one value a method
            return {name: row[last] for name, row in values.items()}
        return dict(zip(numbers()["classes_voc"], values[last], strict=True))


class PaperTable(Section):
    """A table or figure of the papers. ``layout: grid`` is one that reads in two directions.

    ``family`` is the results folder of its runs. One that is not ``paper`` holds runs on a data set that the papers
    did not use: their own profiles alone make them, and the published numbers stand beside them, never judged.
    ``rule`` averages its mean IoU (``repro/metrics.py``). ``data`` is what the published numbers were measured on,
    where the title does not say it.
    """

    title: str
    data: str | None = None
    source: str
    family: str = PAPER
    rule: Rule = "voc"
    layout: Literal["list", "grid"] = "list"
    decimals: int = 1
    cells: list[Cell] = Field(min_length=1)


class Experiments(Section):
    """``families``: the title of each results folder's page. ``stands_for``: profile -> the one whose cells its runs
    answer."""

    runs: dict[str, RunSpec]
    stands_for: dict[str, str]
    families: dict[str, str]
    experiments: dict[str, PaperTable]

    @model_validator(mode="after")
    def _cells_fit(self) -> Self:
        for experiment, table in self.experiments.items():
            if table.family not in self.families:
                raise ValueError(f"{experiment}: its family {table.family} has no title in families")
            for cell in table.cells:
                cell._name, cell._rule = f"{experiment}/{cell.row}/{cell.column}", table.rule
                if cell.run is not None and cell.run not in self.runs:
                    raise ValueError(f"{cell.name}: no run named {cell.run!r}")
                if cell.run and self.family(self.runs[cell.run].profile) != table.family:
                    raise ValueError(f"{cell.name}: its run is of another family than {table.family}")
                if not isinstance(_at(cell.published), (int, float)):
                    raise ValueError(f"{cell.name}: {cell.published} is no number of numbers.yaml")
            names = [cell.name for cell in table.cells]
            if len(set(names)) != len(names):
                raise ValueError(f"{experiment}: two cells of one name")
        return self

    def cells(self) -> list[Cell]:
        return [cell for table in self.experiments.values() for cell in table.cells]

    def cell(self, name: str) -> Cell:
        return next(cell for cell in self.cells() if cell.name == name)

    def named(self, names: Sequence[str]) -> list[str]:
        """The experiments that ``names`` mean: a name, the beginning of several, or ``all`` of the papers.

        Raises:
            InputError: a name that means none.
        """
        found: dict[str, None] = {}
        for name in names:
            matches = [
                full
                for full, table in self.experiments.items()
                if (name == "all" and table.family == PAPER) or full == name or full.startswith(f"{name}-")
            ]
            if not matches:
                raise InputError(f"--experiment {name}: {meant(name, ['all', *self.experiments])}")
            found.update(dict.fromkeys(matches))
        return list(found)

    def profiles(self) -> list[str]:
        """The profiles that the runs are made of."""
        return list(dict.fromkeys(spec.profile for spec in self.runs.values()))

    def family(self, profile: str) -> str | None:
        """The results folder of a profile's runs; None for a profile that no run is of."""
        return next(
            (
                table.family
                for table in self.experiments.values()
                for cell in table.cells
                if cell.run and self.runs[cell.run].profile == profile
            ),
            None,
        )

    def tables(self, profiles: Iterable[str]) -> dict[str, PaperTable]:
        """The experiments that runs of some profiles can answer, by name; the papers' own for
        any other profile, and without any."""
        families = {self.family(profile) or PAPER for profile in profiles} or {PAPER}
        return {name: table for name, table in self.experiments.items() if table.family in families}


@cache
def numbers() -> dict[str, Any]:
    """``numbers.yaml``."""
    return load_yaml(_text("numbers.yaml"))


@cache
def experiments() -> Experiments:
    """``experiments.yaml``."""
    return validated(Experiments, load_yaml(_text("experiments.yaml")), "experiments.yaml")


def _text(name: str) -> str:
    return (resources.files("repro.paper") / name).read_text(encoding="utf-8")


def _at(path: Sequence[str | int | float]) -> Any:
    node: Any = numbers()
    for key in path:
        try:
            node = node[key]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"numbers.yaml: nothing at {list(path)}") from None
    return node
