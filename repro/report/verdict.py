"""Reproduced or not, and by how much: each cell with a run against its published value and a stated tolerance.

The tolerances and where they come from are in ``expected.yaml``. A cell without a run is "not run", and one whose
run may not be compared with the paper's is "not comparable"; neither counts as reproduced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import scipy  # its parts are imported when they are first used: no verb waits for more than it needs
from pydantic import Field

from repro.config import Section, load_yaml, validated
from repro.errors import InputError
from repro.paper.experiments import Cell, experiments
from repro.report.formats import markdown_text
from repro.run.scores import Estimate, Scores, incomparable

Status = Literal["reproduced", "missed", "not comparable", "not run", "cannot be run"]


class Expectation(Section):
    """One entry of ``expected.yaml``."""

    experiments: list[str] = Field(min_length=1)
    metric: str
    tolerance: float = Field(gt=0)
    source: str


@dataclass(frozen=True)
class Judgement:
    """A cell's outcome. ``value`` is the published one, ``tolerance`` None where it is never judged, ``interval`` the
    95 % prediction interval of our seeds."""

    cell: str
    status: Status
    value: float
    tolerance: float | None
    source: str
    ours: Estimate | None = None
    interval: tuple[float, float] | None = None
    why: str = ""

    @property
    def difference(self) -> float | None:
        return None if self.ours is None else self.ours.mean - self.value

    def shown_difference(self) -> str:
        return (
            "–" if self.difference is None or self.status == "not comparable" else f"{self.difference:+.2f}"
        )

    def shown_tolerance(self) -> str:
        return "–" if self.tolerance is None else f"±{self.tolerance:g}"

    def line(self) -> str:
        """One line for the screen."""
        label = self.cell.replace("/", ", ")
        if self.status in ("not run", "cannot be run"):
            return f"{label}: {self.status}{f' ({self.why})' if self.why else ''}"
        assert self.ours is not None
        ours = self.ours.shown(2)
        if self.status == "not comparable":
            return f"{label}: {ours}, not comparable with {self.value:g}: {self.why}"
        return (
            f"{label}: {self.status}, {ours} against {self.value:g} "
            f"({self.difference:+.2f}, allowed {self.shown_tolerance()})"
        )


@dataclass(frozen=True)
class Verdict:
    judgements: list[Judgement]

    def of(self, status: Status) -> list[Judgement]:
        return [judgement for judgement in self.judgements if judgement.status == status]

    def sentence(self) -> str:
        """The verdict in a sentence."""
        reproduced, missed = self.of("reproduced"), self.of("missed")
        judged = len(reproduced) + len(missed)
        rest = ", ".join(
            f"{count} {status}"
            for status, count in Counter(
                judgement.status for judgement in self.judgements if judgement not in (*reproduced, *missed)
            ).items()
        )
        rest = f" ({rest})" if rest else ""
        if not judged:
            if others := self.of("not comparable"):
                reasons = "; ".join(dict.fromkeys(judgement.why for judgement in others))
                return f"No verdict: none of these runs may be compared with the papers' ({reasons})."
            return f"No verdict: none of {len(self.judgements)} published values has a run{rest}."
        if not missed:
            return (
                f"Reproduced within tolerance: {judged} of {judged} published values that have a run{rest}."
            )
        worst = max(missed, key=lambda judgement: abs(judgement.difference or 0))
        return (
            f"Not reproduced: {len(missed)} of {judged} published values that have a run are missed, "
            f"{worst.cell.replace('/', ', ')} by {worst.difference:+.2f}{rest}."
        )

    def markdown(self) -> str:
        """The sentence, a table of every cell that was judged, and folded, one of those that are not comparable."""
        lines = ["## Verdict", f"**{markdown_text(self.sentence())}**"]
        with_run = [judgement for judgement in self.judgements if judgement.ours is not None]
        folded = [judgement for judgement in with_run if judgement.status == "not comparable"]
        if judged := [judgement for judgement in with_run if judgement not in folded]:
            lines.append(_table(judged))
        if folded:
            words = f"{len(folded)} values that may not be compared with the published ones"
            lines += [f"<details><summary>{words}</summary>", _table(folded), "</details>"]
        lines.append("Where each tolerance comes from: `repro/paper/expected.yaml`.")
        return "\n\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": self.sentence(),
            "cells": [
                {**asdict(judgement), "difference": judgement.difference} for judgement in self.judgements
            ],
        }


def _table(judgements: Sequence[Judgement]) -> str:
    lines = ["| what | ours | published | difference | tolerance | |", "| - | - | - | - | - | - |"]
    for judgement in judgements:
        assert judgement.ours is not None
        cells = [judgement.cell.replace("/", ", "), f"{judgement.ours.mean:.2f}", f"{judgement.value:g}"]
        cells += [judgement.shown_difference(), judgement.shown_tolerance(), judgement.status]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@cache
def expectations() -> dict[str, Expectation]:
    """``expected.yaml`` by experiment. Raises InputError unless each of the papers' own has exactly one."""
    text = (resources.files("repro.paper") / "expected.yaml").read_text(encoding="utf-8")
    judged = experiments().tables([])
    found: dict[str, Expectation] = {}
    for fields in load_yaml(text):
        entry = validated(Expectation, fields, "expected.yaml")
        for name in entry.experiments:
            if name in found or name not in judged:
                raise InputError(f"expected.yaml: {name}: expected an experiment of the papers, once")
            found[name] = entry
    if absent := [name for name in judged if name not in found]:
        raise InputError(f"expected.yaml: nothing is expected of {absent[0]}")
    return found


def judge(scores: Scores) -> Verdict:
    """Every cell of every experiment that the runs can answer."""
    return Verdict(
        [
            _judge(cell, expectations().get(name), scores)
            for name, paper in scores.tables.items()
            for cell in paper.cells
        ]
    )


def _judge(cell: Cell, expected: Expectation | None, scores: Scores) -> Judgement:
    tolerance, source = (expected.tolerance, expected.source) if expected else (None, "")

    def outcome(status: Status, **more: Any) -> Judgement:
        return Judgement(cell.name, status, cell.paper, tolerance, source, **more)

    if cell.why is not None:
        return outcome("cannot be run", why=cell.why)
    runs, ours = scores.of(cell), scores.estimate(cell)
    if ours is None:
        return outcome("not run")
    if reasons := sorted({reason for entry in runs if (reason := incomparable(entry))}):
        return outcome("not comparable", ours=ours, why="; ".join(reasons))
    if tolerance is None:
        return outcome("not comparable", ours=ours, why="the published number is of another data set")
    within = abs(ours.mean - cell.paper) <= tolerance
    return outcome("reproduced" if within else "missed", ours=ours, interval=_interval(ours))


def _interval(ours: Estimate) -> tuple[float, float] | None:
    """Where one more seed's value lies with 95 %: the published value is one seed's as well."""
    if ours.sd is None or ours.count < 3:
        return None
    # Student's quantile; scipy.stats, which has it too, takes a second to import
    reach = float(scipy.special.stdtrit(ours.count - 1, 0.975)) * ours.sd * (1 + 1 / ours.count) ** 0.5
    return ours.mean - reach, ours.mean + reach
