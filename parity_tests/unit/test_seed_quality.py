"""The quality of seeds while a net trains: a run that is killed anywhere and goes on leaves the same table."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from repro.training.seed_quality import SeedQuality

IMAGES, BATCH, ITERATIONS = 6, 2, 8  # a pass takes three iterations


def train(folder, first: int, last: int, state: dict) -> dict[int, dict]:
    """The iterations from ``first`` on, as the loop would do them; the hook's state after each."""
    hook = SeedQuality(IMAGES, BATCH)
    hook.load_state_dict(state)
    loop = SimpleNamespace(
        folder=folder, solver=SimpleNamespace(iteration=first), measured=lambda name, metrics: None
    )
    hook.before_training(loop)
    states = {}
    for iteration in range(first, last):
        generator = torch.Generator().manual_seed(iteration)
        truth = torch.randint(0, 9, (BATCH, 3, 5, 5), generator=generator)
        given, grown = (
            (torch.rand(BATCH, 3, 5, 5, generator=generator) < share).byte() for share in (0.3, 0.5)
        )
        hook.watch({"truth": truth, "cues": given}, grown)
        loop.solver.iteration = iteration + 1
        hook.after_iteration(loop, {})
        states[iteration + 1] = hook.state_dict()
    return states


@pytest.mark.parametrize("killed_after", range(1, ITERATIONS + 1))
def test_a_run_that_goes_on_from_any_snapshot_has_each_row_once(tmp_path, killed_after):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    train(whole, 0, ITERATIONS, {})
    states = train(cut, 0, killed_after, {})
    for snapshot in range(killed_after, -1, -1):  # the newest is not always whole
        train(cut, snapshot, ITERATIONS, states.get(snapshot, {}))
        assert (cut / "seed_quality.csv").read_text() == (whole / "seed_quality.csv").read_text()
    rows = (whole / "seed_quality.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["0", "0"], ["1", "3"], ["2", "6"]]
