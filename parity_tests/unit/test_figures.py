"""What figures must not do: labels that touch, a legend over the data, a grid without numbers."""

from __future__ import annotations

import itertools

import matplotlib
import numpy as np
import pytest

from parity_tests.finished_runs import write_run
from repro.report import curve_figures, score_figures
from repro.report.figures import SETTINGS
from repro.run.scores import Scores, read_scores


def drawn(figures):
    """The only figure that some function gives, laid out."""
    with matplotlib.rc_context(SETTINGS):
        ((_drawing, figure),) = figures
        figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize(
    "losses", [(0.05, 3), (0.4, 0.9), (0.01, 100), (7, 7.2), (1e-4, 50), (0.9, 11), (0.2, 9), (5, 5)]
)
def test_labels_of_the_loss_do_not_touch(monkeypatch, losses):
    values = np.geomspace(*losses, 30)
    rows = [{"iteration": i, "loss": value, "lr": 0.1} for i, value in enumerate(values)]
    monkeypatch.setattr(curve_figures, "_logs", lambda scores, stage: {"+DSRG": rows})
    axes = drawn(curve_figures.curves(Scores([]), "stage2")).axes[0]
    low, high = axes.get_ylim()
    ticks = [
        tick
        for tick in axes.yaxis.get_major_ticks() + axes.yaxis.get_minor_ticks()
        if low <= tick.get_loc() <= high and tick.label1.get_text()
    ]
    boxes = sorted((tick.label1.get_window_extent() for tick in ticks), key=lambda box: box.y0)
    assert len(boxes) >= 2
    assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))


def test_the_legend_covers_no_bar(tmp_path):
    write_run(tmp_path, "a", "+Retrain")
    figure = drawn(score_figures.classes(Scores(read_scores([tmp_path / "a"]))))
    (legend,) = figure.legends
    assert not figure.axes[0].get_legend()
    assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())


def test_the_grid_of_thresholds_needs_two_numbers_of_a_rule(tmp_path):
    def cells(*names):
        for number, name in enumerate(names):
            write_run(tmp_path, f"r{number}", "+DSRG", answers=[name])
        return Scores(read_scores(tmp_path / f"r{number}" for number in range(len(names))))

    released = [f"table4/θ_b = 0.99/θ_f = {value}" for value in ("0.85", "0.90")]
    assert not list(score_figures.thresholds(cells(released[0])))
    assert not list(score_figures.thresholds(cells(released[0], released[0].replace("4", "4-paper-rule"))))
    figure = drawn(score_figures.thresholds(cells(*released)))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["paper", "ours, released rule"]


@pytest.mark.parametrize("figures", [score_figures.confusion, score_figures.thresholds])
def test_numbers_in_light_cells_stay_dark_on_a_dark_page(tmp_path, figures):
    """A figure's black text turns light there."""
    released = [f"table4/θ_b = 0.99/θ_f = {value}" for value in ("0.85", "0.90")]
    for name, answer in zip("ab", released, strict=True):
        write_run(tmp_path, name, "+DSRG", answers=[answer])
    scores = Scores(read_scores([tmp_path / "a", tmp_path / "b"]))
    texts = [text for axes in drawn(figures(scores)).axes for text in axes.texts]
    assert {matplotlib.colors.to_hex(text.get_color()) for text in texts} == {"#ffffff", "#010101"}
