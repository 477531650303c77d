"""The progress bar of a training on terminals of several widths."""

import io

import pytest

from repro.training.hooks import FigureBar

FIGURES = {"lr": "0.01", "loss": "1.234", "loss-Seed": "0.5", "loss-Constrain": "0.7", "images/s": "3.1"}


@pytest.mark.parametrize("width", [70, *range(95, 110, 3), 200])
def test_figures_are_whole(width):
    """Those that do not fit are left out from the end."""
    bar = FigureBar(total=30, desc="run/stage1", unit="it", file=io.StringIO(), ncols=width)
    bar.update(3)
    bar.set_postfix(FIGURES)
    line = str(bar)
    bar.close()
    figures = [f"{name}={value}" for name, value in FIGURES.items()]
    shown = line.removesuffix("]").split(", ")[1:]
    assert len(line) <= width
    assert line.endswith("]")
    assert [figure for figure in shown if "=" in figure] == figures[: len(shown) - 1]
    assert (len(shown) - 1 == len(FIGURES)) == (width == 200)
